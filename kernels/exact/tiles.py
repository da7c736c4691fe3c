"""Points sorted into tiles, and the pairs of tiles that a filter must not skip.

    order      points split at the median of their widest dimension, again and again, down to tiles
               of TILE points: those of a tile are neighbours
    p          features from their middle times SCALE, so that K_ij = 2^-|p_i - p_j|^2
    m[I, J]    max over the points i of tile I of sum_{j in J} K_ij: what a row of I loses at most
               where tile J is skipped
    kept       for each I the J of least m are dropped, as long as what they add up to is at most
               eps * min_{i in I} n_i,  n_i = sum_j K_ij; a pair is kept if either side keeps it

So a filter over the kept pairs errs by at most eps * n_i * max |v| in row i, and is symmetric:
its gradient to the values is the same filter. A cut-off on K_ij would bound no row: what lies
beneath adds up.

Source of the splits: Bentley, "Multidimensional binary search trees used for associative
searching" (1975).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

TILE = 128  # points
SCALE = math.sqrt(0.5 / math.log(2))  # exp(-d^2 / 2) = 2^-(SCALE d)^2
WHOLE = 2**40  # parts of the mass that a row may lose
TABLE_BYTES = 2**32  # what the tables over all pairs of tiles may take while they are made
CHUNK_BYTES = 2**26  # of one step through a table

Masses = Callable[[Tensor, Tensor, int, float], Tensor]


@dataclass(frozen=True)
class Tiles:
    """Points in tiles, to filter on them any number of times. T tiles of TILE points.

    Attributes:
        points: `[D, T * TILE]`, the features in that order, centred and scaled: see `place`.
        order: int64 `[N]`, which point comes to each place; None: they lie as they were given.
        kept: int32 `[T + T * T]`, the tiles that rows of tile I sum over: first how many, for each
            I, then for each I a line of T that names them first, in ascending order. None: all.
        mass: `[N]`, n_i = sum_j K_ij over all pairs, in the order of the features.
        bound: float64 `[]`, max_i (skipped mass of row i) / n_i, at most; never above eps.
        eps: what was asked for.
    """

    points: Tensor
    order: Tensor | None
    kept: Tensor | None
    mass: Tensor
    bound: Tensor
    eps: float

    @property
    def num_points(self) -> int:
        return len(self.mass)

    @property
    def share(self) -> Tensor:
        """The share of the tile pairs that is kept, float64 `[]`."""
        if self.kept is None:
            return torch.ones_like(self.bound)
        counts, columns = lists(self.kept, tiles_of(self.num_points))
        return counts.double().mean() / len(columns)


class Pairs(NamedTuple):
    """What a filter sums over: the attributes of `Tiles` of these names."""

    points: Tensor
    order: Tensor | None
    kept: Tensor | None


def build(features: Tensor, eps: float, masses: Masses) -> tuple[Tensor, ...]:
    """`points`, `order`, `kept`, `mass` and `bound` of the tiles of `features` `[N, D]`; eps > 0.

    masses: of an implementation: (points, table, N, negligible) -> n of the sorted points. It
    replaces the entries of the table that are above `negligible` by m[I, J].
    """
    count = len(features)
    _require_room(count, features.dtype)
    order = sort(features)
    points = place(features[None], order[None])[0]
    table = _bounds_by_distance(points)
    tiles = max(1, len(table))
    # What distance alone proves to be nothing: below eps and below the rounding of n.
    negligible = min(eps / 16, torch.finfo(features.dtype).eps / 8) / tiles
    mass = masses(points, table, count, negligible)
    computed = _rounding(features.dtype, features.shape[1], tiles)
    keep, bound = prune(table, mass, eps, (1 + computed) * (1 + _placing(points)) - 1)
    mass = torch.empty_like(mass).index_copy_(0, order, mass)
    longest, kept = _longest_first(keep)
    full = pad(order, (0, points.shape[1] - count)).view(-1, TILE)
    order = full[longest].flatten()[:count]
    return place(features[None], order[None])[0], order, kept, mass, bound


def tiles_of(count: int) -> int:
    """How many tiles hold `count` points."""
    return (count + TILE - 1) // TILE


def lists(kept: Tensor, tiles: int) -> tuple[Tensor, Tensor]:
    """Of `Tiles.kept`: how many tiles `[T]` each row keeps, and their names `[T, T]`."""
    return kept[:tiles], kept[tiles:].view(tiles, tiles)


def place(features: Tensor, order: Tensor | None) -> Tensor:
    """`features` `[B, N, D]` as the implementations want them: `points` `[B, D, T * TILE]`.

    They are in `order` `[B, N]`, seen from the middle of their extent and times SCALE: rounding
    moves a point by no more than eps times its distance from the middle. The last is repeated
    where its tile is not full. Differentiable in the features, wherever their middle lies.
    """
    count, fixed = features.shape[1], features.detach()
    low, high = fixed.aminmax(dim=1, keepdim=True) if count else (fixed, fixed)
    centred = features.double() - (0.5 * low.double() + 0.5 * high.double())
    points = (SCALE * centred).to(features.dtype)
    places = torch.arange(tiles_of(count) * TILE, device=features.device).clamp(max=count - 1)
    which = places.expand(len(points), -1) if order is None else order[:, places]
    return points.gather(1, which[..., None].expand(-1, -1, points.shape[2])).mT.contiguous()


def sort(features: Tensor) -> Tensor:
    """The order int64 `[N]` that makes tiles of neighbours of `features` `[N, D]`.

    Level l has 2^l segments of consecutive tiles; each is sorted along its widest dimension and
    cut in the middle, between two tiles. All segments of a level are one stable sort.
    """
    count, dims = features.shape
    tiles = tiles_of(count)
    spare = tiles * TILE - count  # places at the end, which stay there
    padded = torch.cat([features, features[-1:].expand(spare, dims)]).double()
    order = torch.arange(tiles * TILE, device=features.device)
    tile = torch.arange(tiles, device=features.device)
    for level in range((tiles - 1).bit_length() if tiles else 0):
        segment = ((tile + 1) * 2**level - 1) // tiles  # tile t is in [s T / 2^l, (s + 1) T / 2^l)
        by_tile = padded[order].view(tiles, TILE, dims)
        where = segment[:, None].expand(-1, dims)
        low = padded.new_full((2**level, dims), math.inf)  # of each segment's extent
        low = low.scatter_reduce(0, where, by_tile.amin(1), "amin")
        high = torch.full_like(low, -math.inf).scatter_reduce(0, where, by_tile.amax(1), "amax")
        axis = (high - low).argmax(1)[segment][:, None, None].expand(-1, TILE, 1)
        along = by_tile.gather(2, axis).squeeze(2) - low[segment].gather(1, axis[:, 0])
        width = (high - low)[segment].gather(1, axis[:, 0])
        share = (along / width).nan_to_num_(0, 0, 0)  # no width, or too much of it
        key = (segment[:, None] + 0.5 * share).flatten()
        key[count:] = 2.0**level  # beyond the last segment's
        order = order[key.argsort(stable=True)]
    return order[:count]


def prune(table: Tensor, mass: Tensor, eps: float, rounding: Tensor) -> tuple[Tensor, Tensor]:
    """Whether to keep, bool `[T, T]`, and `bound`, from m `[T, T]` and n `[N]` of sorted points.

    Both are taken as much larger and smaller as `rounding`, float64 `[]`, can have made them.
    """
    tiles = len(table)
    whole = pad(mass, (0, tiles * TILE - len(mass)), value=math.inf).view(tiles, TILE)
    least = whole.amin(1).double() * (1 - rounding).clamp(min=0)  # n of each tile
    floor = TILE * torch.finfo(table.dtype).tiny  # where K underflows

    def upper(rows: slice) -> Tensor:
        return (table[rows].double() + floor) * (1 + rounding)

    keep = torch.empty(tiles, tiles, dtype=torch.bool, device=table.device)
    for rows in _chunks(tiles):
        ascending, which = upper(rows).sort(1)
        # In whole parts of what may be skipped: sums of floats on a GPU differ from run to run.
        parts = (ascending / (eps * least[rows, None]) * WHOLE).ceil() + 1
        parts = parts.nan_to_num(nan=2.0 * WHOLE, posinf=2.0 * WHOLE).clamp_(max=2.0 * WHOLE)
        needed = parts.long().cumsum(1) > WHOLE
        keep[rows] = torch.empty_like(needed).scatter_(1, which, needed)
    keep |= keep.T.clone()

    skipped = torch.zeros_like(least)
    for rows in _chunks(tiles):
        skipped[rows] = upper(rows).masked_fill(keep[rows], 0).sum(1)
    bound = (skipped / least.clamp(min=floor)).amax() if tiles else skipped.sum()
    return keep, bound.clamp(max=eps)  # which the sum above it, in another order, kept to


def _longest_first(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Tiles `[T]` by how many they keep, and `Tiles.kept` of them in that order.

    A GPU so begins with the longest lists. The last tile, which may not be full, stays the last.
    """
    tiles, counts = len(keep), keep.sum(1)
    counts[-1:] = 0
    longest = counts.argsort(descending=True, stable=True)
    keep = keep[longest][:, longest]
    kept = torch.empty(tiles * (tiles + 1), dtype=torch.int32, device=keep.device)
    counts, columns = lists(kept, tiles)
    counts.copy_(keep.sum(1))
    for rows in _chunks(tiles):
        columns[rows] = (~keep[rows]).to(torch.uint8).argsort(dim=1, stable=True)
    return longest, kept


def _bounds_by_distance(points: Tensor) -> Tensor:
    """At least m `[T, T]`: all points of a tile as near as their boxes are."""
    by_tile = points.unflatten(1, (-1, TILE))
    low, high = by_tile.amin(2), by_tile.amax(2)
    squares = points.new_zeros(low.shape[1], low.shape[1])
    for a, b in zip(low, high, strict=True):
        gap = torch.maximum(a[:, None] - b, a - b[:, None]).clamp_(min=0)
        squares.addcmul_(gap, gap, value=-1)
    return squares.exp2_().mul_(TILE)


def _rounding(dtype: torch.dtype, dims: int, tiles: int) -> float:
    """How far, relatively, a sum of K over one tile or all may be off in this dtype.

    The exponent, at most -log(tiny) before K underflows, is made of D differences, squares and
    sums, and a factor; a sum over a tile has TILE terms, one over all tiles as many more.
    """
    info = torch.finfo(dtype)
    return info.eps * (-math.log(info.tiny) * (dims + 4) + TILE + tiles)


def _placing(points: Tensor) -> Tensor:
    """How far, relatively, a K may be off since placing rounded the points: float64 `[]`.

    The distance d of two, below the root of -log2(tiny) or else K underflows, is off by at most
    2 eps times the largest distance from the middle: `moved`; so d^2 is by moved (2 d + moved).
    """
    info = torch.finfo(points.dtype)
    squares = pad(points.double().square().sum(0), (0, 1))  # 0 for no points
    moved = 2 * info.eps * squares.amax().sqrt()
    return (math.log(2) * moved * (2 * math.sqrt(-math.log2(info.tiny)) + moved)).expm1()


def _chunks(tiles: int) -> Iterator[slice]:
    """Ranges of a table's rows that are 64-bit numbers in CHUNK_BYTES."""
    rows = max(1, CHUNK_BYTES // (8 * max(1, tiles)))
    for first in range(0, tiles, rows):
        yield slice(first, min(first + rows, tiles))


def _require_room(count: int, dtype: torch.dtype) -> None:
    """Refuse what the tables over pairs of tiles have no room for, before any is made."""
    tiles = tiles_of(count)
    each = 4 * dtype.itemsize  # squares, gap and the two that gap is made of
    if tiles**2 * each > TABLE_BYTES:
        most = math.isqrt(TABLE_BYTES // each) * TILE
        raise ValueError(
            f"eps > 0 needs tables over all pairs of tiles, {tiles**2 * each / 2**30:.1f} GiB for "
            f"{count} points, where {TABLE_BYTES / 2**30:.3g} GiB are allowed ({most} points in "
            f'{dtype}). Use eps=0, which needs none, method="permutohedral", or fewer points.'
        )
