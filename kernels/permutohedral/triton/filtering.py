"""Filter on a permutohedral lattice on a GPU: splat, blur, slice.

    rows[r]   = sum over the entries e of r of  weight_e * values[point_e]      splat, sum
    next[r]   = rows[r] + (rows[before_r] + rows[after_r]) / 2                  blur, D+1 times
    output[p] = scale * sum_k weight_pk * rows[corner_pk]                       slice

A program holds a tile of rows x channels; a row is read and written as a whole, in vectors. Rows of
more than 4 channels are padded to a multiple of 8, so that each starts at a 32-byte sector. The
blur goes back and forth between two buffers.

A splat takes D+1 reads of a row of values a point, a blur direction up to three reads and one write
a vertex, a slice D+1 reads a point.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import memory
from kernels.permutohedral.lattice import Lattice
from kernels.permutohedral.triton.segments import completed, num_partials
from kernels.sizes import blocks, power_of_2

MAX_BLOCK_C = 64  # channels of a tile; more are further programs
SPLAT_TILE = 256  # elements: few rows, since the longest piece of a tile decides how long it takes
TILE = 1024  # elements of the other tiles
FOLD_BLOCK = 1024  # entries


@triton.jit(do_not_specialize=["entries", "limit", "to"])
def fold_kernel(
    entries_ptr, weights_ptr, before_ptr, points_ptr, folded_ptr, entries, limit, to,
    CORNERS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Point and weight of each entry, in their order, from place `to` on; 0 from `limit` on."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = offs < entries
    entry = tl.load(entries_ptr + offs, mask=real, other=0)
    live = real & (entry < limit)
    point = tl.where(live, entry // CORNERS, 0)
    weight = tl.load(weights_ptr + entry, mask=live, other=0.0)
    if before_ptr is not None:
        weight *= tl.load(before_ptr + point, mask=live, other=0.0)
    tl.store(points_ptr + to + offs, point, mask=real)
    tl.store(folded_ptr + to + offs, weight, mask=real)


@triton.jit(do_not_specialize=["pieces"])
def splat_kernel(
    values_ptr, points_ptr, weights_ptr, pieces_ptr, rows_ptr, pieces,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, UNROLL: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One row for each piece: the weighted sum of its points' values."""
    piece = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    real = piece < pieces
    first = tl.load(pieces_ptr + piece, mask=real, other=0)
    last = tl.load(pieces_ptr + pieces + piece, mask=real, other=0)
    row = tl.load(pieces_ptr + 2 * pieces.to(tl.int64) + piece, mask=real, other=-1)
    acc = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    length = last - first
    for begin in range(0, tl.max(length, axis=0), UNROLL):
        for u in tl.static_range(UNROLL):
            offs = first + begin + u
            live = begin + u < length
            point = tl.load(points_ptr + offs, mask=live, other=0).to(tl.int64)[:, None]
            weight = tl.load(weights_ptr + offs, mask=live, other=0.0)[:, None]
            mask = live[:, None] & (c < CHANNELS)
            acc += weight * tl.load(values_ptr + point * CHANNELS + c, mask=mask, other=0.0)
    rows = rows_ptr + row.to(tl.int64)[:, None] * WIDTH + c
    tl.store(rows, acc, mask=(row >= 0)[:, None] & (c < WIDTH))


@triton.jit(do_not_specialize=["sums"])
def sum_kernel(
    rows_ptr, sums_ptr, sums, WIDTH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """A row that was cut into pieces: the sum of its partial rows."""
    which = tl.program_id(0)
    c = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    row = tl.load(sums_ptr + 2 * sums.to(tl.int64) + which).to(tl.int64)
    if row >= 0:
        first = tl.load(sums_ptr + which)
        last = tl.load(sums_ptr + sums + which)
        acc = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        for begin in range(first, last, BLOCK_R):
            partial = (begin + tl.arange(0, BLOCK_R))[:, None]
            mask = (partial < last) & (c < WIDTH)
            acc += tl.load(rows_ptr + partial.to(tl.int64) * WIDTH + c, mask=mask, other=0.0)
        total = tl.sum(acc, axis=0)[None, :]
        tl.store(rows_ptr + row * WIDTH + c, total, mask=c < WIDTH)


@triton.jit(do_not_specialize=["direction", "rows"])
def blur_kernel(
    rows_ptr, next_ptr, neighbours_ptr, direction, rows,
    WIDTH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One direction: each row plus half of the rows before and after it, where there are any."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    real = row < rows
    beside = neighbours_ptr + direction.to(tl.int64) * 2 * rows
    before = tl.load(beside + row, mask=real, other=rows)
    after = tl.load(beside + rows + row, mask=real, other=rows)
    fits = c < WIDTH
    sides = load_rows(rows_ptr, before, before < rows, c, WIDTH)
    sides += load_rows(rows_ptr, after, after < rows, c, WIDTH)
    blurred = load_rows(rows_ptr, row, real, c, WIDTH) + 0.5 * sides
    tl.store(next_ptr + row.to(tl.int64)[:, None] * WIDTH + c, blurred, mask=real[:, None] & fits)


@triton.jit
def load_rows(rows_ptr, row, real, c, WIDTH: tl.constexpr):
    """rows[row, c]; 0 where it is not real and in padding."""
    offs = row.to(tl.int64)[:, None] * WIDTH + c
    return tl.load(rows_ptr + offs, mask=real[:, None] & (c < WIDTH), other=0.0)


@triton.jit(do_not_specialize=["count"])
def slice_kernel(
    rows_ptr, corners_ptr, weights_ptr, out_ptr, count,
    SCALE: tl.constexpr, CORNERS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """output[p] = scale * the weighted sum of the rows of p's corners."""
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    real = p < count
    acc = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for k in tl.static_range(CORNERS):
        offs = p.to(tl.int64) * CORNERS + k
        corner = tl.load(corners_ptr + offs, mask=real, other=0)
        weight = tl.load(weights_ptr + offs, mask=real, other=0.0) * SCALE
        acc += weight[:, None] * load_rows(rows_ptr, corner, real, c, WIDTH)
    mask = real[:, None] & (c < CHANNELS)
    tl.store(out_ptr + p.to(tl.int64)[:, None] * CHANNELS + c, acc, mask=mask)


@dataclass(frozen=True)
class Splat:
    """What the rows of one lattice, or of several side by side, sum."""

    points: Tensor  # int32 `[E]`, the point of each entry, entries sorted by row
    weights: Tensor  # float32 `[E]`, its weight
    pieces: Tensor  # as of `Lattice`, like sums
    sums: Tensor
    rows: int  # how many there are, partial ones not counted
    buffer_rows: int  # the same, partial ones counted


def filter(lattice: Lattice, values: Tensor, reverse: bool = False) -> Tensor:
    """Filter float32 `values` `[N, C]`; `reverse` blurs in the opposite order (the adjoint).

    Nothing here waits for the device.
    """
    source = values.detach().contiguous()
    output = torch.empty_like(source)
    if not output.numel():
        return output
    lattice = completed(lattice)
    channels = source.shape[1]
    width = width_of(channels)
    with torch.cuda.device_of(source):
        splat = fold(lattice, None)
        memory.require(
            4 * width * (splat.buffer_rows + splat.rows),
            source.device,
            f"filtering {channels} channels on {splat.rows} vertices",
        )
        rows, spare = buffers(splat, width)
        splat_rows(source, splat, rows)
        rows, _ = blur(rows, spare, lattice.known_neighbours, reverse)
        _slice(lattice, rows, output)
    return output


def width_of(channels: int) -> int:
    """Floats of a row: the next power of two up to 4, from there on the next multiple of 8."""
    return power_of_2(channels) if channels <= 4 else -(-channels // 8) * 8


def block_of(width: int, tile: int) -> tuple[int, int, int]:
    """Rows and channels of a tile of so many elements, and how many tiles hold a whole row."""
    channels = min(MAX_BLOCK_C, power_of_2(width))
    return max(1, tile // channels), channels, blocks(width, channels)


def fold(
    lattice: Lattice, before: Tensor | None, into: tuple[Tensor, Tensor] | None = None, to: int = 0
) -> Splat:
    """The splat of a completed lattice, values multiplied by `before` `[N]`.

    into: points and weights of several lattices, of which this one's stand from `to` on.
    """
    entries, pieces, sums = lattice.entries, lattice.pieces, lattice.sums
    assert entries is not None
    assert pieces is not None
    assert sums is not None
    count, rows = len(entries), lattice.num_rows
    points, folded = into or (torch.empty_like(entries), lattice.weights.new_empty(count))
    fold_kernel[(blocks(count, FOLD_BLOCK),)](
        entries, lattice.weights.contiguous(),
        None if before is None else before.contiguous(), points, folded,
        count, lattice.corners.numel(), to, CORNERS=lattice.num_dims + 1, BLOCK=FOLD_BLOCK,
    )  # fmt: skip
    return Splat(points, folded, pieces, sums, rows, rows + num_partials(count))


def buffers(splat: Splat, width: int) -> tuple[Tensor, Tensor]:
    """Unset rows to splat to, and rows to blur to."""
    like = splat.weights
    return like.new_empty(splat.buffer_rows, width), like.new_empty(splat.rows, width)


def splat_rows(values: Tensor, splat: Splat, rows: Tensor) -> None:
    """Set the rows of `splat` to the sums of `values` `[N, C]`, which are contiguous."""
    width = rows.shape[1]
    pieces, sums = splat.pieces.shape[1], splat.sums.shape[1]
    block_p, block_c, across = block_of(width, SPLAT_TILE)
    splat_kernel[(blocks(pieces, block_p), across)](
        values, splat.points, splat.weights, splat.pieces, rows, pieces,
        CHANNELS=values.shape[1], WIDTH=width, UNROLL=4, BLOCK_P=block_p, BLOCK_C=block_c,
        num_warps=2,
    )  # fmt: skip
    if sums:
        block_r, block_c, across = block_of(width, TILE)
        sum_kernel[(sums, across)](
            rows, splat.sums, sums, WIDTH=width, BLOCK_R=block_r, BLOCK_C=block_c
        )


def blur(
    rows: Tensor, spare: Tensor, neighbours: Tensor, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Blur along each direction of `neighbours` `[K, 2, R]`; return the result and the other."""
    directions, _, count = neighbours.shape
    width = rows.shape[1]
    block_r, block_c, across = block_of(width, TILE)
    neighbours = neighbours.contiguous()
    for j in reversed(range(directions)) if reverse else range(directions):
        blur_kernel[(blocks(count, block_r), across)](
            rows, spare, neighbours, j, count, WIDTH=width, BLOCK_R=block_r, BLOCK_C=block_c
        )
        rows, spare = spare, rows
    return rows, spare


def _slice(lattice: Lattice, rows: Tensor, output: Tensor) -> None:
    count, channels = output.shape
    width = rows.shape[1]
    block_p, block_c, across = block_of(width, TILE)
    slice_kernel[(blocks(count, block_p), across)](
        rows, lattice.corners.contiguous(), lattice.weights.contiguous(), output, count,
        SCALE=lattice.scale, CORNERS=lattice.num_dims + 1, CHANNELS=channels, WIDTH=width,
        BLOCK_P=block_p, BLOCK_C=block_c,
    )  # fmt: skip
