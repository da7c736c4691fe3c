"""Gaussian filtering over all pairs, in plain PyTorch: the oracle, on any device, float64 included.

    y_i = sum_j K_ij v_j,   K_ij = exp(-|f_i - f_j|^2 / 2)

    d L / d v_i = sum_j K_ij g_j                                  g is the gradient of y
    d L / d f_i = sum_j K_ij (g_i . v_j + g_j . v_i) (f_j - f_i)

N^2 pairs are computed a block of rows at a time and again in the backward, so that no more than a
few blocks exist at once. Distances are sums of squared differences: |f_i|^2 + |f_j|^2 - 2 f_i . f_j
would cancel.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BLOCK_BYTES = 2**24  # of one block of K; a block is at least one row


def filter(values: Tensor, features: Tensor) -> Tensor:
    """Filter `values` `[B, N, C]` by `features` `[B, N, D]`; differentiable in both, repeatedly."""
    return _Exact.apply(values, features)


def forward(values: Tensor, features: Tensor) -> Tensor:
    """`filter` without autograd."""
    output = []
    with torch.autocast(values.device.type, enabled=False):
        for v, f in zip(values, features, strict=True):
            # Two blocks for all of them: fresh ones fragment the heap until it holds all of K.
            blocks = list(_blocks(f))
            size = blocks[0].stop - blocks[0].start, len(f)
            squares, difference = f.new_empty(size), f.new_empty(size)
            filtered = v.new_empty(v.shape)
            for rows in blocks:
                count = rows.stop - rows.start
                kernel = _kernel(f[rows], f, squares[:count], difference[:count])
                filtered[rows] = kernel @ v
            output.append(filtered)
    return torch.stack(output) if output else values.new_zeros(values.shape)


def feature_gradient(grad: Tensor, values: Tensor, features: Tensor) -> Tensor:
    """d L / d f `[B, N, D]`, where `grad` `[B, N, C]` is the gradient of the filtered values."""
    output = []
    with torch.autocast(values.device.type, enabled=False):
        for g, v, f in zip(grad, values, features, strict=True):
            output.append(torch.cat([_row_gradients(rows, g, v, f) for rows in _blocks(f)]))
    return torch.stack(output) if output else features.new_zeros(features.shape)


class _Exact(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, features: Tensor) -> Tensor:
        ctx.save_for_backward(values, features)
        return forward(values, features)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        values, features = ctx.saved_tensors
        to_values, to_features = ctx.needs_input_grad
        return (
            filter(grad, features) if to_values else None,
            feature_gradient(grad, values, features) if to_features else None,
        )


def _blocks(features: Tensor) -> Iterator[slice]:
    """Ranges of rows of K that fit a block."""
    count = len(features)
    rows = max(1, BLOCK_BYTES // max(1, count * features.element_size()))
    for first in range(0, max(1, count), rows):
        yield slice(first, min(first + rows, count))


def _kernel(
    queries: Tensor, features: Tensor, squares: Tensor | None = None, gap: Tensor | None = None
) -> Tensor:
    """exp(-|q_i - f_j|^2 / 2), `[M, N]`: in `squares` by way of `gap`, if no gradient is wanted."""
    squares = queries.new_zeros(len(queries), len(features)) if squares is None else squares.zero_()
    for q, f in zip(queries.T, features.T, strict=True):
        difference = torch.sub(q[:, None], f, out=gap)
        squares.addcmul_(difference, difference)
    return squares.mul_(-0.5).exp_()


def _row_gradients(rows: slice, grad: Tensor, values: Tensor, features: Tensor) -> Tensor:
    """d L / d f of some rows, `[M, D]`."""
    pairs = torch.addmm(grad[rows] @ values.T, values[rows], grad.T)
    pairs = pairs.mul_(_kernel(features[rows], features))
    near = features - features[rows].mean(0)  # or else large features cancel below
    return pairs @ near - pairs.sum(1, keepdim=True) * near[rows]
