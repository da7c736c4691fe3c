"""Build a permutohedral lattice on a GPU: place points, sort their vertices' keys, number them.

A vertex key is D integers, packed in mixed radix into one int64: coordinate 0 is the most
significant digit, above it the image where several are built at once. The radices hold the ranges
of the coordinates, which follow from the ranges of the features and stay on the device.

    features -> packed keys, weights     place_kernel: D+1 entries a point
    keys     -> rows, entries by row     one stable sort of all entries, begin_kernel, number_kernel
    rows     -> neighbours               search_kernel: key + step, by binary search

The host waits for the device once, for the number of rows, however many lattices it builds; whether
the features were placeable and the radices fit into an int64 comes with it. If they do not fit,
keys are packed into several words and the words replaced by their ranks, which costs further waits.

Placing rounds as reference.py does, operation by operation: kernels that place are compiled without
contraction of a * b + c to one rounding, which would move points to other simplices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import memory
from kernels.permutohedral.lattice import Lattice, elevation_scales, word_strides
from kernels.permutohedral.limits import refuse_unplaceable, require_indexable
from kernels.permutohedral.triton.segments import cut, highest_bit, rank
from kernels.sizes import blocks, power_of_2

PLACE_TILE = 512  # points x coordinates that a program places
NUMBER_BLOCK = 1024  # entries
SEARCH_BLOCK = 256  # vertices
BYTES_PER_ENTRY = 44  # held while sorting: weight, key, sorted key and number, the sort's copies


@triton.jit
def pack_kernel(
    least_ptr, most_ptr, lows_ptr, strides_ptr, report_ptr, SCALES: tl.constexpr
):  # fmt: skip
    """Lowest coordinate and stride of each digit, from the ranges of the features.

    Coordinate j is sum_{i >= j} s_i - j s_{j-1} of the scaled features s; the margin holds the
    rounding to a vertex, the other corners of its simplex and their neighbours. The report is the
    largest sum of magnitudes and the extent of each coordinate, behind room for a number.
    """
    dims: tl.constexpr = len(SCALES)
    margin: tl.constexpr = 4 * (dims + 1)
    reach = tl.full((), 0.0, tl.float64)
    least_sum, most_sum = reach, reach
    stride = tl.full((), 1, tl.int64)
    for j in tl.static_range(dims - 1, -1, -1):
        least = tl.load(least_ptr + j).to(tl.float64)
        most = tl.load(most_ptr + j).to(tl.float64)
        reach += tl.maximum(-least, most, propagate_nan=tl.PropagateNan.ALL)
        least_sum += least * SCALES[j]
        most_sum += most * SCALES[j]
        low, high = least_sum, most_sum
        if j > 0:
            low -= j * (tl.load(most_ptr + j - 1).to(tl.float64) * SCALES[j - 1])
            high -= j * (tl.load(least_ptr + j - 1).to(tl.float64) * SCALES[j - 1])
        low = tl.floor(low) - margin
        extent = tl.ceil(high) + margin - low + 1
        tl.store(lows_ptr + j, low.to(tl.int64))
        tl.store(strides_ptr + j, stride)
        tl.store(report_ptr + 2 + j, extent)
        stride *= extent.to(tl.int64)
    tl.store(strides_ptr + dims, stride)
    tl.store(report_ptr + 1, reach)


@triton.jit(do_not_specialize=["count", "points_per_image"])
def place_kernel(
    points_ptr, lows_ptr, strides_ptr, keys_ptr, weights_ptr, count, points_per_image,
    SCALES: tl.constexpr, INVERSE: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Key and weight of each corner of each point's simplex; WIDTH >= D+1 is a power of two."""
    dims: tl.constexpr = len(SCALES)
    corners: tl.constexpr = dims + 1
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.arange(0, WIDTH)[None, :]
    real = p < count
    inside = j < corners

    total = tl.zeros((BLOCK,), tl.float32)
    elevated = tl.zeros((BLOCK, WIDTH), tl.float32)
    for axis in tl.static_range(dims, 0, -1):
        offs = p.to(tl.int64) * dims + (axis - 1)
        scaled = tl.load(points_ptr + offs, mask=real, other=0.0) * SCALES[axis - 1]
        elevated = tl.where(j == axis, (total - axis * scaled)[:, None], elevated)
        total += scaled
    elevated = tl.where(j == 0, total[:, None], elevated)

    # Adding 1.5 * 2^23 rounds to the nearest integer, halves to even; placeable values are smaller.
    nearest = (elevated * INVERSE + 12582912.0) - 12582912.0
    origin = nearest * corners
    offset = elevated - origin
    rank = tl.zeros((BLOCK, WIDTH), tl.int32)
    for m in tl.static_range(corners):
        other = tl.sum(tl.where(j == m, offset, 0.0), axis=1)[:, None]
        rank += ((offset < other) | ((offset == other) & (m < j))).to(tl.int32)
    rank += tl.sum(tl.where(inside, nearest, 0.0).to(tl.int32), axis=1)[:, None]
    wrap = (rank < 0).to(tl.int32) - (rank > dims).to(tl.int32)
    rank = tl.where(inside, rank + wrap * corners, -1)
    origin += (wrap * corners).to(tl.float32)
    offset = (elevated - origin) * INVERSE

    low = tl.load(lows_ptr + j, mask=j < dims, other=0)
    stride = tl.load(strides_ptr + j, mask=j < dims, other=0)
    digit = origin.to(tl.int32).to(tl.int64) - low
    image = (p // points_per_image).to(tl.int64) * tl.load(strides_ptr + dims)
    lowest = tl.sum(tl.where(rank == 0, offset, 0.0), axis=1)
    previous = lowest
    for r in tl.static_range(corners):
        ordered = tl.sum(tl.where(rank == dims - r, offset, 0.0), axis=1)
        weight = ordered + (1.0 - lowest) if r == 0 else ordered - previous
        previous = ordered
        moved = digit + r - corners * (rank > dims - r).to(tl.int64)
        key = tl.sum(moved * stride, axis=1) + image
        offs = p.to(tl.int64) * corners + r
        tl.store(keys_ptr + offs, key, mask=real)
        tl.store(weights_ptr + offs, weight, mask=real)


@triton.jit(do_not_specialize=["count"])
def begin_kernel(keys_ptr, begins_ptr, count, BLOCK: tl.constexpr):
    """1 where a key differs from the one before it, else 0."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    follows = (offs > 0) & (offs < count)
    before = tl.load(keys_ptr + offs - 1, mask=follows, other=0)
    begins = follows & (tl.load(keys_ptr + offs, mask=follows, other=0) != before)
    tl.store(begins_ptr + offs, begins.to(tl.int32), mask=offs < count)


@triton.jit(do_not_specialize=["count", "rows", "points"])
def number_kernel(
    sorted_ptr, order_ptr, row_ptr, keys_ptr, starts_ptr, corners_ptr, entries_ptr, parts_ptr,
    count, rows, points, BLOCK: tl.constexpr,
):  # fmt: skip
    """Key and first entry of each row, row of each corner; all points are one part."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = offs < count
    row = tl.load(row_ptr + offs, mask=real, other=0)
    entry = tl.load(order_ptr + offs, mask=real, other=0)
    tl.store(corners_ptr + entry, row, mask=real)
    tl.store(entries_ptr + offs, entry.to(tl.int32), mask=real)
    before = tl.load(row_ptr + offs - 1, mask=real & (offs > 0), other=-1)
    begins = real & (row != before)
    tl.store(starts_ptr + row, offs.to(tl.int32), mask=begins)
    tl.store(keys_ptr + row, tl.load(sorted_ptr + offs, mask=begins, other=0), mask=begins)
    if tl.program_id(0) == 0:
        tl.store(starts_ptr + rows, count)
        i = tl.arange(0, 8)
        number = tl.where(i == 3, points, tl.where(i == 4, rows, 0))
        tl.store(parts_ptr + i, number.to(tl.int64), mask=i < 6)


@triton.jit(do_not_specialize=["rows", "highest_bit"])
def search_kernel(
    keys_ptr, strides_ptr, neighbours_ptr, rows, highest_bit,
    DIMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The rows before and after each along one direction: where key - step and key + step are."""
    direction = tl.program_id(1)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = row < rows
    key = tl.load(keys_ptr + row, mask=real, other=0)
    step = tl.full((), 0, tl.int64)
    for j in tl.static_range(DIMS):
        stride = tl.load(strides_ptr + j)
        step += tl.where(direction == j, -DIMS * stride, stride)
    for side in tl.static_range(2):
        wanted = key + step if side == 1 else key - step
        found = rank(keys_ptr, rows, wanted, real, highest_bit)
        exists = real & (found < rows)
        exists = exists & (tl.load(keys_ptr + found, mask=exists, other=0) == wanted)
        offs = (direction * 2 + side).to(tl.int64) * rows + row
        tl.store(neighbours_ptr + offs, tl.where(exists, found, rows).to(tl.int32), mask=real)


@dataclass(frozen=True)
class Placed:
    """What is known of a lattice before the host has waited."""

    points: Tensor
    images: int
    lows: Tensor  # as of `pack`, like strides
    strides: Tensor
    weights: Tensor
    keys: Tensor  # as of `_sort`, like entries and row
    entries: Tensor
    row: Tensor


def build(features: Tensor, images: int = 1) -> Lattice:
    """Build the lattice of float32 `features` `[N, D]`, divided by sigma; see `build_all`."""
    return build_all([features], [images])[0]


def build_all(features: Sequence[Tensor], images: Sequence[int]) -> list[Lattice]:
    """Build a lattice of each of some float32 `features` `[N, D]`, divided by sigma.

    The points may be those of several images of equal size, one image after another: those of
    different images share no vertex. Lattices have `entries`, `pieces` and `sums`, no `chains`.
    """
    for one in features:
        count, dims = one.shape
        require_indexable(count, dims)
        held = count * (dims + 1) * BYTES_PER_ENTRY
        memory.require(held, one.device, f"a lattice of {count} points in {dims} dimensions")
    width = max(one.shape[1] for one in features) + 2
    even = width + width % 2  # reports start at 16 bytes: one pack_kernel serves all
    with torch.cuda.device_of(features[0]):
        filled = [k for k, one in enumerate(features) if len(one)]
        report = features[0].new_empty(len(filled), even, dtype=torch.float64)
        placed = [
            _placed(features[k], images[k], own) for k, own in zip(filled, report, strict=True)
        ]
        if placed:
            torch.stack([each.row[-1] for each in placed], out=report[:, 0])
        found = zip(placed, report.tolist(), strict=True)  # the one wait
        finished = {k: _finished(*each) for k, each in zip(filled, found, strict=True)}
        return [finished[k] if k in finished else _empty(one) for k, one in enumerate(features)]


def _placed(features: Tensor, images: int, report: Tensor) -> Placed:
    points = features.detach().contiguous()
    lows, strides = pack(points, report)
    keys, weights = place(points, lows, strides, images)
    return Placed(points, images, lows, strides, weights, *_sort(keys))


def _finished(placed: Placed, report: Sequence[float]) -> Lattice:
    points, weights = placed.points, placed.weights
    (count, dims), device = points.shape, points.device
    last, reach, *extents = report[: dims + 2]
    refuse_unplaceable(reach, dims, points.dtype)
    word_strides = _word_strides([int(extent) for extent in extents], placed.images)
    sorted_keys, order, row, rows = placed.keys, placed.entries, placed.row, int(last) + 1
    if len(word_strides) > 1:
        strides = torch.tensor(word_strides, device=device)
        words = torch.stack([place(points, placed.lows, s, placed.images)[0] for s in strides])
        levels = _levels(words)
        sorted_keys, order, row = _sort(_ranked(words, levels))
        rows = int(row[-1]) + 1
    keys = torch.empty(rows, dtype=torch.int64, device=device)
    starts = torch.empty(rows + 1, dtype=torch.int32, device=device)
    corners = torch.empty(count, dims + 1, dtype=torch.int32, device=device)
    entries = torch.empty_like(row)
    parts = torch.empty(2, 3, dtype=torch.int64, device=device)
    number_kernel[(blocks(len(entries), NUMBER_BLOCK),)](
        sorted_keys, order, row, keys, starts, corners, entries, parts, len(entries), rows, count,
        BLOCK=NUMBER_BLOCK,
    )  # fmt: skip
    if len(word_strides) == 1:
        neighbours = search(keys, placed.strides, dims)
    else:
        neighbours = _search_words(keys, words[:, order[starts[:-1]]], strides, levels)
    pieces, sums = cut(starts, len(entries))
    ghosts = corners.new_empty(0, 2)
    return Lattice(corners, weights, neighbours, ghosts, parts, None, entries, pieces, sums)


def pack(points: Tensor, report: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest coordinates `[D]`, strides `[D+1]` (the last is the image's); set `report[1:]`."""
    dims = points.shape[1]
    least, most = torch.aminmax(points, dim=0)
    lows = torch.empty(dims, dtype=torch.int64, device=points.device)
    strides = torch.empty(dims + 1, dtype=torch.int64, device=points.device)
    pack_kernel[(1,)](
        least, most, lows, strides, report, SCALES=elevation_scales(dims), num_warps=1
    )
    return lows, strides


def place(points: Tensor, lows: Tensor, strides: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Packed keys `[N * (D+1)]` and weights `[N, D+1]` of the corners of each point's simplex."""
    count, dims = points.shape
    keys = torch.empty(count * (dims + 1), dtype=torch.int64, device=points.device)
    weights = torch.empty(count, dims + 1, dtype=torch.float32, device=points.device)
    width = power_of_2(dims + 1)
    block = max(1, PLACE_TILE // width)
    place_kernel[(blocks(count, block),)](
        points, lows, strides, keys, weights, count, count // images,
        SCALES=elevation_scales(dims), INVERSE=float(np.float32(1 / (dims + 1))),
        BLOCK=block, WIDTH=width, enable_fp_fusion=False,
    )  # fmt: skip
    return keys, weights


def search(keys: Tensor, strides: Tensor, dims: int) -> Tensor:
    """Neighbours int32 `[D+1, 2, R]` of the vertices with these sorted, distinct packed keys."""
    rows = len(keys)
    neighbours = torch.empty(dims + 1, 2, rows, dtype=torch.int32, device=keys.device)
    search_kernel[(blocks(rows, SEARCH_BLOCK), dims + 1)](
        keys, strides, neighbours, rows, highest_bit(rows),
        DIMS=dims, BLOCK=SEARCH_BLOCK,
    )  # fmt: skip
    return neighbours


def _sort(keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted keys, the entries in that order (int64), and the row of each (int32)."""
    sorted_keys, entries = torch.sort(keys, stable=True)
    begins = torch.empty(len(keys), dtype=torch.int32, device=keys.device)
    begin_kernel[(blocks(len(keys), NUMBER_BLOCK),)](
        sorted_keys, begins, len(keys), BLOCK=NUMBER_BLOCK
    )
    return sorted_keys, entries, torch.cumsum(begins, 0, dtype=torch.int32)


def _empty(points: Tensor) -> Lattice:
    dims = points.shape[1]
    integers = torch.empty(0, dtype=torch.int32, device=points.device)
    return Lattice(
        corners=integers.view(0, dims + 1),
        weights=points.new_empty(0, dims + 1),
        neighbours=integers.view(dims + 1, 2, 0),
        ghosts=integers.view(0, 2),
        parts=integers.new_zeros(2, 3, dtype=torch.int64),
        entries=integers,
        pieces=integers.view(3, 0),
        sums=integers.view(3, 0),
    )


# Keys of several words


def _word_strides(extents: Sequence[int], images: int) -> list[list[int]]:
    """Strides `[W, D+1]` of the digits, the most significant word first; 0 outside their word."""
    words = word_strides([*reversed(extents), images])
    return [[*reversed(digits), image] for *digits, image in reversed(words)]


def _search_words(
    keys: Tensor, words: Tensor, strides: Tensor, levels: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """Neighbours, as of `search`, of vertices with these ranks `[R]` and words `[W, R]`."""
    rows, dims = len(keys), strides.shape[1] - 1
    neighbours = torch.empty(dims + 1, 2, rows, dtype=torch.int32, device=keys.device)
    for j, sides in enumerate(neighbours):
        step = strides[:, :dims].sum(1) - (dims + 1) * (strides[:, j] if j < dims else 0)
        for side, sign in zip(sides, (-1, 1), strict=True):
            wanted = _ranked(words + sign * step[:, None], levels)
            place_of = torch.searchsorted(keys, wanted).clamp_(max=rows - 1)
            side.copy_(torch.where(keys[place_of] == wanted, place_of, rows))
    return neighbours


def _levels(words: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each word after the first: the distinct ranks of the words before it, and its values."""
    levels: list[tuple[Tensor, Tensor]] = []
    for count in range(1, len(words)):
        levels.append((torch.unique(_ranked(words[:count], levels)), torch.unique(words[count])))
    return levels


def _ranked(words: Tensor, levels: list[tuple[Tensor, Tensor]]) -> Tensor:
    """One integer for each key `words[:, i]`, in the order of the keys; -1 for an unknown one.

    It is less than the product of two numbers of entries, and so fits.
    """
    key = words[0]
    known = torch.ones_like(key, dtype=torch.bool)
    for (before, values), word in zip(levels, words[1:], strict=True):
        left = torch.searchsorted(before, key).clamp_(max=len(before) - 1)
        right = torch.searchsorted(values, word).clamp_(max=len(values) - 1)
        known &= (before[left] == key) & (values[right] == word)
        key = left * len(values) + right
    return torch.where(known, key, -1)
