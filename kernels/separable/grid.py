"""The spatial Gaussian by way of a coarse grid, one axis after another.

    exp(-|p - q|^2 / 2)  ~  sum_mn w_m(p) G_mn w_n(q),   G = G_1 x ... x G_S

w_m interpolates multilinearly between the 2^S nodes around a point. To interpolate is to convolve
with a triangle of variance h^2 / 6, h being the spacing; twice, on either side. G makes up for it:

    (G_s)_ab = exp(-(a - b)^2 h^2 / 2 s^2) / s,   s^2 = 1 - h^2 / 3

but for what is negligible (band.py). It comes close to the best G in the least squares sense for h
up to about 1. The error of sums over many points grows with h^2, and is larger on an axis that
spans few sigmas.

Source: Paris and Durand, "A Fast Approximation of the Bilateral Filter using a Signal Processing
Approach" (2006), which filters on a coarse grid; the correction of the variance is ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.separable import band

MOST_SPACING = 1.0  # of a sigma


@dataclass(frozen=True)
class Axis:
    """Nodes `origin + m * spacing`, m < `nodes`, in sigmas."""

    origin: float
    spacing: float
    nodes: int

    def gaussian(self, like: Tensor) -> Tensor:
        """G_s of nodes 0, 1, ... apart, as far as they count, in the dtype of `like`, there."""
        sigma = math.sqrt(1 - self.spacing**2 / 3)
        count = int(min(self.nodes, 1 + band.reach(sigma, like.dtype) / self.spacing))
        apart = torch.arange(count, dtype=torch.float64, device=like.device) * self.spacing
        return (apart.div_(sigma).square_().mul_(-0.5).exp_() / sigma).to(like.dtype)


def axes_over(least: Sequence[float], largest: Sequence[float], tolerance: float) -> list[Axis]:
    """A grid over positions from `least` to `largest`: h^2 / 40 is a tenth of the tolerance."""
    most = min(MOST_SPACING, 2 * math.sqrt(tolerance))
    axes = []
    for first, last in zip(least, largest, strict=True):
        cells = max(1, math.ceil((last - first) / most))
        axes.append(Axis(first, (last - first) / cells or most, cells + 1))
    return axes


def locate(positions: Tensor, axes: Sequence[Axis]) -> tuple[Tensor, Tensor]:
    """The lowest node around each point, int64 `[N]`, and where between nodes it is, `[N, S]`."""
    node = torch.zeros(len(positions), dtype=torch.int64, device=positions.device)
    fractions = torch.empty_like(positions)
    for s, axis in enumerate(axes):
        x = (positions[:, s].double() - axis.origin).div_(axis.spacing)
        cell = x.floor().clamp_(0, axis.nodes - 2)
        node = torch.add(cell.long(), node, alpha=axis.nodes)
        fractions[:, s] = x.sub_(cell)
    return node, fractions


def corner_offsets(shape: Sequence[int]) -> list[int]:
    """How many nodes after the lowest one each corner of a cell is; bit s of a corner is axis s."""
    strides = [math.prod(shape[s + 1 :]) for s in range(len(shape))]
    return [
        sum(stride for s, stride in enumerate(strides) if corner >> s & 1)
        for corner in range(2 ** len(shape))
    ]


def corner_weights(fractions: Tensor) -> Tensor:
    """w at the corners of each point's cell, `[N, 2^S]`."""
    weights = fractions.new_ones(len(fractions), 1)
    for t in fractions.T:
        weights = torch.cat([weights * (1 - t[:, None]), weights * t[:, None]], 1)
    return weights
