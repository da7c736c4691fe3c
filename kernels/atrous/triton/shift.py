"""Multi-rate convolution as multiply-then-shift: one matrix product, then one gather, in Triton.

    m[p, t] = x[p] . w_t                 every tap t of every rate, [pixels, taps * outputs]
    y[p]    = sum_t m[p + offset_t, t]

For a few outputs (2048 -> 21) the product reads the input once and has columns enough, 693 for four
rates, where a convolution of 21 outputs leaves a third of its tile empty and reads the input once a
tap. The centre taps of a sum see the same pixel at every rate: their weights are added up first, so
that four rates have 33 taps and not 36.

    column:   t * outputs + o
    t, sum:   0 is the centre; then, rate by rate, the other taps in row-major order
    t, concat: rate by rate, the taps in row-major order

The gather reads the slices in a fixed order, without atomics: two runs give the same bits. m is
float32, in half precision too: where taps cancel, the sum is far smaller than what it adds up, and
a rounding of each slice would not be. It takes at most `WORKSPACE` bytes; beyond that, images are
taken in groups. A map that does not fit by itself is for the implicit product (`cost.largest_map`).

Backward: g'[p, t] = g[p - offset_t] spread out in the same columns, in the input's dtype; then two
products, d x = g' w and G = g'^T x (kernels/atrous/ops.py).
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.atrous.triton import weight_grad
from kernels.atrous.triton.conv import conv
from kernels.atrous.triton.layout import (
    WORKSPACE,
    Epilogue,
    Taps,
    aligned,
    groups,
    pixels_of,
    tap_blocks,
)
from kernels.sizes import blocks

BLOCK_P = 16  # pixels that a program gathers: many small programs hide the latency
SPREAD_P, SPREAD_N = 32, 128  # pixels and columns that one spreads
PACK_ROWS, PACK_INPUTS = 16, 128


@triton.jit(do_not_specialize=["pixels"])
def gather_kernel(
    m_ptr, out_ptr, bias_ptr, scale_ptr, shift_ptr,
    pixels, height, width, outputs, m_stride,
    out_image_stride, out_pixel_stride, out_channel_stride,
    RATES: tl.constexpr, KERNEL: tl.constexpr, FUSE: tl.constexpr, RELU: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y of some images from their slices; both fit `WORKSPACE`, and so offsets fit 32 bits."""
    taps: tl.constexpr = KERNEL * KERNEL
    rates: tl.constexpr = len(RATES)
    rate_of_program = 0 if FUSE == "sum" else tl.program_id(2)
    area = height * width
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    image = p // area
    y = (p % area) // width
    x = p % width
    real_p, real_c = p < pixels, c < outputs
    channels = rate_of_program * outputs + c

    acc = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    if bias_ptr is not None:
        if FUSE == "sum":
            for branch in tl.static_range(rates):
                bias = tl.load(bias_ptr + branch * outputs + c, mask=real_c, other=0.0)
                acc += bias.to(tl.float32)[None, :]
        else:
            acc += tl.load(bias_ptr + channels, mask=real_c, other=0.0).to(tl.float32)[None, :]

    for r in range(rate_of_program, rates if FUSE == "sum" else rate_of_program + 1):
        rate = RATES[0]
        for branch in tl.static_range(1, rates):
            rate = tl.where(r == branch, RATES[branch], rate)
        for i in range(KERNEL):
            dy = (i - KERNEL // 2) * rate
            for j in tl.static_range(KERNEL):
                dx = (j - KERNEL // 2) * rate
                tap = i * KERNEL + j
                inside = (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
                if FUSE == "sum":
                    block = 1 + r * (taps - 1) + tap - tl.where(tap > taps // 2, 1, 0)
                    block = tl.where(tap == taps // 2, 0, block)
                    inside = inside & ((tap != taps // 2) | (r == 0))
                else:
                    block = r * taps + tap
                offs = (p + dy * width + dx)[:, None] * m_stride + (block * outputs + c)[None, :]
                mask = (inside & real_p)[:, None] & real_c[None, :]
                acc += tl.load(m_ptr + offs, mask=mask, other=0.0)

    if scale_ptr is not None:
        acc *= tl.load(scale_ptr + channels, mask=real_c, other=0.0).to(tl.float32)[None, :]
    if shift_ptr is not None:
        acc += tl.load(shift_ptr + channels, mask=real_c, other=0.0).to(tl.float32)[None, :]
    if RELU:
        acc = tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL)
    position = image * out_image_stride + (p - image * area) * out_pixel_stride
    offs_out = position[:, None] + channels[None, :] * out_channel_stride
    mask = real_p[:, None] & real_c[None, :]
    tl.store(out_ptr + offs_out, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def rate_and_tap(block, TAPS: tl.constexpr, FUSE: tl.constexpr):
    """Which tap of which rate a block of columns is of; the centre of a sum counts as rate 0's."""
    if FUSE == "sum":
        others: tl.constexpr = TAPS - 1 if TAPS > 1 else 1
        r = tl.where(block == 0, 0, (block - 1) // others)
        tap = (block - 1) % others
        tap = tl.where(block == 0, TAPS // 2, tl.where(tap >= TAPS // 2, tap + 1, tap))
    else:
        r = block // TAPS
        tap = block % TAPS
    return r, tap


@triton.jit(do_not_specialize=["pixels"])
def spread_kernel(
    g_ptr, out_ptr, pixels, height, width, outputs, columns, padded,
    g_image_stride, g_channel_stride, g_row_stride, g_column_stride,
    RATES: tl.constexpr, KERNEL: tl.constexpr, FUSE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """g'[p, t * outputs + o] = g[p - offset_t, o] of some images; padding is 0."""
    taps: tl.constexpr = KERNEL * KERNEL
    area = height * width
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    block = n // outputs
    channel = n % outputs
    r, tap = rate_and_tap(block, taps, FUSE)
    if FUSE == "concat":
        channel += r * outputs
    rate = tl.zeros((BLOCK_N,), tl.int32) + RATES[0]
    for i in tl.static_range(1, len(RATES)):
        rate = tl.where(r == i, RATES[i], rate)
    dy = (tap // KERNEL - KERNEL // 2) * rate
    dx = (tap % KERNEL - KERNEL // 2) * rate

    image = p // area
    y = ((p % area) // width)[:, None] - dy[None, :]
    x = (p % width)[:, None] - dx[None, :]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    inside = inside & (p < pixels)[:, None] & (n < columns)[None, :]
    offs = image.to(tl.int64)[:, None] * g_image_stride
    offs += y.to(tl.int64) * g_row_stride + x.to(tl.int64) * g_column_stride
    offs += channel.to(tl.int64)[None, :] * g_channel_stride
    g = tl.load(g_ptr + offs, mask=inside, other=0.0)
    offs_out = p[:, None] * padded + n[None, :]
    tl.store(out_ptr + offs_out, g, mask=(p < pixels)[:, None] & (n < padded)[None, :])


@triton.jit
def pack_kernel(
    w_ptr, rows_ptr, inputs, outputs, columns, rows, padded,
    w_rate_stride, w_output_stride, w_input_stride, w_tap_y_stride, w_tap_x_stride,
    RATES: tl.constexpr, KERNEL: tl.constexpr, FUSE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Row t * outputs + o of the packed weights: w of that tap, or the sum over rates (centre)."""
    taps: tl.constexpr = KERNEL * KERNEL
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (row < columns)[:, None] & (offs < inputs)[None, :]
    block = row // outputs
    r, tap = rate_and_tap(block, taps, FUSE)
    start = r.to(tl.int64) * w_rate_stride + (row % outputs).to(tl.int64) * w_output_stride
    start += (tap // KERNEL) * w_tap_y_stride + (tap % KERNEL) * w_tap_x_stride
    w_ptrs = w_ptr + start[:, None] + offs.to(tl.int64)[None, :] * w_input_stride
    w = tl.load(w_ptrs, mask=mask, other=0.0).to(tl.float32)
    if FUSE == "sum":
        centre = mask & (block == 0)[:, None]
        for _ in tl.static_range(1, RATES):
            w_ptrs += w_rate_stride
            w += tl.load(w_ptrs, mask=centre, other=0.0).to(tl.float32)
    out = rows_ptr + row.to(tl.int64)[:, None] * padded + offs[None, :]
    inside = (row < rows)[:, None] & (offs < padded)[None, :]
    tl.store(out, w.to(rows_ptr.dtype.element_ty), mask=inside)


def pack(weight: Tensor, fuse: str) -> Taps:
    """The columns of the product, `[tap blocks * Cout, Cin]`: one tap, both padded to 16."""
    rates, outputs, inputs, kernel, _ = weight.shape
    columns = tap_blocks(rates, kernel, fuse) * outputs
    rows, padded = aligned(columns), aligned(inputs)
    packed = weight.new_empty(rows, padded)
    pack_kernel[blocks(rows, PACK_ROWS), blocks(padded, PACK_INPUTS)](
        weight, packed, inputs, outputs, columns, rows, padded, *weight.stride(),
        RATES=rates, KERNEL=kernel, FUSE=fuse, ROWS=PACK_ROWS, BLOCK=PACK_INPUTS,
    )  # fmt: skip
    return Taps(packed, 1, rows, 0, padded, 0, 1)


def forward(
    input: Tensor, weight: Tensor, rates: Sequence[int], fuse: str, epilogue: Epilogue, out: Tensor
) -> None:
    """Set `out` `[B, channels, H, W]`, which is dense. An image's slices fit the workspace."""
    x, _ = pixels_of(input)
    taps = pack(weight, fuse)
    columns, area = taps.outputs, x.height * x.width
    _, outputs, _, kernel, _ = weight.shape
    parts = groups(x.batch, area, WORKSPACE // (4 * columns))
    shape = min(x.batch, parts[0].stop), columns, x.height, x.width
    slices = torch.empty(
        shape, dtype=torch.float32, device=out.device, memory_format=torch.channels_last
    )
    block_c = 16 if outputs <= 16 else 32
    image_stride, channel_stride, _, pixel_stride = out.stride()
    for part in parts:
        images, of = (x, out) if len(parts) == 1 else (x.images(part), out[part])
        conv(images, taps, slices, (1,), fuse="sum")
        grid = blocks(images.pixels, BLOCK_P), blocks(outputs, block_c), out.shape[1] // outputs
        gather_kernel[grid](
            slices, of, *epilogue[:3],
            images.pixels, x.height, x.width, outputs, columns,
            image_stride, pixel_stride, channel_stride,
            RATES=tuple(rates), KERNEL=kernel, FUSE=fuse, RELU=epilogue.activation == "relu",
            BLOCK_P=BLOCK_P, BLOCK_C=block_c,
        )  # fmt: skip


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

    grad: `[B, channels, H, W]` of any strides. of_weight: with Cin contiguous, and small enough for
    one float32 copy to fit `PARTIAL_SUMS` (`cost.weight_gradient_impl`).
    """
    x, _ = pixels_of(input)
    _, outputs, inputs, kernel, _ = weight.shape
    used = tap_blocks(len(rates), kernel, fuse) * outputs
    columns, area = aligned(used), x.height * x.width
    parts = groups(x.batch, area, WORKSPACE // (4 * columns))
    most = min(x.batch, parts[0].stop)
    shape = most, x.height, x.width, columns
    spread = torch.empty(shape, dtype=grad.dtype, device=grad.device)
    transposed = None if of_input is None else pack(weight, fuse).transposed(inputs)
    sums = None
    if of_weight is not None:
        # With the padding columns, which are zero: a mask at 693 would take the loads apart.
        largest = x.images(parts[0]).as_row()
        _, splits = weight_grad.splits_for(largest, columns, 1, columns)
        sums = torch.empty(splits, columns, x.inputs, dtype=torch.float32, device=grad.device)
    for part in parts:
        images = x.images(part)
        g = images._replace(tensor=spread, inputs=columns, stride=columns)
        spread_kernel[blocks(g.pixels, SPREAD_P), blocks(columns, SPREAD_N)](
            grad[part], spread, g.pixels, x.height, x.width, outputs, used, columns,
            *grad.stride(),
            RATES=tuple(rates), KERNEL=kernel, FUSE=fuse, BLOCK_P=SPREAD_P, BLOCK_N=SPREAD_N,
        )  # fmt: skip
        if of_input is not None and transposed is not None:
            conv(g, transposed, of_input[part], (1,), fuse="sum")
        if sums is not None:
            weight_grad.product(images.as_row(), g.as_row(), sums, add=part.start > 0)
    if of_weight is not None and sums is not None:
        weight_grad.collect(sums, of_weight, merged=fuse == "sum")
