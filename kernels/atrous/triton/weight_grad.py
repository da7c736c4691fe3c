"""The gradient to the weights, in Triton.

    dw[r, o, tap, i] = sum_p g[p, r, o] * x[p + rate_r * tap, i]

A program owns BLOCK_M outputs x BLOCK_N inputs of one rate and tap, and adds up pixels BLOCK_K at a
time, image by image, over the rows of the map that the tap reaches: rows outside are never visited.

                 p ->                        i ->
          o  [ g transposed ]   x   p  [ x shifted by the tap ]   =>   acc [BLOCK_M, BLOCK_N]

Where that makes too few programs to fill a GPU, the pixels are split among several, each with a
slice of a float32 workspace; `collect_kernel` then adds the slices in a fixed order. No atomics:
two runs give the same bits.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.atrous.triton import configs
from kernels.atrous.triton.layout import PARTIAL_SUMS, Pixels
from kernels.sizes import blocks

COLLECT_ROWS, COLLECT_INPUTS = 16, 128
LEAST_STEPS = 4  # blocks of pixels that a split must be worth


@triton.jit
def weight_grad_kernel(
    x_ptr, g_ptr, out_ptr,
    batch, height, width, inputs, outputs,
    x_stride, g_stride, g_rate_stride,
    out_split_stride, out_rate_stride, out_output_stride, out_tap_stride,
    image_splits, pixel_splits,
    RATES: tl.constexpr, KERNEL: tl.constexpr, ADD: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of dw, over one split of the pixels."""
    tiles_n = tl.cdiv(inputs, BLOCK_N)
    pid_m = tl.program_id(0) // tiles_n
    pid_n = tl.program_id(0) % tiles_n
    r = tl.program_id(1) // (KERNEL * KERNEL)
    tap = tl.program_id(1) % (KERNEL * KERNEL)
    split = tl.program_id(2)
    rate = RATES[0]
    for i in tl.static_range(1, len(RATES)):
        rate = tl.where(r == i, RATES[i], rate)
    dy = (tap // KERNEL - KERNEL // 2) * rate
    dx = (tap % KERNEL - KERNEL // 2) * rate

    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    area = height * width
    # The pixels of an image whose source row is inside, and this split's share of them.
    start = tl.maximum(0, -dy) * width
    stop = tl.maximum(start, tl.minimum(height, height - dy) * width)
    share = tl.cdiv(tl.cdiv(stop - start, BLOCK_K), pixel_splits) * BLOCK_K
    start += (split % pixel_splits) * share
    stop = tl.minimum(start + share, stop)
    image_split = split // pixel_splits
    image_first = batch * image_split // image_splits
    image_last = batch * (image_split + 1) // image_splits

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for image in range(image_first, image_last):
        g_image = g_ptr + tl.cast(image, tl.int64) * area * g_stride + r * g_rate_stride
        x_image = x_ptr + (tl.cast(image, tl.int64) * area + dy * width + dx) * x_stride
        for pixel in range(start, stop, BLOCK_K):
            offs_p = pixel + offs_k
            column = offs_p % width + dx
            inside = (offs_p < stop) & (column >= 0) & (column < width)
            rows = offs_p.to(tl.int64)[:, None]
            g = tl.load(
                g_image + rows * g_stride + offs_m[None, :],
                mask=inside[:, None] & (offs_m < outputs)[None, :],
                other=0.0,
            )
            x = tl.load(
                x_image + rows * x_stride + offs_n[None, :],
                mask=inside[:, None] & (offs_n < inputs)[None, :],
                other=0.0,
            )
            acc = tl.dot(tl.trans(g), x, acc, input_precision=PRECISION)

    position = split * tl.cast(out_split_stride, tl.int64) + r * tl.cast(out_rate_stride, tl.int64)
    offs_out = offs_m.to(tl.int64)[:, None] * out_output_stride + offs_n[None, :]
    mask = (offs_m < outputs)[:, None] & (offs_n < inputs)[None, :]
    out_ptrs = out_ptr + position + tap * tl.cast(out_tap_stride, tl.int64) + offs_out
    if ADD:
        acc += tl.load(out_ptrs, mask=mask, other=0.0)
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def collect_kernel(
    slices_ptr, out_ptr, splits, inputs, outputs, split_stride, row_stride,
    RATES: tl.constexpr, KERNEL: tl.constexpr, MERGED: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dw[r, o, tap, :] = the sum over splits of row (tap block, o) of the slices."""
    taps: tl.constexpr = KERNEL * KERNEL
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (row < RATES * outputs * taps)[:, None] & (offs < inputs)[None, :]
    tap = row % taps
    output = row // taps % outputs
    r = row // taps // outputs
    block = r * taps + tap
    if MERGED:  # the centre is one tap for all rates, and comes first
        others = 1 + r * (taps - 1) + tl.where(tap > taps // 2, tap - 1, tap)
        block = tl.where(tap == taps // 2, 0, others)
    slice_ptrs = slices_ptr + (block * outputs + output).to(tl.int64)[:, None] * row_stride
    slice_ptrs += offs[None, :]
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for _ in range(splits):
        total += tl.load(slice_ptrs, mask=mask, other=0.0)
        slice_ptrs += split_stride
    out = out_ptr + row.to(tl.int64)[:, None] * inputs + offs[None, :]
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=mask)


def correlate(
    x: Pixels, g: Pixels, rates: Sequence[int], g_rate_stride: int, gradient: Tensor
) -> None:
    """Set `gradient` `[R, Cout, Cin, k, k]`, with Cin contiguous, to dw.

    g: d z of every pixel; that of rate r begins r * g_rate_stride channels further on.
    """
    _, outputs, inputs, kernel, _ = gradient.shape
    taps = kernel * kernel
    rows = len(rates) * taps * outputs
    splits = splits_for(x, outputs, len(rates) * taps, rows)
    if splits == (1, 1):
        strides = 0, gradient.stride(0), gradient.stride(1), inputs
        _launch(x, g, gradient, rates, kernel, outputs, splits, strides, g_rate_stride)
        return
    shape = splits[0] * splits[1], rows, x.inputs
    slices = torch.empty(shape, dtype=torch.float32, device=gradient.device)
    by_tap = outputs * x.inputs
    strides = slices.stride(0), taps * by_tap, x.inputs, by_tap
    _launch(x, g, slices, rates, kernel, outputs, splits, strides, g_rate_stride)
    collect(slices, gradient, merged=False)


def product(x: Pixels, g: Pixels, slices: Tensor, add: bool) -> None:
    """slices[s] = g^T x over the s-th share of the pixels, added to what is there if `add`.

    x and g are one row of pixels each; slices are float32 `[splits, rows, inputs]`.
    """
    splits, rows, inputs = slices.shape
    strides = slices.stride(0), 0, inputs, 0
    _launch(x, g, slices, (1,), 1, rows, (1, splits), strides, g_rate_stride=0, add=add)


def collect(slices: Tensor, gradient: Tensor, merged: bool) -> None:
    """Add the slices up into `gradient`, in the order of the splits.

    slices: float32 `[splits, tap blocks * Cout, inputs]`. With `merged` the first block is the
    centre tap, which all rates share, and the others follow by rate; else blocks are rate by tap.
    """
    rates, outputs, inputs, kernel, _ = gradient.shape
    rows = rates * outputs * kernel * kernel
    grid = blocks(rows, COLLECT_ROWS), blocks(inputs, COLLECT_INPUTS)
    collect_kernel[grid](
        slices, gradient, slices.shape[0], inputs, outputs, slices.stride(0), slices.stride(1),
        RATES=rates, KERNEL=kernel, MERGED=merged, ROWS=COLLECT_ROWS, BLOCK=COLLECT_INPUTS,
    )  # fmt: skip


def splits_for(x: Pixels, outputs: int, programs: int, rows: int) -> tuple[int, int]:
    """In how many parts to cut the images, and the pixels of an image.

    Enough to give every multiprocessor two programs, of `programs` for each tile, while each has
    `LEAST_STEPS` blocks of pixels and the slices of `rows` rows stay within `PARTIAL_SUMS` bytes.
    """
    config = configs.select("weight_grad", x.tensor, x.pixels, outputs, x.inputs)
    tiles = blocks(outputs, config.block_m) * blocks(x.inputs, config.block_n) * programs
    wanted = blocks(2 * configs.multiprocessors(x.tensor.device), tiles)
    wanted = max(1, min(wanted, PARTIAL_SUMS // (4 * rows * x.inputs)))
    images = min(wanted, x.batch)
    steps = blocks(x.height * x.width, config.block_k)
    return images, max(1, min(wanted // images, steps // LEAST_STEPS))


def _launch(
    x: Pixels,
    g: Pixels,
    out: Tensor,
    rates: Sequence[int],
    kernel: int,
    outputs: int,
    splits: tuple[int, int],
    strides: tuple[int, int, int, int],
    g_rate_stride: int,
    add: bool = False,
) -> None:
    """Run `weight_grad_kernel`; strides of `out` by split, rate, output and tap, axis 2: inputs."""
    inputs = out.shape[2]
    config = configs.select("weight_grad", x.tensor, x.pixels, outputs, x.inputs)
    tiles = blocks(outputs, config.block_m) * blocks(inputs, config.block_n)
    weight_grad_kernel[(tiles, len(rates) * kernel * kernel, splits[0] * splits[1])](
        x.tensor, g.tensor, out,
        x.batch, x.height, x.width, inputs, outputs,
        x.stride, g.stride, g_rate_stride,
        *strides,
        *splits,
        RATES=tuple(rates), KERNEL=kernel, ADD=add,
        PRECISION=configs.precision(x.tensor.dtype),
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
