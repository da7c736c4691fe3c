"""Multi-rate convolution as one implicit matrix product over all rates: see conv.py.

For many outputs (512 -> 4 x 1024, 2048 -> 3 x 256). One launch covers every rate; the epilogue
holds bias, scale, shift and ReLU; nothing but the output is stored.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kernels.atrous.packing import empty_weight_gradient
from kernels.atrous.triton import weight_grad
from kernels.atrous.triton.conv import conv
from kernels.atrous.triton.layout import pixels_of, taps_of


def forward(
    input: Tensor,
    weight: Tensor,
    out: Tensor,
    rates: Sequence[int],
    sum_rates: bool,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
) -> None:
    """Set `out` `[B, channels, H, W]`."""
    x, _ = pixels_of(input)
    conv(
        x, taps_of(weight), out, rates,
        sum_rates=sum_rates, bias=bias, scale=scale, shift=shift, relu=relu,
    )  # fmt: skip


def gradients(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    rates: Sequence[int],
    sum_rates: bool,
    of_input: Tensor | None,
    needs_weight: bool,
) -> Tensor | None:
    """Set `of_input`, where given, and return the gradient to `weight`, where needed.

    grad: d z, `[B, channels, H, W]`.
    """
    g, rate_stride = pixels_of(grad, rates=1 if sum_rates else len(rates))
    rate_stride = 0 if sum_rates else rate_stride
    if of_input is not None:
        backward = taps_of(weight, pad_outputs=True).transposed(outputs=weight.shape[2])
        conv(
            g, backward, of_input, rates,
            sum_rates=True, direction=-1, x_rate_stride=rate_stride,
        )  # fmt: skip
    if not needs_weight:
        return None
    x, _ = pixels_of(input)
    gradient = empty_weight_gradient(weight)
    weight_grad.correlate(x, g, rates, rate_stride, gradient)
    return gradient
