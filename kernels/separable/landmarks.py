"""Landmark colours: a few of them stand for the Gaussian kernel between all.

    exp(-|c - d|^2 / 2)  ~  sum_kl phi_k(c) A_kl phi_l(d),   phi_k(c) = exp(-|c - c_k|^2 / 2),
    A = (K + ridge)^-1,  K_kl = exp(-|c_k - c_l|^2 / 2)

Williams and Seeger, "Using the Nyström Method to Speed Up Kernel Machines" (2001). What is missed
of colour c by itself, 1 - sum_kl phi_k(c) A_kl phi_l(c), lies between 0 and 1 and bounds what is
missed between two: |missed(c, d)|^2 <= missed(c, c) missed(d, d). Its mean over the points, the
relative trace norm of the error, is the residual that `tolerance` bounds.

Landmarks are means of the cells of a grid over the colours, in the order of how many colours a cell
holds for each that stands by: sizes_k / sum_l K_kl. Rare colours so come before the last of many in
a dense region, which its neighbours serve. With W = L^-1, L L^T = K + ridge,

    sum_kl phi_k A_kl phi_l = |W phi|^2

and W is lower triangular: one factorisation tells what the first so many landmarks miss, whatever
their number, and the least that keep the tolerance are taken. This is a fixed number of operations
and two waits for a GPU; pivots chosen one after another, as usual, take a round of both for each
few.
"""

import math
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

TOLERANCE, TOLERANCES = 0.1, (1e-4, 0.5)  # the default, and what is taken
MOST = 1024  # landmarks, unless more are asked for
SAMPLE = 8192  # colours that landmarks are made of, and as many others to measure on
ALIGNMENT = 16  # so many landmarks, or a multiple, cost no more on a GPU than fewer
FARTHEST = 100.0  # squared; what is farther weighs 2e-22, and denormal numbers are slow on a CPU
SIDE = 1.75  # of a cell, times tolerance^(1/8): about the side that takes the fewest landmarks
SPARE = 0.25  # of the tolerance: the share of colours whose cells, the emptiest, no one looks at
FINER = 0.7  # times the side, where the means of all cells miss too much
MIX = -7046029254386353131  # 2^64 / golden ratio, odd


class NotSeparable(ValueError):
    """The separable filter would need more landmarks, or a larger grid, than it may take."""


@dataclass(frozen=True)
class Landmarks:
    """Landmark colours `[K, E]` and `whitener` `[K, K]` W, lower triangular: A = W^T W.

    residual: the mean, over points unseen where there are enough, of what is missed of a colour.
    """

    colours: Tensor
    whitener: Tensor
    residual: float


def choose(colours: Tensor, tolerance: float, maximum: int) -> Landmarks:
    """As many landmarks of `colours` `[N, E]`, E >= 1, as bring the residual within `tolerance`.

    Refused (NotSeparable) where that takes more than `maximum`. Deterministic. The host waits
    twice; twice again where cells have to be finer.
    """
    candidates, checks = _samples(colours)
    side, spare = SIDE * tolerance ** (1 / 8), SPARE * tolerance
    while True:
        means, sizes = _means_of_cells(candidates, side, spare, maximum)
        marks = means.to(colours.dtype).double()
        gram = features_of(marks, marks)
        order = (sizes / gram.sum(1)).argsort(descending=True, stable=True)
        marks, gram = marks[order], gram[order][:, order]
        whitener, gains = _whitened(marks, gram, checks, tolerance)
        residuals = [1 - total for total in accumulate(gains.tolist())]
        if residuals[-1] <= tolerance:
            least = next(k for k, residual in enumerate(residuals, 1) if residual <= tolerance)
            count = min(-(-least // ALIGNMENT) * ALIGNMENT, len(marks))
            whitener = whitener[:count, :count].contiguous()
            return Landmarks(marks[:count].to(colours.dtype), whitener, residuals[count - 1])
        # A mean misses less than the squared side * E of any colour of its cell.
        if len(marks) == maximum or side**2 * colours.shape[1] < tolerance / 2:
            raise NotSeparable(_too_many(residuals, tolerance, maximum))
        side, spare = FINER * side, 0.0


def features_of(colours: Tensor, landmarks: Tensor) -> Tensor:
    """phi, `[N, K]`, of colours `[N, E]` and landmarks `[K, E]`; at least exp(-FARTHEST / 2)."""
    squares = colours.new_zeros(len(colours), len(landmarks))
    for c, m in zip(colours.T, landmarks.T, strict=True):
        difference = c[:, None] - m
        squares.addcmul_(difference, difference)
    return squares.clamp_(max=FARTHEST).mul_(-0.5).exp_()


def _samples(colours: Tensor) -> tuple[Tensor, Tensor]:
    """Colours to make landmarks of, others to measure on; both all of them where they are few."""
    count = len(colours)
    if count <= 2 * SAMPLE:
        every = colours.double()  # whose products no switch lowers to TF32
        return every, every
    rows = torch.arange(2 * SAMPLE, device=colours.device) * count // (2 * SAMPLE)
    some = colours[rows].double()
    return some[0::2], some[1::2]


def _means_of_cells(
    colours: Tensor, side: float, spare: float, maximum: int
) -> tuple[Tensor, Tensor]:
    """The mean of the colours of each cell of a grid, `[K, E]`, and how many these are, `[K]`.

    K is at most `maximum`, and no more than leave out a share `spare` of the colours.
    """
    cells = colours.div(side).floor_().clamp_(-(2.0**62), 2.0**62).long()
    key = cells[:, 0]
    for index in cells.T[1:]:
        key = torch.add(index, key, alpha=MIX)  # wraps; two cells of one key would be one cell
    key, order = key.sort(stable=True)
    first = torch.searchsorted(key, key)
    is_first = first == torch.arange(len(key), device=key.device)
    sizes = (torch.searchsorted(key, key, right=True) - first) * is_first
    sizes, cells = sizes.sort(descending=True, stable=True)
    enough = (1 - spare) * len(colours)
    count = min(1 + int((sizes.cumsum(0) < enough).sum()), maximum)
    members = (first == cells[:count, None]).to(colours.dtype)
    return members @ colours[order] / sizes[:count, None], sizes[:count]


def _whitened(
    landmarks: Tensor, gram: Tensor, checks: Tensor, tolerance: float
) -> tuple[Tensor, Tensor]:
    """W, and how much of a colour of `checks` each landmark adds to those before it, on average."""
    # The ridge: two landmarks may nearly coincide, and A stays below 1 / ridge.
    gram.diagonal().add_(tolerance / 50)
    root = torch.linalg.cholesky_ex(gram).L  # which does not wait; the ridge sees that there is one
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    whitener = torch.linalg.solve_triangular(root, identity, upper=False)
    white = features_of(checks, landmarks) @ whitener.T
    return whitener, white.square_().mean(0)


def _too_many(residuals: list[float], tolerance: float, maximum: int) -> str:
    """What the residual's slope says of the number needed."""
    count, residual = len(residuals), residuals[-1]
    earlier = (count + 1) // 2
    needed = f"more than {count}"
    if count < maximum:
        needed = f"more than the {count} that differ in a sample of {SAMPLE}"
    elif residuals[earlier - 1] > residual:
        slope = math.log(residuals[earlier - 1] / residual) / math.log(count / earlier)
        estimate = count * math.exp(min(math.log(residual / tolerance) / slope, 20.0))
        needed = f"about {max(estimate, count + 1):.0f}"
    return (
        f"the colours need {needed} landmarks, and max_landmarks is {maximum}: these miss "
        f"{residual:.2g} of a point's own weight, tolerance={tolerance:.2g} is asked for. Raise "
        "max_landmarks or the tolerance, divide colours by a larger sigma, or filter with "
        'method="exact" or "permutohedral"'
    )
