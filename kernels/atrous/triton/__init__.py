"""Multi-rate atrous convolution in Triton: two algorithms, forward and backward.

    shift     multiply, then shift: few outputs          shift.py
    implicit  one implicit matrix product: many outputs  implicit.py

    conv.py         the product over pixels, forward and for the gradient to the input
    weight_grad.py  the product over pixels for the gradient to the weights
    layout.py       how tensors lie in memory
    configs.py      tile sizes, from configs/*.json

The equation is that of kernels/atrous/reference.py, its backward that of kernels/atrous/ops.py.
Sums are in float32 and in a fixed order: two runs give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.atrous.packing import empty_weight_gradient
from kernels.atrous.triton import implicit, shift
from kernels.atrous.triton.conv import dot
from kernels.atrous.triton.layout import pixels_of, taps_of


def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rates: Sequence[int],
    fuse: str,
    scale: Tensor | None,
    shift_by: Tensor | None,
    activation: str | None,
    algorithm: str,
    rows: Tensor | None,
    out: Tensor,
) -> None:
    """Set `out`; `rows` are the shift algorithm's packed weights, None: packed here."""
    if out.numel() == 0:
        return
    rates = _within(rates, input)
    sum_rates, relu = fuse == "sum", activation == "relu"
    bias, scale, shift_by = (None if t is None else t.contiguous() for t in (bias, scale, shift_by))
    tail = rates, sum_rates, bias, scale, shift_by, relu
    if algorithm == "shift":
        rows = shift.pack(weight, sum_rates) if rows is None else rows
        shift.forward(input, rows, out, weight.shape[-1], *tail)
    else:
        implicit.forward(input, weight, out, *tail)


def backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rates: Sequence[int],
    fuse: str,
    scale: Tensor | None,
    activated: Tensor | None,
    needs: Sequence[bool],
    algorithm: str,
    rows: Tensor | None,
    of_input: Tensor,
) -> list[Tensor]:
    """Gradients of input, weight, bias, scale and shift: those that `needs` asks for, in order.

    of_input: an unset tensor for the gradient to the input. activated: the forward's output where a
    ReLU made it.
    """
    rates = _within(rates, input)
    sum_rates = fuse == "sum"
    needs_input, needs_weight, needs_bias, needs_scale, needs_shift = needs
    if activated is not None:
        grad = grad.masked_fill(activated <= 0, 0)
    total = None  # of grad, by channel
    if needs_bias or needs_shift:
        total = grad.sum((0, 2, 3), dtype=torch.float32)
    of_weight = of_bias = of_scale = of_shift = None
    if input.numel() == 0:
        of_input.zero_()
        of_weight = empty_weight_gradient(weight).zero_()
        of_scale = None if scale is None else torch.zeros_like(scale)
    else:
        if needs_scale:
            dense = grad.contiguous(memory_format=torch.channels_last)
            flat = None if bias is None else bias.contiguous()
            x, _ = pixels_of(input)
            of_scale = dot(x, taps_of(weight), rates, flat, dense)
        if needs_input or needs_weight:
            dz = grad if scale is None else grad * scale[:, None, None]
            arguments = rates, sum_rates, of_input if needs_input else None, needs_weight
            if algorithm == "shift":
                rows = shift.pack(weight, sum_rates) if rows is None else rows
                of_weight = shift.gradients(dz, input, weight, rows, *arguments)
            else:
                of_weight = implicit.gradients(dz, input, weight, *arguments)
    if total is not None:
        of_shift = total
        of_bias = total.clone() if scale is None else total * scale  # outputs share no memory
        of_bias = of_bias.repeat(len(rates)) if sum_rates else of_bias
        of_bias = of_bias.unflatten(0, (len(rates), -1))
    found = (of_input, of_weight, of_bias, of_scale, of_shift)
    return [_like(t, input) for t, needed in zip(found, needs, strict=True) if needed]


def _within(rates: Sequence[int], input: Tensor) -> tuple[int, ...]:
    """Rates that look beyond the map made as small as does that: offsets are 32-bit integers."""
    size = max(input.shape[2:])
    return tuple(min(rate, size) for rate in rates)


def _like(gradient: Tensor | None, input: Tensor) -> Tensor:
    """A gradient that was asked for, in the dtype of the tensors."""
    assert gradient is not None
    return gradient.to(input.dtype)
