"""Landmark colours: a few of them stand for the Gaussian kernel between all.

    exp(-|c - d|^2 / 2)  ~  sum_kl phi_k(c) A_kl phi_l(d),   phi_k(c) = exp(-|c - c_k|^2 / 2),
    A = (K + ridge)^-1,  K_kl = exp(-|c_k - c_l|^2 / 2)

Williams and Seeger, "Using the Nyström Method to Speed Up Kernel Machines" (2001). What is missed
of colour c by itself, 1 - sum_kl phi_k(c) A_kl phi_l(c), lies between 0 and 1 and bounds what is
missed between two: |missed(c, d)|^2 <= missed(c, c) missed(d, d). Its mean over the points, the
relative trace norm of the error, is the residual that `tolerance` bounds.

Landmarks are pivots of a Cholesky factorisation (Harbrecht, Peters and Schneider, 2012), drawn in
proportion to what is still missed (Chen, Epperly, Tropp and Webber, "Randomly Pivoted Cholesky",
2023), a block of proposals at a time. The largest instead, as usual, would be an outlier each time.
Where the residual allows, they then move to the means of the colours nearest to them, which serves
dense regions better.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE, TOLERANCES = 0.1, (1e-4, 0.5)  # the default, and what is taken
MOST = 1024  # landmarks, unless more are asked for
SAMPLE = 8192  # colours that landmarks are drawn from, and as many others to measure on
LLOYD_STEPS = 4
MOVING_GAINS = 1.3  # by which factor moving the landmarks lowers the residual, as a rule
ALIGNMENT = 16  # so many landmarks, or a multiple, cost no more on a GPU than fewer
SEED = 0
# Factors below this share of the tolerance are noise to the filter and would swell A.
FLOOR = 0.1
FARTHEST = 100.0  # squared; what is farther weighs 2e-22, and denormal numbers are slow on a CPU


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

    Deterministic.

    Raises:
        NotSeparable: that takes more than `maximum`.
    """
    candidates, checks = _samples(colours)
    for pivots in _pivots(candidates, checks, tolerance, maximum):
        for colours in (_means(candidates, pivots), pivots):
            found = _whitened(colours, checks, tolerance)
            if found.residual <= tolerance:
                return found
    raise AssertionError("pivots end with an error")


def _shares() -> Iterator[float]:
    """Residuals that pivots should reach, in tolerances: what they gain when moved is not known."""
    yield MOVING_GAINS
    share = 1.0
    while True:
        yield share
        share *= 0.9  # the ridge adds a fiftieth or two


def features_of(colours: Tensor, landmarks: Tensor) -> Tensor:
    """phi, `[N, K]`, of colours `[N, E]` and landmarks `[K, E]`; at least exp(-FARTHEST / 2)."""
    squares = colours.new_zeros(len(colours), len(landmarks))
    for c, m in zip(colours.T, landmarks.T, strict=True):
        difference = c[:, None] - m
        squares.addcmul_(difference, difference)
    return squares.clamp_(max=FARTHEST).mul_(-0.5).exp_()


def _samples(colours: Tensor) -> tuple[Tensor, Tensor]:
    """Colours to draw from, and others to measure on; both all of them where they are few."""
    count = len(colours)
    if count <= 2 * SAMPLE:
        return colours, colours
    rows = torch.arange(2 * SAMPLE, device=colours.device) * count // (2 * SAMPLE)
    return colours[rows[0::2]], colours[rows[1::2]]


def _pivots(candidates: Tensor, checks: Tensor, tolerance: float, maximum: int) -> Iterator[Tensor]:
    """Colours drawn until the residual of `checks` is within each of `_shares`: more each time.

    Raises:
        NotSeparable: there are no more, or `maximum` are too few.
    """
    generator = torch.Generator().manual_seed(SEED)
    points = candidates if checks is candidates else torch.cat([candidates, checks])
    dtype, points = points.dtype, points.double()  # whose products no switch lowers to TF32
    measured = slice(len(points) - len(checks), None)
    factor = points.new_zeros(len(points), 0)
    missed = points.new_ones(len(points))
    history: list[tuple[int, float]] = []
    chosen: list[Tensor] = []
    goal, shares = maximum, _shares()
    target = next(shares) * tolerance
    while True:
        count, residual = factor.shape[1], missed[measured].mean().item()
        history.append((count, residual))
        drawn = missed[: len(candidates)]
        drawable = int((drawn > FLOOR * tolerance).sum())
        if residual <= target:
            goal = min(goal, -(-count // ALIGNMENT) * ALIGNMENT)
            if count >= goal or not drawable:
                yield torch.cat(chosen).to(dtype)
                goal, target = maximum, next(shares) * tolerance
        if count == maximum or not drawable:
            raise NotSeparable(_too_many(history, tolerance, maximum))
        proposals = _draw(drawn, min(max(8, count // 8), drawable), generator)
        columns = features_of(points, points[proposals]) - factor @ factor[proposals].T
        uniform = torch.rand(len(proposals), generator=generator, dtype=torch.float64)
        accepted = _accepted(columns[proposals], uniform, FLOOR * tolerance)[: goal - count]
        root = torch.linalg.cholesky(columns[proposals[accepted]][:, accepted])
        new = torch.linalg.solve_triangular(root, columns[:, accepted].T, upper=False).T
        factor = torch.cat([factor, new], 1)
        missed = (missed - new.square().sum(1)).clamp_min_(0)
        chosen.append(points[proposals[accepted]])


def _draw(missed: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Different indices, drawn with probability proportional to `missed`; alike on any device."""
    noise = torch.empty(len(missed), dtype=torch.float64).exponential_(generator=generator)
    return (missed / noise.to(missed)).topk(count).indices


def _accepted(columns: Tensor, uniform: Tensor, floor: float) -> Tensor:
    """Which of a block of proposals to take: each by how much of it the ones before leave missed.

    columns: what is missed between proposals, `[B, B]`.
    """
    left = columns.cpu()
    before = left.diagonal().clone()
    accepted = []
    for i in range(len(left)):
        pivot = left[i, i].item()
        if pivot > floor and pivot > uniform[i].item() * before[i].item():
            accepted.append(i)
            left = left - left[:, i : i + 1] * left[i] / pivot
    return torch.tensor(accepted, dtype=torch.int64, device=columns.device)


def _means(colours: Tensor, centres: Tensor) -> Tensor:
    """Lloyd's algorithm: centres move to the mean of the colours that are nearest to them."""
    for _ in range(LLOYD_STEPS):
        nearest = features_of(colours, centres).argmax(1)
        members = (nearest == torch.arange(len(centres), device=colours.device)[:, None]).to(
            colours.dtype
        )
        total = members.sum(1, keepdim=True)
        centres = torch.where(total > 0, members @ colours / total.clamp_min(1), centres)
    return centres


def _whitened(landmarks: Tensor, checks: Tensor, tolerance: float) -> Landmarks:
    exact = landmarks.double()
    gram = features_of(exact, exact)
    gram.diagonal().add_(ridge_of(tolerance))
    root = torch.linalg.cholesky(gram)
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    whitener = torch.linalg.solve_triangular(root, identity, upper=False)
    white = features_of(checks, landmarks) @ whitener.T.to(checks.dtype)
    residual = 1 - white.square().sum(1).mean().item()
    return Landmarks(landmarks, whitener, residual)


def ridge_of(tolerance: float) -> float:
    """Added to K's diagonal: two landmarks may nearly coincide, and A stays below 1 / ridge."""
    return tolerance / 50


def _too_many(history: list[tuple[int, float]], tolerance: float, maximum: int) -> str:
    """What the residual's slope says of the number needed."""
    count, residual = history[-1]
    earlier = next(
        ((k, r) for k, r in reversed(history) if 0 < k <= count / 2 and r > residual), None
    )
    needed = f"more than {count}"
    if count < maximum:
        needed = f"more than the {count} that differ in a sample of {SAMPLE}"
    elif earlier is not None:
        slope = math.log(earlier[1] / residual) / math.log(count / earlier[0])
        estimate = count * math.exp(min(math.log(residual / tolerance) / slope, 20.0))
        needed = f"about {max(estimate, count + 1):.0f}"
    return (
        f"the colours need {needed} landmarks, and max_landmarks is {maximum}: these miss "
        f"{residual:.2g} of a point's own weight, tolerance={tolerance:.2g} is asked for. Raise "
        "max_landmarks or the tolerance, divide colours by a larger sigma, or filter with "
        'method="exact" or "permutohedral"'
    )
