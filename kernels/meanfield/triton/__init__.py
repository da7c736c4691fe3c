"""Mean logits on a GPU, in Triton: a splat, a blur and one fused pass over the points an iteration.

    rows[r] = sum over the entries e of r of  before_e weight_e * Q[point_e]              splat
    rows    = blurred along each direction                                                blur
    l_p     = logits_p - sum_k compatibility_k * sum_j after_pk weight_pkj * rows[corner_pkj]
    Q_p     = softmax(l_p)                                                                update

The vertices of all terms stand in one buffer (stack.py), so that one splat and max(D_k + 1) blurs
serve all of them; a term with fewer directions has no neighbours in the last ones, which copy its
rows. A compatibility `[C]` is applied in registers, a matrix `[C, C]` to the blurred rows.

An iteration is 2 + max(D_k + 1) launches, one more where a vertex may sum more than
`segments.PIECE` entries, and one product a term with a matrix. Nothing waits for the device. An
iteration moves, in rows of `width` floats for N points, E = sum_k N (D_k + 1) entries and R
vertices: N rows of logits read, N rows of Q written and E read, E rows of vertices read, and for
each direction up to 3 R rows read and R written.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import memory
from kernels.meanfield.term import LatticeTerm
from kernels.meanfield.triton.stack import Stack
from kernels.permutohedral.triton.filtering import blur, buffers, load_rows, splat_rows, width_of
from kernels.sizes import blocks, power_of_2

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
    logits_ptr, rows_ptr, corners_ptr, weights_ptr, compatibilities_ptr, order_ptr, out_ptr,
    count, point_stride, label_stride,
    CORNERS: tl.constexpr, LABELS: tl.constexpr, WIDTH: tl.constexpr, TO_ROWS: tl.constexpr,
    MARGINALS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Slice all terms, whose numbers of corners are CORNERS; subtract, softmax if wanted, write.

    TO_ROWS: for the next splat, whose width is known and lets a thread store 16 bytes; else a
    result of any strides, in the caller's order.
    """
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)[None, :]
    real = p < count
    mask = real[:, None] & (c < WIDTH)
    logits = tl.load(
        logits_ptr + p.to(tl.int64)[:, None] * WIDTH + c, mask=mask, other=-float("inf")
    )
    column = p.to(tl.int64)
    for k in tl.static_range(len(CORNERS)):
        tables = corners_ptr + column, weights_ptr + column
        sliced = slice_term(rows_ptr, tables, real, c, count, CORNERS[k], WIDTH, BLOCK_P, BLOCK_C)
        logits -= sliced * tl.load(compatibilities_ptr + k * WIDTH + c, mask=c < WIDTH, other=0.0)
        column += CORNERS[k] * count.to(tl.int64)
    if MARGINALS:
        logits = softmax(logits, real)
    if TO_ROWS:
        tl.store(out_ptr + p.to(tl.int64)[:, None] * WIDTH + c, logits, mask=mask)
    else:
        source = source_of(p, real, order_ptr)[:, None]
        offs = source * point_stride + c.to(tl.int64) * label_stride
        tl.store(out_ptr + offs, logits, mask=real[:, None] & (c < LABELS))


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
def softmax(logits, real):
    """Of each row; 0 for rows that are not real."""
    logits = tl.where(real[:, None], logits, 0.0)
    exponentials = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    return exponentials / tl.sum(exponentials, axis=1)[:, None]


def mean_field(
    unary: Tensor,
    terms: Sequence[LatticeTerm],
    iterations: int,
    start: Tensor | None,
    order: Tensor | None,
    marginals: bool,
    output: Tensor,
) -> None:
    """Set `output` `[M, C]`; float32, `[M, C]` of any strides.

    order: point i of the lattices is row order[i] of the others; None: i.
    """
    if not unary.numel():
        return
    _require_memory(unary, terms)
    order = None if order is None else order.contiguous()
    with torch.cuda.device_of(unary):
        logits, first = _start(unary, order, start is None and iterations > 0 and bool(terms))
        if iterations == 0 or not terms:
            _update(logits, None, output, unary.shape[1], (order, marginals))
            return
        stack = Stack.of(terms, unary.shape[1])
        if first is None:
            assert start is not None
            first = torch.zeros_like(logits)
            first[:, : unary.shape[1]] = start if order is None else start[order]
        rows, spare = buffers(stack.splat, logits.shape[1])
        for left in reversed(range(iterations)):
            splat_rows(first, stack.splat, rows)
            blurred, other = blur(rows, spare, stack.neighbours)
            costs = stack.multiplied(blurred, other)
            if left:
                _update(logits, (stack, costs), first, unary.shape[1])
            else:
                _update(logits, (stack, costs), output, unary.shape[1], (order, marginals))


def _start(unary: Tensor, order: Tensor | None, with_softmax: bool) -> tuple[Tensor, Tensor | None]:
    """Logits as rows, and their softmax where it is wanted."""
    count, labels = unary.shape
    width = width_of(labels)
    logits = torch.empty(count, width, dtype=torch.float32, device=unary.device)
    marginals = torch.empty_like(logits) if with_softmax else None
    block_p, block_c = _tile(width)
    start_kernel[(blocks(count, block_p),)](
        unary, order, logits, marginals, count, *unary.stride(),
        LABELS=labels, WIDTH=width, BLOCK_P=block_p, BLOCK_C=block_c,
    )  # fmt: skip
    return logits, marginals


def _update(
    logits: Tensor,
    pairwise: tuple[Stack, Tensor] | None,
    output: Tensor,
    labels: int,
    last: tuple[Tensor | None, bool] | None = None,
) -> None:
    """Set `output`, rows as `logits`, to the marginals.

    last: the output is of any strides, in this order, and holds marginals or logits.
    """
    count, width = logits.shape
    block_p, block_c = _tile(width)
    stack, rows = pairwise if pairwise is not None else (None, None)
    order, marginals = last or (None, True)
    update_kernel[(blocks(count, block_p),)](
        logits, rows,
        *((stack.corners, stack.weights, stack.compatibilities) if stack else [None] * 3),
        order, output, count, *output.stride(),
        CORNERS=stack.counts if stack else (), LABELS=labels, WIDTH=width,
        TO_ROWS=last is None, MARGINALS=marginals, BLOCK_P=block_p, BLOCK_C=block_c,
    )  # fmt: skip


def _tile(width: int) -> tuple[int, int]:
    """Points and labels of a tile, which holds all labels."""
    labels = power_of_2(width)
    return max(1, TILE // labels), labels


def _require_memory(unary: Tensor, terms: Sequence[LatticeTerm]) -> None:
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
    memory.require(bytes_needed, unary.device, f"mean field of {count} points with {labels} labels")
