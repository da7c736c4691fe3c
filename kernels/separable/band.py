"""A Gaussian along one axis of a grid: a band of weights, which depend on the distance alone.

    y_m = sum_{|d| <= R} g_|d| x_{m + d}        nothing beyond the ends

Weights below eps / 8 of g_0 are left out: in float32 what is farther than 6 sigma, exp(-18). What a
sum loses by it is at most eps / 4 of its mass, less than its rounding.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64  # results of one product: more multiply by more zeros, fewer are small products


def reach(sigma: float, dtype: torch.dtype) -> float:
    """How far, in the unit of `sigma`, a Gaussian's weights are not left out."""
    return sigma * math.sqrt(-2 * math.log(negligible(dtype)))


def negligible(dtype: torch.dtype) -> float:
    """The largest share of the weight of distance 0 that is left out."""
    return torch.finfo(dtype).eps / 8


def convolve(values: Tensor, taps: Tensor) -> Tensor:
    """y along the middle of `[A, N, B]`, by `taps` g `[R + 1]`; differentiable in both."""
    outer, length, inner = values.shape
    radius = len(taps) - 1
    if length <= 2 * radius + BLOCK:
        return torch.bmm(_band(taps, length, length, 0).expand(outer, -1, -1), values)
    blocks = -(-length // BLOCK)
    padded = F.pad(values, (0, 0, radius, blocks * BLOCK - length + radius))
    windows = padded.unfold(1, BLOCK + 2 * radius, BLOCK).mT.flatten(0, 1)
    band = _band(taps, BLOCK, BLOCK + 2 * radius, radius).expand(len(windows), -1, -1)
    return torch.bmm(band, windows).view(outer, blocks * BLOCK, inner)[:, :length]


def _band(taps: Tensor, rows: int, columns: int, shift: int) -> Tensor:
    """g of |i + shift - j|, `[rows, columns]`."""
    i = torch.arange(rows, device=taps.device)[:, None] + shift
    distance = (i - torch.arange(columns, device=taps.device)).abs()
    return F.pad(taps, (0, 1))[distance.clamp(max=len(taps))]
