"""Which entries of a lattice each vertex sums, cut so that no program sums much more than others.

An entry is a point and one of its corners, number point * (D+1) + corner; `entries` lists them by
row. A row may have thousands of them (a clear sky) or nearly all (a large sigma), so that they are
cut into pieces of at most `PIECE` entries:

    piece   entries [first, last)  ->  row, or a partial row behind the last row
    sum     partial rows [first, last)  ->  row, where a row has several pieces

Sizes follow from the numbers of rows and of entries, whose tables are filled up with empty pieces:
nothing here waits for the device.
"""

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.permutohedral.lattice import Lattice
from kernels.sizes import blocks

PIECE = 128  # entries
BLOCK = 256  # rows, pieces or sums a program


@triton.jit
def rank(sorted_ptr, count, wanted, real, highest_bit):
    """How many of `count` sorted numbers are less than each that is wanted; by bisection, int64.

    highest_bit: the largest power of two that is not above count.
    """
    found = tl.zeros(wanted.shape, tl.int64)
    bit = tl.full((), highest_bit, tl.int64)
    while bit > 0:
        further = found + bit
        fits = real & (further <= count)
        less = tl.load(sorted_ptr + further - 1, mask=fits, other=0) < wanted
        found = tl.where(fits & less, further, found)
        bit = bit // 2
    return found


@triton.jit(do_not_specialize=["rows"])
def count_kernel(starts_ptr, counts_ptr, rows, PIECE: tl.constexpr, BLOCK: tl.constexpr):
    """Of each row: pieces, at least one; partial rows, where it has several; whether it has."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = row < rows
    length = tl.load(starts_ptr + row + 1, mask=real, other=0)
    length -= tl.load(starts_ptr + row, mask=real, other=0)
    pieces = tl.maximum(length // PIECE + (length % PIECE > 0).to(tl.int32), 1)
    several = pieces > 1
    offs = counts_ptr + row.to(tl.int64)
    tl.store(offs, pieces, mask=real)
    tl.store(offs + rows, tl.where(several, pieces, 0), mask=real)
    tl.store(offs + rows + rows, several.to(tl.int32), mask=real)


@triton.jit(do_not_specialize=["rows", "pieces", "sums", "highest_bit"])
def cut_kernel(
    starts_ptr, ends_ptr, pieces_ptr, sums_ptr, rows, pieces, sums, highest_bit,
    PIECE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pieces by the first column of programs, sums by the second.

    `ends` are the running sums of counts, `[3, R]`.
    """
    which = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if tl.program_id(1) == 0:
        write_pieces(starts_ptr, ends_ptr, pieces_ptr, which, rows, pieces, highest_bit, PIECE)
    else:
        write_sums(ends_ptr, sums_ptr, which, rows, sums, highest_bit)


@triton.jit
def write_pieces(
    starts_ptr, ends_ptr, pieces_ptr, piece, rows, pieces, highest_bit, PIECE: tl.constexpr
):  # fmt: skip
    """Entries and target of each piece."""
    inside = piece < pieces
    row = rank(ends_ptr, rows, piece + 1, inside, highest_bit)
    real = inside & (row < rows)
    end = tl.load(ends_ptr + row, mask=real, other=0)
    begin = tl.load(ends_ptr + row - 1, mask=real & (row > 0), other=0)
    first = tl.load(starts_ptr + row, mask=real, other=0) + (piece - begin) * PIECE
    length = tl.load(starts_ptr + row + 1, mask=real, other=0) - first
    last_partial = tl.load(ends_ptr + rows + row, mask=real, other=0) + rows
    target = tl.where(end - begin > 1, last_partial - (end - piece), row.to(tl.int32))
    offs = pieces_ptr + piece.to(tl.int64)
    tl.store(offs, tl.where(real, first, 0), mask=inside)
    last = first + tl.minimum(length, PIECE)
    tl.store(offs + pieces, tl.where(real, last, 0), mask=inside)
    tl.store(offs + pieces + pieces, tl.where(real, target, -1), mask=inside)


@triton.jit
def write_sums(ends_ptr, sums_ptr, which, rows, sums, highest_bit):
    """Partial rows and target of each sum."""
    inside = which < sums
    several_ptr = ends_ptr + rows + rows.to(tl.int64)
    row = rank(several_ptr, rows, which + 1, inside, highest_bit)
    real = inside & (row < rows)
    last = tl.load(ends_ptr + rows + row, mask=real, other=0)
    first = tl.load(ends_ptr + rows + row - 1, mask=real & (row > 0), other=0)
    offs = sums_ptr + which.to(tl.int64)
    tl.store(offs, tl.where(real, first + rows, 0), mask=inside)
    tl.store(offs + sums, tl.where(real, last + rows, 0), mask=inside)
    tl.store(offs + sums + sums, tl.where(real, row, -1).to(tl.int32), mask=inside)


def cut(starts: Tensor, entries: int) -> tuple[Tensor, Tensor]:
    """`Lattice.pieces` and `sums` of the entries [starts[r], starts[r+1]) of each row r.

    starts: int32 `[R+1]`, not decreasing, from 0 to `entries`; R is at least 1. A row without
    entries has one piece, to write zeros.
    """
    rows = len(starts) - 1
    counts = torch.empty(3, rows, dtype=torch.int32, device=starts.device)
    count_kernel[(blocks(rows, BLOCK),)](starts, counts, rows, PIECE=PIECE, BLOCK=BLOCK)
    ends = torch.cumsum(counts, 1, dtype=torch.int32)
    pieces = counts.new_empty(3, rows + entries // PIECE)
    sums = counts.new_empty(3, entries // PIECE)  # at most so many rows have several pieces
    cut_kernel[blocks(pieces.shape[1], BLOCK), 2 if sums.numel() else 1](  # sums are fewer
        starts, ends, pieces, sums, rows, pieces.shape[1], sums.shape[1], highest_bit(rows),
        PIECE=PIECE, BLOCK=BLOCK,
    )  # fmt: skip
    return pieces, sums


def highest_bit(count: int) -> int:
    """The largest power of two that is not above a positive count."""
    return 1 << (count.bit_length() - 1)


def num_partials(entries: int) -> int:
    """The most partial rows that `cut` may number."""
    return 2 * (entries // PIECE)


def completed(lattice: Lattice) -> Lattice:
    """The lattice with all its splat fields, of whichever build, and without ghosts."""
    if lattice.entries is not None and not len(lattice.ghosts):
        return lattice
    corners = lattice.corners
    if len(lattice.ghosts):
        owners = torch.arange(lattice.num_rows, dtype=torch.int32, device=corners.device)
        owners[lattice.ghosts[:, 0].long()] = lattice.ghosts[:, 1]
        corners = owners[corners.long()]
    row, entries = torch.sort(corners.flatten(), stable=True)
    rows = torch.arange(lattice.num_rows + 1, dtype=torch.int32, device=row.device)
    with torch.cuda.device_of(corners):
        pieces, sums = cut(torch.searchsorted(row, rows, out_int32=True), len(entries))
    splat = {"entries": entries.int(), "pieces": pieces, "sums": sums}
    return dataclasses.replace(lattice, corners=corners, ghosts=lattice.ghosts[:0], **splat)
