"""Mean field on a GPU, in Triton: a splat, a blur and one fused pass over the points an iteration.

    rows[r]  = sum over the entries e of r of  before_e weight_e * Q[point_e]            splat
    rows     = blurred along each direction                                              blur
    field_p  = logits_p - sum_k penalty_k * sum_j after_pk weight_pkj * rows[corner_pkj] update
    Q_p      = softmax(field_p)

The vertices of all terms stand in one buffer, so that one splat and max(D_k + 1) blurs serve all of
them; a term with fewer directions has no neighbours in the last ones, which copy its rows. What is
constant for a point and a term (normalisation, the lattice's scale) is folded into its corner
weights. A penalty `[C]` is applied in registers, a matrix `[C, C]` to the blurred rows.

An iteration is 2 + max(D_k + 1) launches, one more where a vertex may sum more than
`segments.PIECE` entries, and one product a term with a matrix. Nothing waits for the device. An
iteration moves, in rows of `width` floats for N points, E = sum_k N (D_k + 1) entries and R
vertices: N rows of logits read, N rows of Q written and E read, E rows of vertices read, and for
each direction up to 3 R rows read and R written.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.gaussian.permutohedral.lattice import Lattice
from kernels.gaussian.permutohedral.triton.filtering import (
    Splat,
    blur,
    buffers,
    fold,
    load_rows,
    splat_rows,
    width_of,
)
from kernels.gaussian.permutohedral.triton.segments import completed, require_memory
from kernels.meanfield.term import Term

TILE = 1024  # elements: points x labels


@triton.jit(do_not_specialize=["count", "point_stride", "label_stride"])
def start_kernel(
    unary_ptr, order_ptr, logits_ptr, marginals_ptr, count, point_stride, label_stride,
    LABELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Logits and their softmax, as rows in the lattices' order; padding is -inf, and 0."""
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)[None, :]
    real = p < count
    offs = source_of(p, real, order_ptr)[:, None] * point_stride + c.to(tl.int64) * label_stride
    mask = real[:, None] & (c < LABELS)
    logits = -tl.load(unary_ptr + offs, mask=mask, other=float("inf"))
    to = p.to(tl.int64)[:, None] * WIDTH + c
    mask = real[:, None] & (c < WIDTH)
    tl.store(logits_ptr + to, logits, mask=mask)
    if marginals_ptr is not None:
        tl.store(marginals_ptr + to, softmax(logits, real), mask=mask)


@triton.jit(do_not_specialize=["count", "point_stride", "label_stride"])
def update_kernel(
    logits_ptr, rows_ptr, corners_ptr, weights_ptr, penalties_ptr, order_ptr, out_ptr,
    count, point_stride, label_stride,
    CORNERS: tl.constexpr, OUTPUTS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Slice all terms, whose numbers of corners are CORNERS; subtract, softmax, write."""
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)[None, :]
    real = p < count
    mask = real[:, None] & (c < WIDTH)
    field = tl.load(
        logits_ptr + p.to(tl.int64)[:, None] * WIDTH + c, mask=mask, other=-float("inf")
    )
    column = p.to(tl.int64)
    for k in tl.static_range(len(CORNERS)):
        tables = corners_ptr + column, weights_ptr + column
        sliced = slice_term(rows_ptr, tables, real, c, count, CORNERS[k], WIDTH, BLOCK_P, BLOCK_C)
        field -= sliced * tl.load(penalties_ptr + k * WIDTH + c, mask=c < WIDTH, other=0.0)
        column += CORNERS[k] * count.to(tl.int64)
    offs = source_of(p, real, order_ptr)[:, None] * point_stride + c.to(tl.int64) * label_stride
    tl.store(out_ptr + offs, softmax(field, real), mask=real[:, None] & (c < OUTPUTS))


@triton.jit
def slice_term(
    rows_ptr, tables, real, c, count,
    CORNERS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The weighted sum of the rows of each point's corners, of one term."""
    corners_ptrs, weights_ptrs = tables
    acc = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for _ in tl.static_range(CORNERS):
        corner = tl.load(corners_ptrs, mask=real, other=0)
        weight = tl.load(weights_ptrs, mask=real, other=0.0)
        acc += weight[:, None] * load_rows(rows_ptr, corner, real, c, WIDTH)
        corners_ptrs += count
        weights_ptrs += count
    return acc


@triton.jit
def source_of(p, real, order_ptr):
    """The row of the caller's tensors that point p of the lattices is, int64."""
    if order_ptr is not None:
        return tl.load(order_ptr + p, mask=real, other=0)
    return p.to(tl.int64)


@triton.jit
def softmax(field, real):
    """Of each row; 0 for rows that are not real."""
    field = tl.where(real[:, None], field, 0.0)
    exponentials = tl.exp(field - tl.max(field, axis=1)[:, None])
    return exponentials / tl.sum(exponentials, axis=1)[:, None]


def mean_field(
    unary: Tensor,
    terms: Sequence[Term],
    iterations: int,
    start: Tensor | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """See `kernels.mean_field`; float32, `unary` `[N, C]` of any strides.

    Points may be those of several images, where the lattices are.

    Raises:
        ValueError: more entries than 32-bit indices name.
        MemoryError: the update does not fit the device.
    """
    marginals = torch.empty_like(unary)  # keeps the strides of a transposed [C, N]
    if iterations == 0 and start is not None:
        return marginals.copy_(start)
    if not unary.numel():
        return marginals
    _require_memory(unary, terms)
    order = None if order is None else order.contiguous()
    with torch.cuda.device_of(unary):
        logits, first = _start(unary, order, start is None and iterations > 0 and bool(terms))
        if iterations == 0 or not terms:
            _update(logits, None, marginals, order)
            return marginals
        stack = _Stack.of(terms, unary.shape[1])
        if first is None:
            assert start is not None
            first = torch.zeros_like(logits)
            first[:, : unary.shape[1]] = start if order is None else start[order]
        rows, spare = buffers(stack.splat, logits.shape[1])
        for left in reversed(range(iterations)):
            splat_rows(first, stack.splat, rows)
            blurred, other = blur(rows, spare, stack.neighbours)
            costs = stack.multiplied(blurred, other)
            _update(logits, (stack, costs), first if left else marginals, None if left else order)
    return marginals


@dataclass(frozen=True)
class _Stack:
    """All terms side by side.

    Attributes:
        splat: entries and rows of all terms.
        neighbours: int32 `[max(D_k + 1), 2, R]`.
        corners: int32 `[sum(D_k + 1), N]`, rows of the corners of each point.
        weights: float32 `[sum(D_k + 1), N]`, of a slice: the scale and `after` included.
        penalties: float32 `[K, width]`, what is sliced is multiplied by.
        factors: what the rows of each term are multiplied by before, `[width]` or
            `[width, width]`; none unless one is a matrix.
        bounds: the first row of each term, and R.
        counts: D_k + 1.
    """

    splat: Splat
    neighbours: Tensor
    corners: Tensor
    weights: Tensor
    penalties: Tensor
    factors: list[Tensor]
    bounds: list[int]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, terms: Sequence[Term], labels: int) -> _Stack:
        lattices = [completed(term.lattice) for term in terms]
        bounds = [0, *itertools.accumulate(lattice.num_rows for lattice in lattices)]
        factors = [_padded(term.penalty, width_of(labels)) for term in terms]
        if any(factor.ndim == 2 for factor in factors):
            penalties = factors[0].new_ones(len(terms), width_of(labels))
        else:
            penalties, factors = torch.stack(factors), []
        splats, corners, weights = [], [], []
        for lattice, term, first in zip(lattices, terms, bounds, strict=False):
            splats.append(fold(lattice, term.before))
            corners.append(lattice.corners.T + first)
            scaled = lattice.weights * lattice.scale
            weights.append((scaled if term.after is None else scaled * term.after[:, None]).T)
        return cls(
            splat=_side_by_side(splats),
            neighbours=_neighbours(lattices, bounds),
            corners=torch.cat(corners).contiguous(),
            weights=torch.cat(weights).contiguous(),
            penalties=penalties,
            factors=factors,
            bounds=bounds,
            counts=tuple(lattice.num_dims + 1 for lattice in lattices),
        )

    def multiplied(self, blurred: Tensor, other: Tensor) -> Tensor:
        """The rows times the penalties, where one is a matrix; `other` is overwritten then."""
        if not self.factors:
            return blurred
        for factor, first, last in zip(self.factors, self.bounds, self.bounds[1:], strict=False):
            if factor.ndim == 2:
                torch.mm(blurred[first:last], factor.T, out=other[first:last])
            else:
                torch.mul(blurred[first:last], factor, out=other[first:last])
        return other


def _side_by_side(splats: Sequence[Splat]) -> Splat:
    """One splat for several: rows of all, then partial rows of all."""
    rows = sum(splat.rows for splat in splats)
    row, partial, entry = 0, rows, 0
    pieces, sums = [], []
    for splat in splats:
        entries = splat.pieces[:2] + entry
        targets = _moved(splat.pieces[2], splat.rows, row, partial)
        pieces.append(torch.cat([entries, targets[None]]))
        partials = splat.sums[:2] + (partial - splat.rows)
        sums.append(torch.cat([partials, _moved(splat.sums[2], splat.rows, row, partial)[None]]))
        row += splat.rows
        partial += splat.buffer_rows - splat.rows
        entry += len(splat.points)
    return Splat(
        points=torch.cat([splat.points for splat in splats]),
        weights=torch.cat([splat.weights for splat in splats]),
        pieces=torch.cat(pieces, dim=1),
        sums=torch.cat(sums, dim=1),
        rows=rows,
        buffer_rows=partial,
    )


def _moved(target: Tensor, rows: int, row: int, partial: int) -> Tensor:
    """Rows moved to begin at `row`, partial ones at `partial`; -1 stays."""
    moved = torch.where(target < rows, target + row, target + (partial - rows))
    return moved.where(target >= 0, target)


def _neighbours(lattices: Sequence[Lattice], bounds: Sequence[int]) -> Tensor:
    rows = bounds[-1]
    directions = max(lattice.num_dims + 1 for lattice in lattices)
    neighbours = torch.empty_like(lattices[0].neighbours[:1]).new_full((directions, 2, rows), rows)
    for lattice, first in zip(lattices, bounds, strict=False):
        own = lattice.neighbours
        moved = torch.where(own < lattice.num_rows, own + first, rows)
        neighbours[: len(own), :, first : first + lattice.num_rows] = moved
    return neighbours


def _padded(penalty: Tensor, width: int) -> Tensor:
    """A penalty filled up with zeros, whose rows and columns meet rows of full width."""
    missing = width - len(penalty)
    return F.pad(penalty, (0, missing) * penalty.ndim)


def _start(unary: Tensor, order: Tensor | None, with_softmax: bool) -> tuple[Tensor, Tensor | None]:
    """Logits as rows, and their softmax where it is wanted."""
    count, labels = unary.shape
    width = width_of(labels)
    logits = torch.empty(count, width, dtype=torch.float32, device=unary.device)
    marginals = torch.empty_like(logits) if with_softmax else None
    block_p, block_c = _tile(width)
    start_kernel[(triton.cdiv(count, block_p),)](
        unary, order, logits, marginals, count, *unary.stride(),
        LABELS=labels, WIDTH=width, BLOCK_P=block_p, BLOCK_C=block_c,
    )  # fmt: skip
    return logits, marginals


def _update(
    logits: Tensor,
    pairwise: tuple[_Stack, Tensor] | None,
    output: Tensor,
    order: Tensor | None,
) -> None:
    """Set `output`, of any strides and in the caller's order, to the marginals."""
    count, width = logits.shape
    block_p, block_c = _tile(width)
    stack, rows = pairwise if pairwise is not None else (None, None)
    update_kernel[(triton.cdiv(count, block_p),)](
        logits, rows, *((stack.corners, stack.weights, stack.penalties) if stack else [None] * 3),
        order, output, count, *output.stride(),
        CORNERS=stack.counts if stack else (), OUTPUTS=output.shape[1], WIDTH=width,
        BLOCK_P=block_p, BLOCK_C=block_c,
    )  # fmt: skip


def _tile(width: int) -> tuple[int, int]:
    """Points and labels of a tile, which holds all labels."""
    labels = triton.next_power_of_2(width)
    return max(1, TILE // labels), labels


def _require_memory(unary: Tensor, terms: Sequence[Term]) -> None:
    """Held: logits, Q, the result, two buffers of rows, two indices and two weights an entry."""
    count, labels = unary.shape
    rows = sum(term.lattice.num_rows for term in terms)
    entries = sum(term.lattice.corners.numel() for term in terms)
    if entries >= 2**31:
        raise ValueError(
            f"{count} points have {entries} corners in {len(terms)} terms: entries are indexed in "
            f"32 bits, {2**31 - 1} at most. Infer the image in parts."
        )
    bytes_needed = 4 * (width_of(labels) * (2 * count + 2 * rows) + count * labels + 4 * entries)
    require_memory(bytes_needed, unary.device, f"mean field of {count} points with {labels} labels")
