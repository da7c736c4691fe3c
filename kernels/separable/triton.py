"""The separable filter in Triton: splat, the grid's Gaussian, and slice.

    splat     sums of a piece   [K, corners x C]  =  phi^T [K, points]  x  w v [points, corners x C]
    combine   node m            sums[m]           =  over corners, over pieces whose corner it is
    smooth    `Separable.smooth`: a short convolution along each axis, a product with A
    slice     at the corners    [points, corners x C]  =  phi [points, K]  x  sums [K, corners x C]
              y                                   =  sum over corners of w times that

and, once for a filter, what `factors.own_weights` says:

    own       of each colour    |W phi|^2, a block of rows of W at a time, up to the diagonal

phi and w are made in registers, phi as exp2 of squared differences in float32. A piece has no more
than PIECE points of one cell, so that no program is long; its sums are stored apart, and added in a
fixed order: two runs give the same bits. Products are `precision`: "ieee" float32, or on tensor
cores "tf32" or "bf16", with float32 sums. Landmarks lie innermost in all sums, as Hopper's TF32
instructions want their second operand.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.product import input_precision, product
from kernels.separable.factors import PIECE, Separable
from kernels.separable.landmarks import Landmarks
from kernels.sizes import blocks, power_of_2

EXPONENT = tl.constexpr(-0.5 * 1.4426950408889634)  # exp(-d / 2) = exp2(EXPONENT * d)
BLOCK_COMBINE = 1024
BLOCK_CONVOLVE = 1024


@dataclass(frozen=True)
class GridConfig:
    """Points and landmarks of a block, and corners x channels at most."""

    block_p: int
    block_k: int
    width: int
    warps: int
    stages: int


# By what is multiplied: what compiles without spills on sm_80, sm_90 and gfx942.
SPLAT: Mapping[str, GridConfig] = {
    "bf16": GridConfig(32, 128, 128, warps=8, stages=2),
    "tf32": GridConfig(32, 64, 128, warps=4, stages=2),
    "ieee": GridConfig(32, 32, 64, warps=4, stages=2),
}
SLICE: Mapping[str, GridConfig] = {
    "bf16": GridConfig(128, 64, 128, warps=8, stages=2),
    "tf32": GridConfig(64, 32, 128, warps=4, stages=2),
    "ieee": GridConfig(32, 32, 64, warps=4, stages=2),
}

OWN = GridConfig(128, 32, 32, warps=8, stages=1)
# Entries of W are as large as 1 / sqrt(ridge), and cancel: more than TF32 keeps. AMD has no TF32x3.
OWN_PRECISION = "ieee" if torch.version.hip else "tf32x3"


@triton.jit
def corner_weight(fractions, points, real, corner, S: tl.constexpr):
    """w of `corner` `[1, R]` for `points` `[P]`: bit s of a corner is axis s."""
    weight = tl.full((1, 1), 1.0, tl.float32)
    for s in tl.static_range(S):
        t = tl.load(fractions + points * S + s, mask=real, other=0.0)[:, None]
        weight = weight * tl.where((corner >> s) & 1 == 1, t, 1 - t)
    return weight


@triton.jit
def corner_node(lowest, corner, row, plane, S: tl.constexpr):
    """The node at a corner of the cell whose lowest is given; axes are 1, row and plane apart."""
    node = lowest + ((corner >> (S - 1)) & 1)
    if S >= 2:
        node += ((corner >> (S - 2)) & 1) * row
    if S >= 3:
        node += ((corner >> (S - 3)) & 1) * plane
    return node


# Specialised on sizes on purpose: without their divisibility by 16 two kernels spill.
@triton.jit
def affinity(a, rows, real_rows, b, columns, real_columns, E: tl.constexpr):
    """exp(-|a_i - b_j|^2 / 2) of some rows of `a` and `b`, `[N, E]` both: [rows, columns]."""
    squares = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    for e in tl.static_range(E):
        x = tl.load(a + rows * E + e, mask=real_rows, other=0.0)
        y = tl.load(b + columns * E + e, mask=real_columns, other=0.0)
        gap = x[:, None] - y[None, :]
        squares += gap * gap
    return tl.exp2(squares * EXPONENT)


@triton.jit
def splat_kernel(
    values, order, colours, fractions, landmarks, pieces, partial,
    channels, count_k, stride_v,
    E: tl.constexpr, S: tl.constexpr, PRECISION: tl.constexpr, HALF: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums of one piece for BLOCK_K landmarks and, at every corner, BLOCK_C channels."""
    piece = tl.program_id(0)
    first = tl.load(pieces + piece * 3)
    end = tl.load(pieces + piece * 3 + 1)
    offs_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    real_k, real_c = offs_k < count_k, channel < channels
    acc = tl.zeros((BLOCK_K, BLOCK_C << S), tl.float32)
    for p in range(first, end, BLOCK_P):
        points = p + tl.arange(0, BLOCK_P)
        real = points < end
        phi = affinity(landmarks, offs_k, real_k, colours, points, real, E)
        rows = tl.load(order + points, mask=real, other=0)
        source = values + rows[:, None] * stride_v + channel[None, :]
        v = tl.load(source, mask=real[:, None] & real_c[None, :], other=0.0)
        w = corner_weight(fractions, points, real, tl.arange(0, 1 << S)[None, :], S)
        v = tl.reshape(w[:, :, None] * v[:, None, :], (BLOCK_P, BLOCK_C << S))
        if HALF:
            acc = tl.dot(phi.to(tl.bfloat16), v.to(tl.bfloat16), acc)
        else:
            acc = tl.dot(phi, v, acc, input_precision=PRECISION)
    column = tl.arange(0, BLOCK_C << S)
    line = (piece.to(tl.int64) << S) + column // BLOCK_C
    channel = tl.program_id(2) * BLOCK_C + column % BLOCK_C
    target = partial + (line * channels + channel)[None, :] * count_k + offs_k[:, None]
    tl.store(target, acc, mask=real_k[:, None] & (channel < channels)[None, :])


@triton.jit
def combine_kernel(
    partial, starts, sums,
    width, row, plane,
    S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK of a node's sums: those of the cells around it, whose pieces lie together."""
    node = tl.program_id(0)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for corner in range(1 << S):
        lowest = 2 * node - corner_node(node, corner, row, plane, S)
        if lowest >= 0:
            for piece in range(tl.load(starts + lowest), tl.load(starts + lowest + 1)):
                line = (tl.cast(piece, tl.int64) << S) + corner
                acc += tl.load(partial + line * width + offs, mask=offs < width, other=0.0)
    tl.store(sums + tl.cast(node, tl.int64) * width + offs, acc, mask=offs < width)


@triton.jit(do_not_specialize=["size", "length", "reach"])
def convolve_kernel(values, taps, out, size, length, inner, reach, BLOCK: tl.constexpr):
    """BLOCK values of one of A, in `[A, length, inner]`, each of `size`, which types offsets."""
    blocks = tl.cdiv(size, BLOCK)
    line = (tl.program_id(0) // blocks).to(tl.int64) * size
    offs = (tl.program_id(0) % blocks).to(size.dtype) * BLOCK + tl.arange(0, BLOCK)
    real, place = offs < size, offs // inner
    source = values + line + offs
    acc = tl.load(source, mask=real, other=0.0) * tl.load(taps)
    for d in range(1, reach):
        step = tl.cast(d, size.dtype) * inner
        near = tl.load(source - step, mask=real & (place >= d), other=0.0)
        near += tl.load(source + step, mask=real & (place < length - d), other=0.0)
        acc += near * tl.load(taps + d)
    tl.store(out + line + offs, acc, mask=real)


@triton.jit
def slice_kernel(
    sums, values, order, colours, fractions, diagonal, landmarks, pieces, out,
    channels, count_k, stride_v, stride_o, row, plane,
    E: tl.constexpr, S: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK_P points of one piece, BLOCK_C channels of their filtered values."""
    piece = tl.program_id(0)
    end = tl.load(pieces + piece * 3 + 1)
    first = tl.load(pieces + piece * 3) + tl.program_id(1) * BLOCK_P
    if first < end:
        points = first + tl.arange(0, BLOCK_P)
        real = points < end
        column = tl.arange(0, BLOCK_C << S)
        corner = column // BLOCK_C
        channel = tl.program_id(2) * BLOCK_C + column % BLOCK_C
        node = corner_node(tl.load(pieces + piece * 3 + 2), corner, row, plane, S)
        lines = sums + (node.to(tl.int64) * channels + channel) * count_k
        acc = tl.zeros((BLOCK_P, BLOCK_C << S), tl.float32)
        for k in range(0, count_k, BLOCK_K):
            offs_k = k + tl.arange(0, BLOCK_K)
            real_k = offs_k < count_k
            phi = affinity(colours, points, real, landmarks, offs_k, real_k, E)
            inside = real_k[:, None] & (channel < channels)[None, :]
            b = tl.load(lines[None, :] + offs_k[:, None], mask=inside, other=0.0)
            acc = tl.dot(phi.to(b.dtype), b, acc, input_precision=PRECISION)
        acc *= corner_weight(fractions, points, real, corner[None, :], S)
        y = tl.sum(tl.reshape(acc, (BLOCK_P, 1 << S, BLOCK_C)), axis=1)

        c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
        inside = real[:, None] & (c < channels)[None, :]
        rows = tl.load(order + points, mask=real, other=0)[:, None]
        v = tl.load(values + rows * stride_v + c[None, :], mask=inside, other=0.0)
        y += tl.load(diagonal + points, mask=real, other=0.0)[:, None] * v
        tl.store(out + rows * stride_o + c[None, :], y, mask=inside)


@triton.jit
def own_kernel(
    colours, landmarks, whitener, own,
    count, count_k,
    E: tl.constexpr, PRECISION: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """|W phi|^2 of BLOCK_P colours."""
    points = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    real = points < count
    total = tl.zeros((BLOCK_P,), tl.float32)
    for row in range(0, count_k, BLOCK_K):
        rows = row + tl.arange(0, BLOCK_K)
        white = tl.zeros((BLOCK_P, BLOCK_K), tl.float32)
        for k in range(0, row + BLOCK_K, BLOCK_K):
            offs_k = k + tl.arange(0, BLOCK_K)
            real_k = offs_k < count_k
            phi = affinity(colours, points, real, landmarks, offs_k, real_k, E)
            inside = real_k[:, None] & (rows < count_k)[None, :]
            source = whitener + rows[None, :] * count_k + offs_k[:, None]
            w = tl.load(source, mask=inside, other=0.0)
            white = tl.dot(phi, w, white, input_precision=PRECISION)
        total += tl.sum(white * white, axis=1)
    tl.store(own + points, total, mask=real)


def own_weights(colours: Tensor, chosen: Landmarks) -> Tensor:
    """sum_kl phi_k A_kl phi_l of each colour, `[N]`, from float32 `[N, E]`, contiguous."""
    whitener = chosen.whitener.to(colours.dtype)
    own = colours.new_empty(len(colours))
    with torch.cuda.device_of(colours):
        own_kernel[(blocks(len(colours), OWN.block_p),)](
            colours, chosen.colours, whitener, own, len(colours), len(whitener),
            E=colours.shape[1], PRECISION=OWN_PRECISION,
            BLOCK_P=OWN.block_p, BLOCK_K=OWN.block_k, num_warps=OWN.warps, num_stages=OWN.stages,
        )  # fmt: skip
    return own


def filter(separable: Separable, values: Tensor, precision: str) -> Tensor:
    """`[N, C]` -> `[N, C]`, both contiguous; without gradient."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32  # that a slice multiplies

    def mixed(a: Tensor, mixing: Tensor) -> Tensor:
        return product(a, mixing, torch.empty_like(a, dtype=dtype))

    output = torch.empty_like(values)
    if values.numel():
        with torch.cuda.device_of(values):
            for channels in separable.channels_at_once(values.shape[1]):
                inputs = values[:, channels]
                sums = separable.smooth(_splat(separable, inputs, precision), mixed, convolve)
                _slice(separable, sums, inputs, precision, output[:, channels])
    return output


def convolve(values: Tensor, taps: Tensor) -> Tensor:
    """`band.convolve` of `[A, N, B]`, float32, contiguous; without gradient."""
    output = torch.empty_like(values)
    outer, length, inner = values.shape
    size = length * inner
    if values.numel():
        with torch.cuda.device_of(values):
            convolve_kernel[(outer * blocks(size, BLOCK_CONVOLVE),)](
                values, taps, output, size, length, inner, len(taps), BLOCK=BLOCK_CONVOLVE
            )
    return output


def _splat(separable: Separable, values: Tensor, precision: str) -> Tensor:
    """Sums over nodes, `[M, C, K]`."""
    s = separable
    pieces, channels, count = len(s.pieces), values.shape[1], len(s.landmarks)
    corners, nodes = 2 ** len(s.axes), math.prod(s.shape)
    config = SPLAT[precision]
    block_c = _block_c(config, channels, corners)
    partial = values.new_empty(pieces, corners, channels, count)
    grid = pieces, -(-count // config.block_k), -(-channels // block_c)
    splat_kernel[grid](
        values, s.order, s.colours, s.fractions, s.landmarks, s.pieces, partial,
        channels, count, values.stride(0),
        E=s.colours.shape[1], S=len(s.axes),
        PRECISION=input_precision(precision), HALF=precision == "bf16",
        BLOCK_P=config.block_p, BLOCK_K=config.block_k, BLOCK_C=block_c,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    sums = values.new_empty(nodes, channels, count)
    combine_kernel[nodes, -(-channels * count // BLOCK_COMBINE)](
        partial, s.starts, sums, channels * count, *_strides(s),
        S=len(s.axes), BLOCK=BLOCK_COMBINE, num_warps=4,
    )  # fmt: skip
    return sums


def _slice(separable: Separable, sums: Tensor, values: Tensor, precision: str, out: Tensor) -> None:
    s = separable
    channels = values.shape[1]
    config = SLICE[precision]
    block_c = _block_c(config, channels, 2 ** len(s.axes))
    grid = len(s.pieces), -(-PIECE // config.block_p), -(-channels // block_c)
    slice_kernel[grid](
        sums, values, s.order, s.colours, s.fractions, s.diagonal, s.landmarks, s.pieces, out,
        channels, len(s.landmarks), values.stride(0), out.stride(0), *_strides(s),
        E=s.colours.shape[1], S=len(s.axes), PRECISION=input_precision(precision),
        BLOCK_P=config.block_p, BLOCK_K=config.block_k, BLOCK_C=block_c,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip


def _block_c(config: GridConfig, channels: int, corners: int) -> int:
    """Channels of a block: with all corners no wider than the configuration, nor less than 16."""
    return max(16 // corners, min(config.width // corners, power_of_2(channels)))


def _strides(separable: Separable) -> tuple[int, int]:
    """Nodes from one to the next along the last axis but one, and along the one before."""
    shape = separable.shape
    return shape[-1], math.prod(shape[-2:])
