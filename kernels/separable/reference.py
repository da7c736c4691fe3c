"""The separable filter in plain PyTorch: the oracle, on any device, float64 included.

A piece of points at a time, all of one cell of the grid:

    sums[cell's corners, C, K] += (w v)^T phi        splat, a matrix product
    sums = G sums A                                  `Separable.smooth`
    y = sum over corners of w (phi sums^T)           slice, a matrix product

phi is computed twice and never held for more than one piece.
"""

import math

import torch
from torch import Tensor

from kernels.separable import grid
from kernels.separable.factors import Separable
from kernels.separable.landmarks import features_of


def filter(separable: Separable, values: Tensor) -> Tensor:
    """`[N, C]` -> `[N, C]`, without gradient."""
    output = torch.empty_like(values, memory_format=torch.contiguous_format)
    for channels in separable.channels_at_once(values.shape[1]):
        inputs = values[:, channels][separable.order]
        sums = separable.smooth(_splat(separable, inputs))
        filtered = _slice(separable, sums).addcmul_(separable.diagonal[:, None], inputs)
        output[separable.order, channels] = filtered
    return output


def _splat(separable: Separable, inputs: Tensor) -> Tensor:
    """Sums over nodes, `[M, C, K]`."""
    offsets = torch.tensor(grid.corner_offsets(separable.shape), device=inputs.device)
    nodes, channels = math.prod(separable.shape), inputs.shape[1]
    sums = inputs.new_zeros(nodes, channels, len(separable.landmarks))
    weights = grid.corner_weights(separable.fractions)
    for first, end, lowest in separable.pieces.tolist():
        phi = features_of(separable.colours[first:end], separable.landmarks)
        weighted = weights[first:end, :, None] * inputs[first:end, None]
        of_corners = weighted.flatten(1).T @ phi
        sums[offsets + lowest] += of_corners.view(len(offsets), channels, -1)
    return sums


def _slice(separable: Separable, sums: Tensor) -> Tensor:
    """`[N, C]`, in order, from sums over nodes `[M, C, K]`."""
    offsets = torch.tensor(grid.corner_offsets(separable.shape), device=sums.device)
    output = sums.new_empty(separable.num_points, sums.shape[1])
    weights = grid.corner_weights(separable.fractions)
    for first, end, lowest in separable.pieces.tolist():
        phi = features_of(separable.colours[first:end], separable.landmarks)
        at_corners = phi @ sums[offsets + lowest].flatten(0, 1).T
        at_corners = at_corners.view(end - first, len(offsets), -1)
        output[first:end] = (at_corners * weights[first:end, :, None]).sum(1)
    return output
