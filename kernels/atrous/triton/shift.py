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
float32 and at most `WORKSPACE` bytes; beyond that, images are taken in groups. An image that does
not fit by itself is computed band by band of output pixels: half of the workspace holds the slices
of some source pixels, half the float32 sums of the band over all the pixels that it sees.

Backward: g'[p, t] = d z[p - offset_t] spread out in the same columns, in the input's dtype; then
two products, d x = g' w and d w = g'^T x.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.atrous.triton import configs, weight_grad
from kernels.atrous.triton.conv import conv
from kernels.atrous.triton.layout import (
    ALIGNMENT,
    WORKSPACE,
    Pixels,
    Taps,
    aligned,
    chunks,
    pixels_of,
    tap_blocks,
)

MAX_BLOCK_C = 32
BLOCK_P = 16  # pixels that a program gathers: many small programs hide the latency
SPREAD_P, SPREAD_N = 32, 128  # pixels and columns that one spreads
PACK_ROWS, PACK_INPUTS = 16, 128


@triton.jit
def gather_kernel(
    m_ptr, sum_ptr, out_ptr, bias_ptr, scale_ptr, shift_ptr,
    first, last, start, stop, height, width, outputs, m_stride,
    out_image_stride, out_pixel_stride, out_channel_stride,
    RATES: tl.constexpr, KERNEL: tl.constexpr, FUSE: tl.constexpr, RELU: tl.constexpr,
    IS_FIRST: tl.constexpr, IS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y of pixels [start, stop) from the slices of pixels [first, last)."""
    taps: tl.constexpr = KERNEL * KERNEL
    rates: tl.constexpr = len(RATES)
    rate_of_program = 0 if FUSE == "sum" else tl.program_id(2)
    area = height * width
    p = start + tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    image = p // area
    y = (p % area) // width
    x = p % width
    real_p, real_c = p < stop, c < outputs
    channels = rate_of_program * outputs + c
    mask = real_p[:, None] & real_c[None, :]
    offs_sum = (p - start).to(tl.int64)[:, None] * ((1 if FUSE == "sum" else rates) * outputs)
    offs_sum += channels[None, :]

    acc = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    if IS_FIRST:
        if bias_ptr is not None:
            if FUSE == "sum":
                for branch in tl.static_range(rates):
                    bias = tl.load(bias_ptr + branch * outputs + c, mask=real_c, other=0.0)
                    acc += bias.to(tl.float32)[None, :]
            else:
                acc += tl.load(bias_ptr + channels, mask=real_c, other=0.0).to(tl.float32)[None, :]
    else:
        acc += tl.load(sum_ptr + offs_sum, mask=mask, other=0.0)

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
                source = p + dy * width + dx
                inside = inside & real_p & (source >= first) & (source < last)
                offs = (source - first).to(tl.int64)[:, None] * m_stride
                offs += (block * outputs + c)[None, :]
                acc += tl.load(m_ptr + offs, mask=inside[:, None] & real_c[None, :], other=0.0)

    if not IS_LAST:
        tl.store(sum_ptr + offs_sum, acc, mask=mask)
    else:
        if scale_ptr is not None:
            acc *= tl.load(scale_ptr + channels, mask=real_c, other=0.0).to(tl.float32)[None, :]
        if shift_ptr is not None:
            acc += tl.load(shift_ptr + channels, mask=real_c, other=0.0).to(tl.float32)[None, :]
        if RELU:
            acc = tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL)
        position = image.to(tl.int64) * out_image_stride
        position += (p - image * area).to(tl.int64) * out_pixel_stride
        offs_out = position[:, None] + channels.to(tl.int64)[None, :] * out_channel_stride
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


@triton.jit
def spread_kernel(
    g_ptr, out_ptr, first, last, height, width, outputs, columns, padded,
    g_image_stride, g_channel_stride, g_row_stride, g_column_stride,
    RATES: tl.constexpr, KERNEL: tl.constexpr, FUSE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """g'[p, t * outputs + o] = g[p - offset_t, o] of pixels [first, last); padding is 0."""
    taps: tl.constexpr = KERNEL * KERNEL
    area = height * width
    p = first + tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
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
    inside = inside & (p < last)[:, None] & (n < columns)[None, :]
    offs = image.to(tl.int64)[:, None] * g_image_stride
    offs += y.to(tl.int64) * g_row_stride + x.to(tl.int64) * g_column_stride
    offs += channel.to(tl.int64)[None, :] * g_channel_stride
    g = tl.load(g_ptr + offs, mask=inside, other=0.0)
    offs_out = (p - first).to(tl.int64)[:, None] * padded + n[None, :]
    tl.store(out_ptr + offs_out, g, mask=(p < last)[:, None] & (n < padded)[None, :])


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


def pack(weight: Tensor, fuse: str) -> Tensor:
    """The columns of the product as rows `[tap blocks * Cout, Cin]`, both padded to 16."""
    rates, outputs, inputs, kernel, _ = weight.shape
    columns = tap_blocks(rates, kernel, fuse) * outputs
    rows = weight.new_empty(aligned(columns), aligned(inputs))
    grid = triton.cdiv(len(rows), PACK_ROWS), triton.cdiv(rows.shape[1], PACK_INPUTS)
    rate, output, input, tap_y, tap_x = weight.stride()
    with configs.on_device_of(weight):
        pack_kernel[grid](
            weight, rows, inputs, outputs, columns, *rows.shape,
            rate, output, input, tap_y, tap_x,
            RATES=rates, KERNEL=kernel, FUSE=fuse, ROWS=PACK_ROWS, BLOCK=PACK_INPUTS,
        )  # fmt: skip
    return rows


def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rates: Sequence[int],
    fuse: str,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str | None,
    out: Tensor,
) -> None:
    """Set `out` `[B, channels, H, W]`."""
    x, _ = pixels_of(input)
    rows, kernel = pack(weight, fuse), weight.shape[-1]
    area = x.height * x.width
    channels, outputs = out.shape[1], out.shape[1] // (1 if fuse == "sum" else len(rates))
    total = None  # of a band
    most = WORKSPACE // (4 * len(rows))
    band = most  # output pixels at a time
    if area > most:
        most = max(1, WORKSPACE // 2 // (4 * len(rows)))
        band = min(area, max(1, WORKSPACE // 2 // (4 * channels)))
        total = torch.empty(band, channels, dtype=torch.float32, device=out.device)
    slices = torch.empty(min(most, x.pixels), len(rows), dtype=torch.float32, device=out.device)
    reach = max(rates) * (kernel // 2) * (x.width + 1)  # pixels between a source and its output
    block_c = min(MAX_BLOCK_C, max(16, triton.next_power_of_2(outputs)))
    image_stride, channel_stride, _, pixel_stride = out.stride()
    taps = Taps(rows, 1, len(rows), 0, rows.shape[1], 0, 1)
    for begin, end in chunks(x.batch, area, band):
        sources = [(begin, end)]
        if total is not None:
            sources = list(_sources(begin, end, area, reach, most))
        for first, last in sources:
            conv(x.part(first, last), taps, _as_map(slices[: last - first]), (1,), fuse="sum")
            is_first, is_last = first == sources[0][0], last == sources[-1][1]
            start, stop = begin, end
            if not (is_first or is_last):  # only the pixels that see these
                start += max(0, first - reach - begin) // ALIGNMENT * ALIGNMENT
                stop = min(stop, last + reach)
            tiles = triton.cdiv(stop - start, BLOCK_P), triton.cdiv(outputs, block_c)
            with configs.on_device_of(out):
                gather_kernel[(*tiles, channels // outputs)](
                    slices, None if total is None else total[start - begin :],
                    out, bias, scale, shift,
                    first, last, start, stop, x.height, x.width, outputs, len(rows),
                    image_stride, pixel_stride, channel_stride,
                    RATES=tuple(rates), KERNEL=kernel, FUSE=fuse, RELU=activation == "relu",
                    IS_FIRST=is_first, IS_LAST=is_last, BLOCK_P=BLOCK_P, BLOCK_C=block_c,
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
    """Set the gradients to `input` and `weight`, those that are given, from d z.

    grad: d z, `[B, channels, H, W]` of any strides. of_weight: with Cin contiguous, and small
    enough for a slice of it to fit half the workspace (`cost.weight_gradient_impl`).
    """
    x, _ = pixels_of(input)
    _, outputs, inputs, kernel, _ = weight.shape
    columns = tap_blocks(len(rates), kernel, fuse) * outputs
    padded = aligned(columns)
    # Half of the workspace for d z spread out, half for the slices of the weights' gradient.
    most = max(1, WORKSPACE // 2 // (grad.element_size() * padded))
    area = x.height * x.width
    pieces = list(chunks(x.batch, area, most))
    spread = torch.empty(min(most, x.pixels), padded, dtype=grad.dtype, device=grad.device)
    transposed = slices = None
    if of_input is not None:
        rows = pack(weight, fuse)
        transposed = Taps(rows, 1, inputs, 0, 1, 0, rows.shape[1])
    if of_weight is not None:
        # With the padding columns, which are zero: a mask at 693 would take the loads apart.
        largest = x.part(*pieces[0])
        _, splits = weight_grad.splits_for(largest, padded, 1, padded, WORKSPACE // 2)
        slices = torch.empty(splits, padded, x.inputs, dtype=torch.float32, device=grad.device)
    for first, last in pieces:
        g = Pixels(spread[: last - first], 1, 1, last - first, padded, padded)
        _spread(grad, g, first, rates, kernel, fuse, columns)
        if of_input is not None and transposed is not None:
            part = _pixels_of_map(of_input, first, last, area)
            images, _, height, width = part.shape
            as_images = Pixels(g.tensor, images, height, width, g.inputs, g.stride)
            conv(as_images, transposed, part, (1,), fuse="sum")
        if slices is not None:
            weight_grad.product(x.part(first, last), g, slices, add=first > 0)
    if of_weight is not None and slices is not None:
        weight_grad.collect(slices, of_weight, merged=fuse == "sum")


def _spread(
    grad: Tensor,
    g: Pixels,
    first: int,
    rates: Sequence[int],
    kernel: int,
    fuse: str,
    columns: int,
) -> None:
    """Fill g with d z of the pixels from `first` on, spread out over the columns."""
    _, channels, height, width = grad.shape
    outputs = channels if fuse == "sum" else channels // len(rates)
    grid = triton.cdiv(g.pixels, SPREAD_P), triton.cdiv(g.stride, SPREAD_N)
    with configs.on_device_of(grad):
        spread_kernel[grid](
            grad, g.tensor, first, first + g.pixels, height, width, outputs, columns, g.stride,
            *grad.stride(),
            RATES=tuple(rates), KERNEL=kernel, FUSE=fuse, BLOCK_P=SPREAD_P, BLOCK_N=SPREAD_N,
        )  # fmt: skip


def _sources(begin: int, end: int, area: int, reach: int, most: int) -> Iterator[tuple[int, int]]:
    """Cut the pixels of one image within `reach` of [begin, end) into ranges of at most `most`."""
    image = begin // area * area
    stop = min(image + area, end + reach)
    for first in range(max(image, begin - reach), stop, most):
        yield first, min(first + most, stop)


def _as_map(rows: Tensor) -> Tensor:
    """Rows `[P, C]` as a map `[1, C, 1, P]`."""
    return rows.T[None, :, None, :]


def _pixels_of_map(x: Tensor, first: int, last: int, area: int) -> Tensor:
    """Pixels [first, last) of a batch as a map: whole images, or a part of one as a single row."""
    image, start = divmod(first, area)
    if start == 0 and last % area == 0:
        return x[image : last // area]
    return x[image].flatten(1)[None, :, None, start : start + last - first]
