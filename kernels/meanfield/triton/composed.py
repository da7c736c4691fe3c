"""Mean field over filters of any kind on a GPU: what lies between the filters is one pass.

    l_p = -U_p - sum_k compatibility_k after_kp F_k(before_k Q)_p                 logits
    Q_p = softmax(l_p),   and before_kp Q_p for each term, which its filter takes

An iteration is the launches of the filters and one more, and a product for each compatibility
that is a matrix. Of a Gaussian of a grid, the convolution along y is part of that pass.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.meanfield.filters import GridFilter
from kernels.meanfield.term import Term
from kernels.meanfield.triton import softmax
from kernels.product import product
from kernels.sizes import blocks, power_of_2

TILE = 1024  # elements: points x labels


@triton.jit(do_not_specialize=["count", "points", "width", "reach"])
def composed_update_kernel(
    unary, filtered, after, compatibilities, taps, outputs, before,
    count, points, width, reach,
    COLUMNS: tl.constexpr, LABELS: tl.constexpr, MARGINALS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Subtract all terms, softmax if wanted, and write it for each term or once.

    Term COLUMNS is not yet convolved along the columns of images of `points` pixels.
    """
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)[None, :]
    real = p < count
    mask = real[:, None] & (c < LABELS)
    offs = p.to(tl.int64)[:, None] * LABELS + c
    logits = -tl.load(unary + offs, mask=mask, other=float("inf"))
    for k in tl.static_range(len(filtered)):
        energy = tl.load(filtered[k] + offs, mask=mask, other=0.0)
        if k == COLUMNS:
            energy *= tl.load(taps)
            y = p % points // width
            for d in range(1, reach):
                step = (d * width).to(tl.int64) * LABELS
                above, below = y >= d, y < points // width - d
                source = filtered[k] + offs
                near = tl.load(source - step, mask=mask & above[:, None], other=0.0)
                near += tl.load(source + step, mask=mask & below[:, None], other=0.0)
                energy += near * tl.load(taps + d)
        if after[k] is not None:
            energy *= tl.load(after[k] + p, mask=real, other=0.0)[:, None]
        if compatibilities[k] is not None:
            energy *= tl.load(compatibilities[k] + c, mask=c < LABELS, other=0.0)
        logits -= energy
    if MARGINALS:
        logits = softmax(logits, real)
    for k in tl.static_range(len(outputs)):
        output = logits
        if before[k] is not None:
            output *= tl.load(before[k] + p, mask=real, other=0.0)[:, None]
        tl.store(outputs[k] + offs, output, mask=mask)


def mean_field(
    unary: Tensor,
    terms: Sequence[Term],
    iterations: int,
    start: Tensor | None = None,
    marginals: bool = True,
) -> Tensor:
    """`reference.mean_field` of float32 `[B, N, C]`; without gradient."""
    if iterations == 0 and start is not None:
        return start
    unary = unary.contiguous()
    output = torch.empty_like(unary)
    if iterations == 0 or not terms or not unary.numel():
        _update(unary, [], [], [(output, None)], marginals)
        return output
    before = [_flat(term.before, len(unary)) for term in terms]
    after = [_flat(term.after, len(unary)) for term in terms]
    inputs = [torch.empty_like(unary) for _ in terms]
    scaled = list(zip(inputs, before, strict=True))
    if start is None:
        _update(unary, [], [], scaled, True)
    else:
        for values, term in zip(inputs, terms, strict=True):
            values.copy_(start if term.before is None else start * term.before)
    for left in reversed(range(iterations)):
        energies = [
            _filtered(term, values, whole=k != _column(terms))
            for k, (term, values) in enumerate(zip(terms, inputs, strict=True))
        ]
        outputs = scaled if left else [(output, None)]
        weighted = list(zip(energies, after, strict=True))
        _update(unary, terms, weighted, outputs, marginals or left > 0)
    return output


def _column(terms: Sequence[Term]) -> int | None:
    """The first term whose filter is a Gaussian of a grid."""
    return next((k for k, t in enumerate(terms) if isinstance(t.filter, GridFilter)), None)


def _filtered(term: Term, values: Tensor, whole: bool) -> Tensor:
    """F(values), times the compatibility if this is a matrix; but for the columns if not whole."""
    of_grid = None if whole else term.filter
    filtered = of_grid.across(values) if isinstance(of_grid, GridFilter) else term.filter(values)
    if term.compatibility.ndim == 1:
        return filtered
    multiplied = torch.empty_like(values)
    product(filtered.flatten(0, 1), term.compatibility.T, multiplied.flatten(0, 1))
    return multiplied


def _update(
    unary: Tensor,
    terms: Sequence[Term],
    energies: Sequence[tuple[Tensor, Tensor | None]],
    outputs: Sequence[tuple[Tensor, Tensor | None]],
    marginals: bool,
) -> None:
    """Set each of `outputs`, with its `before`, from filtered values, each with its `after`."""
    images, points, labels = unary.shape
    block_c = power_of_2(labels)
    block_p = max(1, TILE // block_c)
    column = _column(terms)
    grid = None if column is None else terms[column].filter
    taps, width = (grid.rows, grid.width) if isinstance(grid, GridFilter) else (None, 1)
    count = images * points
    if not count:
        return
    with torch.cuda.device_of(unary):
        composed_update_kernel[(blocks(count, block_p),)](
            unary, *_columns(energies),
            tuple(t.compatibility if t.compatibility.ndim == 1 else None for t in terms),
            taps, *_columns(outputs),
            count, points, width, 0 if taps is None else len(taps),
            COLUMNS=column, LABELS=labels, MARGINALS=marginals, BLOCK_P=block_p, BLOCK_C=block_c,
        )  # fmt: skip


def _columns(
    pairs: Sequence[tuple[Tensor, Tensor | None]],
) -> tuple[tuple[Tensor | None, ...], ...]:
    return tuple(first for first, _ in pairs), tuple(second for _, second in pairs)


def _flat(scale: Tensor | None, images: int) -> Tensor | None:
    """`[B * N]`, of each point of all images."""
    return None if scale is None else scale.expand(images, -1, -1).flatten()
