"""Implicit-GEMM convolution at several rates, in Triton.

    z[p, r, n] = sum_{tap, k} x[p + d * rate_r * tap, k] * w_r[n, tap, k]        d = 1 or -1

    rows of the product: a tile of BLOCK_M pixels, consecutive over the whole batch
    columns:             BLOCK_N outputs of one rate, or of all rates added up (FUSE "sum")
    loops:               rates, then the live taps and in each the channels, BLOCK_K at a time

                 k ->                        n ->
          p  [ x shifted by a tap ]  x  k [ w of that tap ]  =>  acc [BLOCK_M, BLOCK_N] in fp32

A tap that lies outside the map for every pixel of a tile is skipped: with rates 6 to 24 on a map of
41 x 41, a fifth of them. The others are a range of rows and one of columns. Taps and channels are
one loop, so that the pipeline of loads drains once a rate and not once a tap. It steps by carries,
as an odometer does: with `//` and `%` of one counter such a loop miscompiles with 8 warps on an
H100 (pytorch issue 173068).

With d = -1 and the strides of w exchanged this is the gradient to the input, and with one rate and
a 1 x 1 kernel the plain matrix product that the shift algorithm wants.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from kernels.atrous.triton import configs
from kernels.atrous.triton.layout import Epilogue, Pixels, Taps
from kernels.sizes import blocks

OUTSIDE = tl.constexpr(-(2**30))  # a row that no tap of any map sees


@triton.jit
def live_taps(first, last, size, step, REACH: tl.constexpr):
    """The first and the last tap t, of -REACH to REACH, that sees some of [0, size).

    From [first, last] tap t sees [first + t * step, last + t * step]: the live taps are a range.
    """
    before, after = 0, 0
    for t in tl.static_range(1, REACH + 1):
        before += tl.where((last - t * step >= 0) & (first - t * step < size), 1, 0)
        after += tl.where((last + t * step >= 0) & (first + t * step < size), 1, 0)
    return -before, after


@triton.jit
def conv_kernel(
    x_ptr, w_ptr, out_ptr, bias_ptr, scale_ptr, shift_ptr,
    pixels, height, width, inputs, outputs,
    x_stride, x_rate_stride,
    w_rate_stride, w_output_stride, w_tap_stride, w_input_stride,
    out_image_stride, out_pixel_stride, out_channel_stride,
    RATES: tl.constexpr, KERNEL: tl.constexpr, DIRECTION: tl.constexpr, FUSE: tl.constexpr,
    RELU: tl.constexpr, PRECISION: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One tile of z, its epilogue, and the store."""
    REACH: tl.constexpr = KERNEL // 2
    tiles_m = tl.cdiv(pixels, BLOCK_M)
    tiles_n = tl.cdiv(outputs, BLOCK_N)
    pid_m, pid_n = tl.swizzle2d(
        tl.program_id(0) // tiles_n, tl.program_id(0) % tiles_n, tiles_m, tiles_n, GROUP
    )
    area = height * width
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    real_m, real_n = offs_m < pixels, offs_n < outputs
    image = offs_m // area
    y = tl.where(real_m, (offs_m % area) // width, OUTSIDE)
    x = offs_m % width

    # The rows and columns of the map that this tile covers; all of them where images meet.
    first = pid_m * BLOCK_M
    last = tl.minimum(first + BLOCK_M, pixels) - 1
    within = first // area == last // area
    top = tl.where(within, (first % area) // width, 0)
    bottom = tl.where(within, (last % area) // width, height - 1)
    left = tl.where(within & (top == bottom), first % width, 0)
    right = tl.where(within & (top == bottom), last % width, width - 1)

    # From the first pixel and output of the tile, and from the first channel.
    x_tile = x_ptr + tl.cast(first, tl.int64) * x_stride
    w_tile = w_ptr + tl.cast(pid_n * BLOCK_N, tl.int64) * w_output_stride
    offs_a = tl.arange(0, BLOCK_M)[:, None] * x_stride + offs_k[None, :]
    offs_b = tl.arange(0, BLOCK_N)[None, :] * w_output_stride + offs_k[:, None] * w_input_stride

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    rate_first = 0 if FUSE == "sum" else tl.program_id(1)
    rate_last = len(RATES) if FUSE == "sum" else rate_first + 1
    for r in range(rate_first, rate_last):
        rate = RATES[0]
        for branch in tl.static_range(1, len(RATES)):
            rate = tl.where(r == branch, RATES[branch], rate)
        step = DIRECTION * rate
        up, down = live_taps(top, bottom, height, step, REACH)
        west, east = live_taps(left, right, width, step, REACH)
        dy, dx, k = up * step, west * step, 0
        x_tap = x_tile + tl.cast(r, tl.int64) * x_rate_stride
        x_tap += tl.cast(dy * width + dx, tl.int64) * x_stride
        w_tap = w_tile + tl.cast(r, tl.int64) * w_rate_stride
        w_tap += ((up + REACH) * KERNEL + west + REACH) * w_tap_stride
        # From the last channels of a tap to the first of the next one, in its row or in the next.
        blocks = tl.cdiv(inputs, BLOCK_K)
        across = tl.cast((blocks - 1) * BLOCK_K, tl.int64)
        x_column = tl.cast(step, tl.int64) * x_stride - across
        x_row = tl.cast(step, tl.int64) * (width - (east - west)) * x_stride - across
        w_column = w_tap_stride - across * w_input_stride
        w_row = w_column + (KERNEL - 1 - (east - west)) * w_tap_stride
        for _ in range((down - up + 1) * (east - west + 1) * blocks):
            inside = ((y + dy).to(tl.uint32) < height) & ((x + dx).to(tl.uint32) < width)
            if EVEN_K:
                a = tl.load(x_tap + offs_a, mask=inside[:, None], other=0.0)
                b = tl.load(w_tap + offs_b, mask=real_n[None, :], other=0.0)
            else:
                rest = offs_k < inputs - k
                a = tl.load(x_tap + offs_a, mask=inside[:, None] & rest[None, :], other=0.0)
                b = tl.load(w_tap + offs_b, mask=real_n[None, :] & rest[:, None], other=0.0)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
            x_step, w_step = BLOCK_K, BLOCK_K * w_input_stride
            k += BLOCK_K
            if KERNEL > 1:
                ends_tap = k >= inputs
                ends_row = ends_tap & (dx == east * step)
                x_step = tl.where(ends_row, x_row, tl.where(ends_tap, x_column, x_step))
                w_step = tl.where(ends_row, w_row, tl.where(ends_tap, w_column, w_step))
                k = tl.where(ends_tap, 0, k)
                dx = tl.where(ends_row, west * step, tl.where(ends_tap, dx + step, dx))
                dy = tl.where(ends_row, dy + step, dy)
            x_tap += x_step
            w_tap += w_step

    channels = rate_first * outputs + offs_n
    if bias_ptr is not None:
        if FUSE == "sum":
            for i in tl.static_range(len(RATES)):
                bias = tl.load(bias_ptr + i * outputs + offs_n, mask=real_n, other=0.0)
                acc += bias.to(tl.float32)[None, :]
        else:
            acc += tl.load(bias_ptr + channels, mask=real_n, other=0.0).to(tl.float32)[None, :]
    mask = real_m[:, None] & real_n[None, :]
    position = image.to(tl.int64) * out_image_stride
    position += (offs_m - image * area).to(tl.int64) * out_pixel_stride
    offs_out = position[:, None] + channels.to(tl.int64)[None, :] * out_channel_stride
    if scale_ptr is not None:
        acc *= tl.load(scale_ptr + channels, mask=real_n, other=0.0).to(tl.float32)[None, :]
    if shift_ptr is not None:
        acc += tl.load(shift_ptr + channels, mask=real_n, other=0.0).to(tl.float32)[None, :]
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
    epilogue: Epilogue = Epilogue(),  # noqa: B008 (immutable)
    direction: int = 1,
    x_rate_stride: int = 0,
) -> None:
    """Convolve x with `weight` into `out` `[B, channels, H, W]` of any strides.

    Args:
        x: the input's pixels; those of rate r begin x_rate_stride * r channels further on.
        weight: of len(rates) rates; its outputs become channels, its inputs are those of x.
        out: channels are the outputs (fuse "sum") or rates x outputs.
        direction: 1 looks at p + rate * tap, -1 at p - rate * tap.
    """
    inner = x.inputs * weight.kernel**2
    config = configs.select("conv", x.tensor, x.pixels, weight.outputs, inner)
    image_stride, channel_stride, _, pixel_stride = out.stride()
    tiles = blocks(x.pixels, config.block_m) * blocks(weight.outputs, config.block_n)
    conv_kernel[(tiles, 1 if fuse == "sum" else len(rates))](
        x.tensor, weight.tensor, out, *epilogue[:3],
        x.pixels, x.height, x.width, x.inputs, weight.outputs,
        x.stride, x_rate_stride,
        weight.rate_stride, weight.output_stride, weight.tap_stride, weight.input_stride,
        image_stride, pixel_stride, channel_stride,
        RATES=tuple(rates), KERNEL=weight.kernel, DIRECTION=direction, FUSE=fuse,
        RELU=epilogue.activation == "relu", PRECISION=configs.precision(x.tensor.dtype),
        EVEN_K=x.inputs % config.block_k == 0,
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k, GROUP=8,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
