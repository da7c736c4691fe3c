"""Implicit-GEMM convolution at several rates, in Triton.

    z[p, r, n] = sum_{tap, k} x[p + d * rate_r * tap, k] * w_r[n, tap, k]        d = 1 or -1

    rows of the product: a tile of BLOCK_M pixels, consecutive over the whole batch
    columns:             BLOCK_N outputs of one rate, or of all rates added up (FUSE "sum")
    inner loops:         rates > taps > channels, BLOCK_K at a time

                 k ->                        n ->
          p  [ x shifted by a tap ]  x  k [ w of that tap ]  =>  acc [BLOCK_M, BLOCK_N] in fp32

A tap that lies outside the map for every pixel of a tile is skipped: with rates 6 to 24 on a map of
41 x 41, a fifth of them. The loops are nested on purpose: one flattened loop with `//` and `%`
miscompiles with 8 warps on an H100 (pytorch issue 173068).

With `TMA` (sm_90 and later, where a configuration says so) the bulk copy engine brings the tiles of
w, and those of x where the kernel is 1 x 1. x shifted by a tap stays with masked loads: the engine
wants rectangles of pixels, which on a map of 41 x 41 are a third emptier than runs of 128.

With d = -1 and the strides of w exchanged this is the gradient to the input, and with one rate and
a 1 x 1 kernel the plain matrix product that the shift algorithm wants. `DOT` stores, instead of z,
the sum over the tile's pixels of grad * z: the gradient to `scale`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.atrous.triton import configs
from kernels.atrous.triton.layout import Pixels, Taps


@triton.jit
def conv_kernel(
    x_ptr, w_ptr, out_ptr, bias_ptr, scale_ptr, shift_ptr, grad_ptr,
    pixels, height, width, inputs, outputs,
    x_stride, x_rate_stride,
    w_rate_stride, w_output_stride, w_tap_stride, w_input_stride,
    out_image_stride, out_pixel_stride, out_channel_stride,
    RATES: tl.constexpr, KERNEL: tl.constexpr, DIRECTION: tl.constexpr, FUSE: tl.constexpr,
    RELU: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    TMA: tl.constexpr = False, TRANSPOSED: tl.constexpr = False,
):  # fmt: skip
    """One tile of z, its epilogue, and the store."""
    tiles_m = tl.cdiv(pixels, BLOCK_M)
    tiles_n = tl.cdiv(outputs, BLOCK_N)
    pid_m, pid_n = tl.swizzle2d(
        tl.program_id(0) // tiles_n, tl.program_id(0) % tiles_n, tiles_m, tiles_n, GROUP
    )
    area = height * width
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    image = offs_m // area
    y = (offs_m % area) // width
    x = offs_m % width

    # The rows and columns of the map that this tile covers; all of them where images meet.
    first = pid_m * BLOCK_M
    last = tl.minimum(first + BLOCK_M, pixels) - 1
    within = first // area == last // area
    top = tl.where(within, (first % area) // width, 0)
    bottom = tl.where(within, (last % area) // width, height - 1)
    left = tl.where(within & (top == bottom), first % width, 0)
    right = tl.where(within & (top == bottom), last % width, width - 1)

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    rate_first = 0 if FUSE == "sum" else tl.program_id(1)
    rate_last = len(RATES) if FUSE == "sum" else rate_first + 1
    for r in range(rate_first, rate_last):
        rate = RATES[0]
        for i in tl.static_range(1, len(RATES)):
            rate = tl.where(r == i, RATES[i], rate)
        if not TMA:
            w_rate = w_ptr + tl.cast(r, tl.int64) * w_rate_stride
        for i in range(KERNEL):
            dy = DIRECTION * (i - KERNEL // 2) * rate
            if (bottom + dy >= 0) & (top + dy < height):
                for j in range(KERNEL):
                    dx = DIRECTION * (j - KERNEL // 2) * rate
                    if (right + dx >= 0) & (left + dx < width):
                        tap = i * KERNEL + j
                        inside = (y + dy >= 0) & (y + dy < height) & (offs_m < pixels)
                        inside = inside & (x + dx >= 0) & (x + dx < width)
                        if not TMA or KERNEL > 1:
                            source = (offs_m + dy * width + dx).to(tl.int64) * x_stride
                            source += r * x_rate_stride
                            x_ptrs = x_ptr + source[:, None] + offs_k[None, :]
                        if not TMA:
                            w_ptrs = w_rate + tap * w_tap_stride
                            w_ptrs += (
                                offs_n[None, :] * w_output_stride + offs_k[:, None] * w_input_stride
                            )
                        for k in range(0, inputs, BLOCK_K):
                            rest = offs_k < inputs - k
                            if TMA and KERNEL == 1:
                                a = x_ptr.load([pid_m * BLOCK_M, k])
                            elif EVEN_K:
                                a = tl.load(x_ptrs, mask=inside[:, None], other=0.0)
                                x_ptrs += BLOCK_K
                            else:
                                a = tl.load(x_ptrs, mask=inside[:, None] & rest[None, :], other=0.0)
                                x_ptrs += BLOCK_K
                            if TMA and not TRANSPOSED:
                                row = r * (w_rate_stride // w_output_stride) + pid_n * BLOCK_N
                                b = w_ptr.load([row, tap * w_tap_stride + k]).T
                            elif TMA:
                                row = r * (w_rate_stride // w_input_stride) + k
                                b = w_ptr.load([row, tap * w_tap_stride + pid_n * BLOCK_N])
                            elif EVEN_K:
                                b = tl.load(w_ptrs, mask=offs_n[None, :] < outputs, other=0.0)
                                w_ptrs += BLOCK_K * w_input_stride
                            else:
                                mask_b = (offs_n[None, :] < outputs) & rest[:, None]
                                b = tl.load(w_ptrs, mask=mask_b, other=0.0)
                                w_ptrs += BLOCK_K * w_input_stride
                            acc = tl.dot(a, b, acc, input_precision=PRECISION)

    channels = rate_first * outputs + offs_n
    real = offs_n < outputs
    if bias_ptr is not None:
        if FUSE == "sum":
            for i in tl.static_range(len(RATES)):
                bias = tl.load(bias_ptr + i * outputs + offs_n, mask=real, other=0.0)
                acc += bias.to(tl.float32)[None, :]
        else:
            acc += tl.load(bias_ptr + channels, mask=real, other=0.0).to(tl.float32)[None, :]
    mask = (offs_m < pixels)[:, None] & real[None, :]
    position = image.to(tl.int64) * out_image_stride
    position += (offs_m - image * area).to(tl.int64) * out_pixel_stride
    offs_out = position[:, None] + channels.to(tl.int64)[None, :] * out_channel_stride
    if DOT:
        grad = tl.load(grad_ptr + offs_out, mask=mask, other=0.0).to(tl.float32)
        partial = tl.sum(acc * grad, axis=0)
        rates = len(RATES)
        tl.store(out_ptr + pid_m * (rates * outputs) + channels, partial, mask=real)
    else:
        if scale_ptr is not None:
            acc *= tl.load(scale_ptr + channels, mask=real, other=0.0).to(tl.float32)[None, :]
        if shift_ptr is not None:
            acc += tl.load(shift_ptr + channels, mask=real, other=0.0).to(tl.float32)[None, :]
        if RELU:
            acc = tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL)  # as PyTorch's
        tl.store(out_ptr + offs_out, acc.to(out_ptr.dtype.element_ty), mask=mask)


def conv(
    x: Pixels,
    weight: Taps,
    out: Tensor,
    rates: Sequence[int],
    *,
    fuse: str,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str | None = None,
    direction: int = 1,
    x_rate_stride: int = 0,
    grad: Tensor | None = None,
) -> None:
    """Convolve x with `weight` into `out` `[B, channels, H, W]` of any strides.

    Args:
        x: the input's pixels; those of rate r begin x_rate_stride * r channels further on.
        weight: of len(rates) rates; its outputs become channels, its inputs are those of x.
        out: channels are the outputs (fuse "sum") or rates x outputs. With `grad`, float32
            `[tiles, rates x outputs]` from `dot_partials`: the sums of grad * z.
        direction: 1 looks at p + rate * tap, -1 at p - rate * tap.
        grad: `[B, rates x outputs, H, W]`.
    """
    config = configs.select("conv", x.tensor, x.pixels, weight.outputs, x.inputs * weight.taps)
    x_source, w_source = x.tensor, weight.tensor
    tma = config.tma and x_source.data_ptr() % 16 == 0 and w_source.data_ptr() % 16 == 0
    tma = tma and (weight.kernel > 1 or len(rates) == 1)  # x of one rate is not cut off by it
    if tma:
        x_source, w_source = _described(x, weight, config)
    layout = out if grad is None else grad
    image_stride, channel_stride, _, pixel_stride = layout.stride()
    tiles = triton.cdiv(x.pixels, config.block_m) * triton.cdiv(weight.outputs, config.block_n)
    with configs.on_device_of(x.tensor):
        conv_kernel[(tiles, 1 if fuse == "sum" else len(rates))](
            x_source, w_source, out, bias, scale, shift, grad,
            x.pixels, x.height, x.width, x.inputs, weight.outputs,
            x.stride, x_rate_stride,
            weight.rate_stride, weight.output_stride, weight.tap_stride, weight.input_stride,
            image_stride, pixel_stride, channel_stride,
            RATES=tuple(rates), KERNEL=weight.kernel, DIRECTION=direction, FUSE=fuse,
            RELU=activation == "relu", DOT=grad is not None,
            PRECISION=configs.precision(x.tensor.dtype), EVEN_K=x.inputs % config.block_k == 0,
            BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k, GROUP=8,
            TMA=tma, TRANSPOSED=weight.input_stride != 1,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip


def _described(x: Pixels, weight: Taps, config: configs.Config) -> tuple[Any, Any]:
    """x and w for the bulk copy engine: w as a table, and x too where no tap shifts it."""
    rows = weight.tensor.view(-1, max(weight.output_stride, weight.input_stride))
    block = [config.block_n, config.block_k]
    if weight.input_stride != 1:
        block.reverse()
    table = TensorDescriptor.from_tensor(rows, block)
    if weight.kernel > 1:
        return x.tensor, table
    pixels = x.tensor.view(-1, x.stride)[:, : x.inputs]
    return TensorDescriptor.from_tensor(pixels, [config.block_m, config.block_k]), table


def dot(x: Pixels, weight: Taps, rates: Sequence[int], bias: Tensor | None, grad: Tensor) -> Tensor:
    """sum_p grad * (convolution + bias) for each channel, float32 `[rates x outputs]`.

    What the convolution gives is added up tile by tile and never stored.
    """
    config = configs.select("conv", x.tensor, x.pixels, weight.outputs, x.inputs * weight.taps)
    tiles = triton.cdiv(x.pixels, config.block_m)
    partial = torch.empty(
        tiles, len(rates) * weight.outputs, dtype=torch.float32, device=grad.device
    )
    conv(x, weight, partial, rates, fuse="concat", bias=bias, grad=grad)
    return partial.sum(0)
