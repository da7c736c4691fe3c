"""The exact filter over tiles in plain PyTorch: any device, float64 included.

A row of tiles at a time, its columns in parts that stay in a cache. On a CPU skipped tiles cost
nothing; elsewhere they are multiplied by zero, since to look at how many there are would wait for
the device. The equations are those of reference.py, the sums over j those of tiles.py.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.exact import tiles

BLOCK_BYTES = 2**20  # of one block of K; a block is at least a pair of tiles


def masses(points: Tensor, table: Tensor, count: int, negligible: float) -> Tensor:
    """n `[N]` of `points` `[D, T * TILE]`, and m `[T, T]` where the table is above `negligible`."""
    rows = points.unflatten(1, (-1, tiles.TILE))
    nowhere = torch.arange(points.shape[1], device=points.device) >= count
    columns = points.masked_fill(nowhere, math.inf).view_as(rows)
    n = points.new_zeros(rows.shape[1:])
    for row, bounds in enumerate(table):
        real = min(tiles.TILE, count - row * tiles.TILE)
        counted = bounds > negligible
        everywhere = torch.arange(len(table), device=points.device)
        some = everywhere[counted] if points.device.type == "cpu" else everywhere
        for part in some.split(_tiles_at_once(points)):
            kernel = _kernel(rows[:, row], columns[:, part].flatten(1))
            sums = kernel.unflatten(1, (-1, tiles.TILE)).sum(2) * counted[part]
            n[row] += sums.sum(1)
            bounds[part] = torch.where(counted[part], sums[:real].amax(0), bounds[part])
    return n.flatten()[:count]


def apply(values: Tensor, pairs: tiles.Pairs, precision: str, out: Tensor) -> None:
    """Set `out` `[N, C]` to the filtered `values` `[N, C]`."""
    points, order, kept = pairs
    rows = points.unflatten(1, (-1, tiles.TILE))
    (v,) = _sorted((values,), order, rows.shape[1])
    filtered = torch.zeros_like(v)
    with torch.autocast(points.device.type, enabled=False):
        for row, part, real in _parts(points, kept):
            kernel = _kernel(rows[:, row], rows[:, part].flatten(1))
            filtered[row] += kernel @ (v[part] * real).flatten(0, 1)
    filtered = filtered.flatten(0, 1)[: len(values)]
    if order is None:
        out.copy_(filtered)
    else:
        out.index_copy_(0, order, filtered)


def feature_gradient(
    grad: Tensor, values: Tensor, pairs: tiles.Pairs, precision: str, out: Tensor
) -> None:
    """Set `out` `[D, T * TILE]` to d L / d points; `grad` `[N, C]` is that of the filtered."""
    points, order, kept = pairs
    rows = points.unflatten(1, (-1, tiles.TILE))
    g, v = _sorted((grad, values), order, rows.shape[1])
    gradient = out.zero_().view_as(rows)
    with torch.autocast(points.device.type, enabled=False):
        for row, part, real in _parts(points, kept):
            f, near = rows[:, row], rows[:, part].flatten(1)
            both = g[row] @ (v[part] * real).flatten(0, 1).T
            both = both.addmm_(v[row], (g[part] * real).flatten(0, 1).T).mul_(_kernel(f, near))
            middle = f.mean(1, keepdim=True)  # or else large features cancel below
            gradient[:, row] += (near - middle) @ both.T - (f - middle) * both.sum(1)
    out.mul_(2 * math.log(2))  # the derivative of 2^-d^2 is -2 log(2) d times itself


def _sorted(tensors: tuple[Tensor, ...], order: Tensor | None, count: int) -> list[Tensor]:
    """Each `[N, C]` as `[T, TILE, C]`, its points in order, zeros behind them."""
    found = []
    for tensor in tensors:
        padded = tensor.new_zeros(count * tiles.TILE, tensor.shape[1])
        padded[: len(tensor)] = tensor if order is None else tensor[order]
        found.append(padded.unflatten(0, (-1, tiles.TILE)))
    return found


def _parts(points: Tensor, kept: Tensor | None) -> Iterator[tuple[int, Tensor, Tensor]]:
    """A row of tiles, some of its columns `[n]`, and 1 for each that is kept `[n, 1, 1]`."""
    count, step = points.shape[1] // tiles.TILE, _tiles_at_once(points)
    everywhere = torch.arange(count, device=points.device)
    for row in range(count):
        some, real = everywhere, torch.ones_like(everywhere)
        if kept is not None:
            counts, columns = tiles.lists(kept, count)
            some, real = columns[row], everywhere < counts[row]
            if points.device.type == "cpu":
                some, real = some[: counts[row]], real[: counts[row]]
        for part, those in zip(some.split(step), real.split(step), strict=True):
            yield row, part, those[:, None, None]


def _tiles_at_once(points: Tensor) -> int:
    return max(1, BLOCK_BYTES // (tiles.TILE**2 * points.element_size()))


def _kernel(queries: Tensor, points: Tensor) -> Tensor:
    """2^-|q_i - p_j|^2 `[M, N]` of `[D, M]` and `[D, N]`."""
    exponent = points.new_zeros(queries.shape[1], points.shape[1])
    for q, p in zip(queries, points, strict=True):
        difference = q[:, None] - p
        exponent = exponent.addcmul_(difference, difference, value=-1)
    return exponent.exp2_()
