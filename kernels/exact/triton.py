"""The exact filter over tiles in Triton: as flash attention, with a Gaussian for the softmax.

              j: columns of the kept tiles, BLOCK_N at a time      channels
        i   [ K_ij, made in registers ]   x   j [ values ]   =>   acc [BLOCK_M, BLOCK_C]

    filter_kernel     y_i = sum_j K_ij v_j
    gradient_kernel   d L / d p_i = 2 log(2) sum_j K_ij (g_i . v_j + g_j . v_i) (p_j - p_i)
    mass_kernel       n_i = sum_j K_ij, and what of it each pair of tiles holds

One program has BLOCK_M rows of one tile and goes through that tile's list of columns, or through
all of them; the longest lists come first. K = 2^-|p_i - p_j|^2 from float32 sums of squares; the
product with all channels is `precision`: "ieee" float32, or on tensor cores "tf32" or "bf16", with
float32 sums. Points and values lie with the points innermost (`[D, T * TILE]`, `[C, T * TILE]`), as
Hopper's TF32 instructions want their second operand. Values beyond the last point are 0, so that no
product has a mask. Sums are in a fixed order: two runs give the same bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.exact import tiles
from kernels.product import input_precision
from kernels.sizes import blocks, power_of_2

TWICE_LOG_2 = tl.constexpr(1.3862943611198906)  # the derivative of 2^-d^2 is -2 log(2) d times it
UNROLLED = tl.constexpr(8)  # dimensions: a loop over more stays a loop


@dataclass(frozen=True)
class PairConfig:
    """Rows, columns and channels of a block; no block is larger than a tile."""

    block_m: int
    block_n: int
    block_c: int
    warps: int
    stages: int


# By what is multiplied: what compiles without spills on sm_80, sm_90 and gfx942. Products that the
# tensor cores do not take (float32 on NVIDIA) hold their operands in registers: smaller blocks.
FILTER: Mapping[str, PairConfig] = {
    "bf16": PairConfig(128, 64, 64, warps=4, stages=2),
    "tf32": PairConfig(128, 64, 64, warps=4, stages=2),
    "ieee": PairConfig(64, 32, 32, warps=4, stages=2),
}
GRADIENT: Mapping[str, PairConfig] = {
    "bf16": PairConfig(64, 32, 32, warps=4, stages=2),
    "tf32": PairConfig(64, 32, 32, warps=4, stages=2),
    "ieee": PairConfig(64, 32, 16, warps=4, stages=2),
}
MASS_COLUMNS, MASS_WARPS = 16, 8  # its rows are a whole tile


@triton.jit
def gaussian(points, rows, columns, padded, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """K_ij of rows `[M]` and columns `[N]`."""
    exponent = tl.zeros((M, N), tl.float32)
    if D <= UNROLLED:
        for d in tl.static_range(D):
            line = points + d * padded.to(tl.int64)
            gap = tl.load(line + rows)[:, None] - tl.load(line + columns)[None, :]
            exponent -= gap * gap
    else:
        for d in tl.range(D, num_stages=1):
            line = points + d * padded.to(tl.int64)
            gap = tl.load(line + rows)[:, None] - tl.load(line + columns)[None, :]
            exponent -= gap * gap
    return tl.exp2(exponent)


@triton.jit(do_not_specialize=["count", "tiles"])
def filter_kernel(
    points, values, order, kept, out,
    count, padded, tiles, channels,
    D: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows and BLOCK_C channels of the filtered values."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    tile = tl.program_id(0) * BLOCK_M // TILE
    offs_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    lines = values + offs_c.to(tl.int64) * padded
    acc = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    number = tiles
    if kept is not None:
        number = tl.load(kept + tile)
        columns = kept + tiles + tile.to(tl.int64) * tiles
    for k in range(number):
        column = k
        if kept is not None:
            column = tl.load(columns + k)
        for s in range(0, TILE, BLOCK_N):
            there = column * TILE + s + tl.arange(0, BLOCK_N)
            kernel = gaussian(points, rows, there, padded, D, BLOCK_M, BLOCK_N)
            v = tl.load(lines[None, :] + there[:, None])
            acc = tl.dot(kernel.to(v.dtype), v, acc, input_precision=PRECISION)

    real = rows < count
    place = rows
    if order is not None:
        place = tl.load(order + rows, mask=real, other=0)
    target = out + place.to(tl.int64)[:, None] * channels + offs_c[None, :]
    tl.store(target, acc, mask=real[:, None] & (offs_c < channels)[None, :])


@triton.jit(do_not_specialize=["tiles"])
def gradient_kernel(
    points, values, grads, kept, out,
    padded, tiles, channels,
    D: tl.constexpr, AXES: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradient to BLOCK_M points; channels are a multiple of BLOCK_C, AXES at least D."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    tile = tl.program_id(0) * BLOCK_M // TILE
    axis = tl.arange(0, AXES)
    acc = tl.zeros((BLOCK_M, AXES), tl.float32)
    number = tiles
    if kept is not None:
        number = tl.load(kept + tile)
        columns = kept + tiles + tile.to(tl.int64) * tiles
    for k in range(number):
        column = k
        if kept is not None:
            column = tl.load(columns + k)
        for s in range(0, TILE, BLOCK_N):
            there = column * TILE + s + tl.arange(0, BLOCK_N)
            kernel = gaussian(points, rows, there, padded, D, BLOCK_M, BLOCK_N)
            pairs = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for c in range(0, channels, BLOCK_C):
                lines = (c + tl.arange(0, BLOCK_C)).to(tl.int64) * padded
                here, across = rows[:, None] + lines[None, :], lines[:, None] + there[None, :]
                g, v = tl.load(grads + here), tl.load(values + across)
                pairs = tl.dot(g, v, pairs, input_precision=PRECISION)
                v, g = tl.load(values + here), tl.load(grads + across)
                pairs = tl.dot(v, g, pairs, input_precision=PRECISION)
            pairs *= kernel
            for d in tl.range(D, num_stages=1):
                line = points + d * padded.to(tl.int64)
                gap = tl.load(line + there)[None, :] - tl.load(line + rows)[:, None]
                along = tl.sum(pairs * gap, axis=1)
                acc += tl.where(axis == d, 1.0, 0.0)[None, :] * along[:, None]
    target = out + axis.to(tl.int64)[None, :] * padded + rows[:, None]
    tl.store(target, acc * TWICE_LOG_2, mask=(axis < D)[None, :])


@triton.jit(do_not_specialize=["count", "tiles"])
def mass_kernel(
    points, table, longest, mass,
    count, padded, tiles, negligible,
    D: tl.constexpr, TILE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A row of the table: where it is above `negligible`, max_i sum_{j in J} K_ij; and n_i."""
    tile = tl.load(longest + tl.program_id(0)).to(tl.int32)
    rows = tile * TILE + tl.arange(0, TILE)
    line = table + tile.to(tl.int64) * tiles
    total = tl.zeros((TILE,), tl.float32)
    for column in range(tiles):
        if tl.load(line + column) > negligible:
            sums = tl.zeros((TILE, BLOCK_N), tl.float32)
            for s in range(0, TILE, BLOCK_N):
                there = column * TILE + s + tl.arange(0, BLOCK_N)
                kernel = gaussian(points, rows, there, padded, D, TILE, BLOCK_N)
                sums += tl.where((there < count)[None, :], kernel, 0.0)
            part = tl.sum(sums, axis=1)
            total += part
            tl.store(line + column, tl.max(tl.where(rows < count, part, 0.0), axis=0))
    tl.store(mass + rows, total, mask=rows < count)


def masses(points: Tensor, table: Tensor, count: int, negligible: float) -> Tensor:
    """n `[N]` of `points` `[D, T * TILE]`, and m `[T, T]` where the table is above `negligible`."""
    dims, padded = points.shape
    mass = points.new_empty(count)
    longest = (table > negligible).sum(1).argsort(descending=True)
    with torch.cuda.device_of(points):
        mass_kernel[(len(table),)](
            points, table, longest, mass, count, padded, len(table), negligible,
            D=dims, TILE=tiles.TILE, BLOCK_N=min(MASS_COLUMNS, tiles.TILE),
            num_warps=MASS_WARPS, num_stages=1,
        )  # fmt: skip
    return mass


def apply(values: Tensor, pairs: tiles.Pairs, precision: str, out: Tensor) -> None:
    """Set `out` `[N, C]` to the filtered `values` `[N, C]`."""
    if not values.numel():
        return
    points, order, kept = pairs
    (count, channels), (dims, padded) = values.shape, points.shape
    config = FILTER[precision]
    block_m, block_n, block_c = _blocks(config, channels, dims)
    lines = _lines(values, order, padded, block_c, precision)
    with torch.cuda.device_of(points):
        filter_kernel[(padded // block_m, len(lines) // block_c)](
            points.contiguous(), lines, order, kept, out,
            count, padded, padded // tiles.TILE, channels,
            D=dims, TILE=tiles.TILE, PRECISION=input_precision(precision),
            BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_C=block_c,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip


def feature_gradient(
    grad: Tensor, values: Tensor, pairs: tiles.Pairs, precision: str, out: Tensor
) -> None:
    """Set `out` `[D, T * TILE]` to d L / d points; `grad` `[N, C]` is that of the filtered."""
    if not values.numel():
        out.zero_()
        return
    points, order, kept = pairs
    dims, padded = points.shape
    config = GRADIENT[precision]
    block_m, block_n, block_c = _blocks(config, values.shape[1], dims)
    v, g = (_lines(tensor, order, padded, block_c, precision) for tensor in (values, grad))
    with torch.cuda.device_of(points):
        gradient_kernel[(padded // block_m,)](
            points.contiguous(), v, g, kept, out,
            padded, padded // tiles.TILE, len(v),
            D=dims, AXES=power_of_2(dims), TILE=tiles.TILE, PRECISION=input_precision(precision),
            BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_C=block_c,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip


def _blocks(config: PairConfig, channels: int, dims: int) -> tuple[int, int, int]:
    """Rows, columns and channels of a block: no more channels than there are, but the least 16.

    A loop over many dimensions holds its squares beside the rest: no more than 64 rows have room.
    """
    block_m = config.block_m if dims <= UNROLLED.value else min(config.block_m, 64)
    block_c = min(config.block_c, max(16, power_of_2(channels)))
    return min(block_m, tiles.TILE), min(config.block_n, tiles.TILE), block_c


def _lines(
    values: Tensor, order: Tensor | None, padded: int, block_c: int, precision: str
) -> Tensor:
    """`values` `[N, C]` in order as `[C, padded]`, C made a multiple of block_c, zeros around."""
    count, channels = values.shape
    dtype = torch.bfloat16 if precision == "bf16" else values.dtype
    lines = values.new_zeros(blocks(channels, block_c) * block_c, padded, dtype=dtype)
    lines[:channels, :count] = (values if order is None else values[order]).T
    return lines
