"""The separable bilateral filter as data: landmarks, a grid, and points sorted by its cells.

    y_i = sum_j exp(-|p_i - p_j|^2 / 2 - |c_i - c_j|^2 / 2) v_j
        ~ sum_mn w_m(p_i) G_mn sum_kl phi_k(c_i) A_kl sum_j phi_l(c_j) w_n(p_j) v_j + e_i v_i

p are positions, c the other features ("colours"), each divided by its sigma. landmarks.py factors
the colours' kernel, grid.py that of the positions; e_i makes the weight of a point for itself what
it is, 1. This serves rare colours, which no landmark is near and whose sums hold little else.

The operator is symmetric, so that its gradient to the values is itself. The idea, a spatial filter
for each of a few colours, is that of Durand and Dorsey, "Fast Bilateral Filtering for the Display
of High-Dynamic-Range Images" (2002).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.separable import band, grid, landmarks
from kernels.separable.landmarks import Landmarks, NotSeparable

PIECE = 1024  # points at most that are summed one after another
MOST_GRID_BYTES = 2**28  # of a grid of one channel
WORKSPACE = 2**28  # bytes of sums that one pass over the channels holds, if one channel allows
CHUNK_BYTES = 2**24  # of phi while building


@dataclass(frozen=True)
class Separable:
    """A filter over N points with K landmarks, E colour channels, S positions and M nodes.

    Points are sorted by cell of the grid: the i-th of them is point order[i] of the values.

    Attributes:
        landmarks: `[K, E]`.
        mixing: A, `[K, K]`, symmetric.
        axes: G_s of nodes 0, 1, ... apart, `[R_s + 1]`; further ones have none.
        shape: M_s, of the grid.
        order: int64 `[N]`.
        colours: `[N, E]`, in order.
        fractions: `[N, S]`, in order; where in its cell a point is, from 0 to 1.
        diagonal: e, `[N]`, in order.
        pieces: int32 `[P, 3]`: first point, the point after the last, the cell's lowest node. No
            more than PIECE points, of one cell.
        starts: int32 `[M + 1]`: pieces starts[m] to starts[m + 1] have the lowest node m.
        residual: what landmarks miss of a point's own weight, on average; at most the tolerance.
    """

    landmarks: Tensor
    mixing: Tensor
    axes: tuple[Tensor, ...]
    shape: tuple[int, ...]
    order: Tensor
    colours: Tensor
    fractions: Tensor
    diagonal: Tensor
    pieces: Tensor
    starts: Tensor
    residual: float

    @property
    def num_points(self) -> int:
        return len(self.order)

    def channels_at_once(self, channels: int) -> Iterator[slice]:
        """Ranges of channels whose sums over nodes, or corners of pieces, fit WORKSPACE."""
        rows = max(math.prod(self.shape), len(self.pieces) * 2 ** len(self.axes))
        each = rows * len(self.landmarks) * self.mixing.element_size()
        width = max(1, WORKSPACE // each)
        for first in range(0, channels, width):
            yield slice(first, min(first + width, channels))

    def smooth(
        self,
        sums: Tensor,
        product: Callable[[Tensor, Tensor], Tensor] = torch.mm,
        convolve: Callable[[Tensor, Tensor], Tensor] = band.convolve,
    ) -> Tensor:
        """The Gaussian of each axis and A, applied to sums over nodes, `[M, C, K]`."""
        width = sums.shape[1] * sums.shape[2]
        before, after = 1, math.prod(self.shape)
        smooth = sums
        for axis, length in zip(self.axes, self.shape, strict=True):
            after //= length
            smooth = convolve(smooth.reshape(before, length, after * width), axis)
            before *= length
        return product(smooth.reshape(-1, sums.shape[2]), self.mixing).view(sums.shape)


def own_weights(colours: Tensor, chosen: Landmarks) -> Tensor:
    """sum_kl phi_k A_kl phi_l of each colour, `[N]`."""
    whitener = chosen.whitener.to(colours.dtype)
    rows = max(1, CHUNK_BYTES // (len(whitener) * colours.element_size()))
    parts = []
    for chunk in colours.split(rows):
        phi = landmarks.features_of(chunk, chosen.colours)
        parts.append((phi @ whitener.T).square_().sum(1))
    return torch.cat(parts)


def build(
    features: Tensor,
    spatial_dims: int,
    tolerance: float,
    max_landmarks: int,
    own_weights: Callable[[Tensor, Landmarks], Tensor] = own_weights,
    ranges: Sequence[list[float]] | None = None,
) -> Separable:
    """`build_separable`; `own_weights` computes what the function of this name does.

    The host waits for the ranges of the features (least and largest), unless they are given, twice
    for the landmarks, and for the number of pieces.
    """
    if not len(features):
        return _of_nothing(features, spatial_dims)
    least, largest = ranges or torch.stack(features.aminmax(dim=0)).tolist()
    if not all(map(math.isfinite, least + largest)):
        raise ValueError("features must be finite, but hold NaN or Inf")
    positions, colours = features[:, :spatial_dims], features[:, spatial_dims:]
    axes = grid.axes_over(least[:spatial_dims], largest[:spatial_dims], tolerance)
    if colours.shape[1]:
        chosen = landmarks.choose(colours, tolerance, max_landmarks)
    else:
        one = torch.ones(1, 1, dtype=torch.float64, device=features.device)
        chosen = Landmarks(features.new_zeros(1, 0), one, 0.0)
    _require_room(axes, len(chosen.colours), features.element_size())
    node, fractions = grid.locate(positions, axes)
    node, order = node.sort(stable=True)
    pieces, starts = _pieces(node, math.prod(axis.nodes for axis in axes))
    mixing = chosen.whitener.T @ chosen.whitener
    gaussians = tuple(axis.gaussian(features) for axis in axes)
    colours, fractions = colours[order], fractions[order]
    own = own_weights(colours, chosen) * _own_position(fractions, gaussians)
    return Separable(
        landmarks=chosen.colours,
        mixing=((mixing + mixing.T) / 2).to(features.dtype),
        axes=gaussians,
        shape=tuple(axis.nodes for axis in axes),
        order=order,
        colours=colours,
        fractions=fractions,
        diagonal=1 - own,
        pieces=pieces,
        starts=starts,
        residual=chosen.residual,
    )


def _of_nothing(features: Tensor, spatial_dims: int) -> Separable:
    colours = features.shape[1] - spatial_dims
    empty = features.new_empty
    return Separable(
        empty(1, colours).zero_(), empty(1, 1).fill_(1),
        (empty(2).fill_(1),) * spatial_dims, (2,) * spatial_dims,
        torch.empty(0, dtype=torch.int64, device=features.device),
        empty(0, colours), empty(0, spatial_dims), empty(0),
        torch.empty(0, 3, dtype=torch.int32, device=features.device),
        torch.zeros(2**spatial_dims + 1, dtype=torch.int32, device=features.device), 0.0,
    )  # fmt: skip


def _require_room(axes: list[grid.Axis], count: int, size: int) -> None:
    shape = [axis.nodes for axis in axes]
    needed = math.prod(shape) * count * size
    if needed > MOST_GRID_BYTES:
        raise NotSeparable(
            f"a grid of {' x '.join(map(str, shape))} nodes with {count} landmarks takes "
            f"{needed / 2**20:.4g} MiB a channel, and {MOST_GRID_BYTES // 2**20} MiB is the most: "
            "divide positions by a larger sigma, raise the tolerance, or filter with "
            'method="permutohedral"'
        )


def _pieces(node: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """`pieces` and `starts` of points whose cells have the lowest nodes `node`, in order."""
    bounds = torch.searchsorted(node, torch.arange(nodes + 1, device=node.device))
    parts = (bounds.diff() + (PIECE - 1)) // PIECE
    starts = torch.cat([parts.new_zeros(1), parts.cumsum(0)])
    piece = torch.arange(int(starts[-1]), device=node.device)
    lowest = torch.searchsorted(starts, piece, right=True) - 1
    # Even parts, for even work.
    first, part, parts = bounds[lowest], piece - starts[lowest], parts[lowest]
    count = bounds[lowest + 1] - first
    begin, end = first + count * part // parts, first + count * (part + 1) // parts
    return torch.stack([begin, end, lowest], 1).int(), starts.int()


def _own_position(fractions: Tensor, gaussians: tuple[Tensor, ...]) -> Tensor:
    """sum_mn w_m G_mn w_n of each position, `[N]`."""
    between = fractions - fractions.square()
    own = fractions.new_ones(len(fractions))
    for b, gaussian in zip(between.T, gaussians, strict=True):
        same, next = gaussian[0], gaussian[1]
        own = own * (same + 2 * (next - same) * b)
    return own
