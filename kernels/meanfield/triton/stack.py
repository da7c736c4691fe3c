"""The terms of a CRF side by side: their vertices in one buffer, their corners in one table.

    rows      those of term 0, of term 1, ...; then the partial rows of term 0, of term 1, ...
    corners   `[sum(D_k + 1), N]`: a column for each point, so that neighbouring points are read
              together; entry numbers, pieces and neighbours are moved in the same way

What is constant for a point and a term (normalisation, the lattice's scale) is folded into the
weights. One launch a term and table; nothing waits for the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.meanfield.term import LatticeTerm
from kernels.permutohedral.lattice import Lattice
from kernels.permutohedral.triton.filtering import Splat, fold, width_of
from kernels.permutohedral.triton.segments import completed
from kernels.product import product
from kernels.sizes import blocks

BLOCK = 512  # points, pieces or rows a program


@triton.jit(do_not_specialize=["count", "first_row", "first_column"])
def corners_kernel(
    corners_ptr, weights_ptr, after_ptr, corners_out_ptr, weights_out_ptr,
    count, first_row, first_column,
    SCALE: tl.constexpr, CORNERS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows and weights of one term's corners, moved to their place in the table of all."""
    p = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    real = p < count
    factor = tl.full((BLOCK,), SCALE, tl.float32)
    if after_ptr is not None:
        factor *= tl.load(after_ptr + p, mask=real, other=0.0)
    to = first_column * count.to(tl.int64) + p
    for k in tl.static_range(CORNERS):
        corner = tl.load(corners_ptr + p * CORNERS + k, mask=real, other=0)
        weight = tl.load(weights_ptr + p * CORNERS + k, mask=real, other=0.0)
        tl.store(corners_out_ptr + to, corner + first_row, mask=real)
        tl.store(weights_out_ptr + to, weight * factor, mask=real)
        to += count


@triton.jit(
    do_not_specialize=[
        "pieces", "all_pieces", "first_piece", "entry", "sums", "all_sums", "first_sum",
        "rows", "row", "partial",
    ]
)  # fmt: skip
def move_kernel(
    pieces_ptr, pieces_out_ptr, sums_ptr, sums_out_ptr,
    pieces, all_pieces, first_piece, entry, sums, all_sums, first_sum, rows, row, partial,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Pieces and sums of one term as columns of all, whose entries move by `entry`."""
    i = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    if tl.program_id(1) == 0:
        out_ptr = pieces_out_ptr + first_piece
        move(pieces_ptr, out_ptr, i, pieces, all_pieces, entry, rows, row, partial)
    else:
        out_ptr = sums_out_ptr + first_sum
        move(sums_ptr, out_ptr, i, sums, all_sums, partial - rows, rows, row, partial)


@triton.jit
def move(table_ptr, out_ptr, i, count, stride, shift, rows, row, partial):
    """A table's columns: ranges by `shift`, targets to where they went.

    Row r is row + r among those of all terms, partial row rows + q is partial + q.
    """
    real = i < count
    target = tl.load(table_ptr + 2 * count.to(tl.int64) + i, mask=real, other=-1)
    moved = tl.where(target < rows, target + row, target - rows + partial)
    out = out_ptr + i
    tl.store(out, tl.load(table_ptr + i, mask=real, other=0) + shift, mask=real)
    last = tl.load(table_ptr + count + i, mask=real, other=0)
    tl.store(out + stride, last + shift, mask=real)
    tl.store(out + stride + stride, tl.where(target >= 0, moved, -1), mask=real)


@triton.jit(do_not_specialize=["rows", "all_rows", "first_row"])
def neighbours_kernel(
    neighbours_ptr, out_ptr, rows, all_rows, first_row, LINES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Neighbours of one term among the rows of all; none in directions that it does not have."""
    line = tl.program_id(1).to(tl.int64)  # direction and side
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = r < rows
    own = tl.load(neighbours_ptr + line * rows + r, mask=real & (line < LINES), other=rows)
    moved = tl.where(own < rows, own + first_row, all_rows)
    tl.store(out_ptr + line * all_rows + first_row + r, moved, mask=real)


@dataclass(frozen=True)
class Stack:
    """All terms side by side."""

    splat: Splat  # entries and rows of all terms
    neighbours: Tensor  # int32 `[max(D_k + 1), 2, R]`
    corners: Tensor  # int32 `[sum(D_k + 1), N]`, rows of the corners of each point
    weights: Tensor  # float32 `[sum(D_k + 1), N]`, of a slice: the scale and `after` included
    compatibilities: Tensor  # float32 `[K, width]`, what is sliced is multiplied by
    # What the rows of each term are multiplied by before, `[width]` or `[width, width]`; none
    # unless one is a matrix.
    factors: list[Tensor]
    bounds: list[int]  # the first row of each term, and R
    counts: tuple[int, ...]  # D_k + 1

    @classmethod
    def of(cls, terms: Sequence[LatticeTerm], labels: int) -> Stack:
        """The terms, at least one, over the same points, at least one."""
        lattices = [completed(term.lattice) for term in terms]
        bounds = [0, *itertools.accumulate(lattice.num_rows for lattice in lattices)]
        factors, width = [term.compatibility for term in terms], width_of(labels)
        if any(factor.ndim == 2 for factor in factors):
            compatibilities = factors[0].new_ones(len(terms), width)
            factors = [F.pad(f, (0, width - len(f)) * f.ndim) for f in factors]  # by zeros
        else:
            compatibilities = factors[0].new_zeros(len(terms), width)
            torch.stack(factors, out=compatibilities[:, :labels])
            factors = []
        corners, weights = _corners(lattices, terms, bounds)
        return cls(
            splat=_splat(lattices, terms, bounds),
            neighbours=_neighbours(lattices, bounds),
            corners=corners,
            weights=weights,
            compatibilities=compatibilities,
            factors=factors,
            bounds=bounds,
            counts=tuple(lattice.num_dims + 1 for lattice in lattices),
        )

    def multiplied(self, blurred: Tensor, other: Tensor) -> Tensor:
        """The rows times the compatibilities, where one is a matrix; that overwrites `other`."""
        if not self.factors:
            return blurred
        for factor, (first, last) in zip(
            self.factors, itertools.pairwise(self.bounds), strict=True
        ):
            if factor.ndim == 2:
                product(blurred[first:last], factor.T, other[first:last])
            else:
                torch.mul(blurred[first:last], factor, out=other[first:last])
        return other


def _corners(
    lattices: Sequence[Lattice], terms: Sequence[LatticeTerm], bounds: Sequence[int]
) -> tuple[Tensor, Tensor]:
    count = lattices[0].num_points
    shape = sum(lattice.num_dims + 1 for lattice in lattices), count
    corners = lattices[0].corners.new_empty(shape)
    weights = lattices[0].weights.new_empty(shape)
    column = 0
    for lattice, term, first in zip(lattices, terms, bounds, strict=False):
        after = None if term.after is None else term.after.contiguous()
        corners_kernel[(blocks(count, BLOCK),)](
            lattice.corners.contiguous(), lattice.weights.contiguous(), after, corners, weights,
            count, first, column,
            SCALE=lattice.scale, CORNERS=lattice.num_dims + 1, BLOCK=BLOCK,
        )  # fmt: skip
        column += lattice.num_dims + 1
    return corners, weights


def _splat(
    lattices: Sequence[Lattice], terms: Sequence[LatticeTerm], bounds: Sequence[int]
) -> Splat:
    """One splat for all lattices."""
    if len(lattices) == 1:
        return fold(lattices[0], terms[0].before)
    like = lattices[0].corners
    points = like.new_empty(_columns(lattice.entries for lattice in lattices))
    weights = torch.empty_like(points, dtype=torch.float32)
    pieces = like.new_empty(3, _columns(lattice.pieces for lattice in lattices))
    sums = like.new_empty(3, _columns(lattice.sums for lattice in lattices))
    partial, entry, piece, sum_ = bounds[-1], 0, 0, 0
    for lattice, term, row in zip(lattices, terms, bounds, strict=False):
        own = fold(lattice, term.before, (points, weights), entry)
        widths = own.pieces.shape[1], own.sums.shape[1]  # sums are fewer
        move_kernel[blocks(widths[0], BLOCK), 2 if widths[1] else 1](
            own.pieces, pieces, own.sums, sums, widths[0], pieces.shape[1], piece, entry,
            widths[1], sums.shape[1], sum_, own.rows, row, partial, BLOCK=BLOCK,
        )  # fmt: skip
        entry += _columns([lattice.entries])
        piece += widths[0]
        sum_ += widths[1]
        partial += own.buffer_rows - own.rows
    return Splat(points, weights, pieces, sums, bounds[-1], partial)


def _columns(tables: Iterable[Tensor | None]) -> int:
    """Of all together."""
    return sum(table.shape[-1] for table in tables if table is not None)


def _neighbours(lattices: Sequence[Lattice], bounds: Sequence[int]) -> Tensor:
    if len(lattices) == 1:
        return lattices[0].known_neighbours
    directions = max(lattice.num_dims + 1 for lattice in lattices)
    neighbours = lattices[0].known_neighbours.new_empty(directions, 2, bounds[-1])
    for lattice, first in zip(lattices, bounds, strict=False):
        neighbours_kernel[(blocks(lattice.num_rows, BLOCK), 2 * directions)](
            lattice.known_neighbours.contiguous(), neighbours, lattice.num_rows, bounds[-1], first,
            LINES=2 * (lattice.num_dims + 1), BLOCK=BLOCK,
        )  # fmt: skip
    return neighbours
