"""Multi-rate convolution as one implicit matrix product over all rates: see conv.py.

For many outputs (512 -> 4 x 1024, 2048 -> 3 x 256). One launch covers every rate; the epilogue
holds bias, scale, shift and ReLU; nothing but the output is stored.
"""

from collections.abc import Sequence

from torch import Tensor

from kernels.atrous.triton import weight_grad
from kernels.atrous.triton.conv import conv
from kernels.atrous.triton.layout import Epilogue, pixels_of, taps_of


def forward(
    input: Tensor, weight: Tensor, rates: Sequence[int], fuse: str, epilogue: Epilogue, out: Tensor
) -> None:
    """Set `out` `[B, channels, H, W]`."""
    x, _ = pixels_of(input)
    conv(x, taps_of(weight), out, rates, fuse=fuse, epilogue=epilogue)


def gradients(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    rates: Sequence[int],
    fuse: str,
    of_input: Tensor | None,
    of_weight: Tensor | None,
) -> None:
    """Set `of_input` to sum_r convolve(weight_r, grad_r), `of_weight` to correlate(input, grad).

    grad: `[B, channels, H, W]` of any strides. of_weight: with Cin contiguous.
    """
    g, rate_stride = pixels_of(grad, rates=1 if fuse == "sum" else len(rates))
    rate_stride = 0 if fuse == "sum" else rate_stride
    if of_input is not None:
        transposed = taps_of(weight, pad_outputs=True).transposed(outputs=weight.shape[2])
        conv(g, transposed, of_input, rates, fuse="sum", direction=-1, x_rate_stride=rate_stride)
    if of_weight is not None:
        x, _ = pixels_of(input)
        weight_grad.correlate(x, g, rates, rate_stride, of_weight)
