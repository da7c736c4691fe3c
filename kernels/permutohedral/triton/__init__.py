"""The permutohedral lattice on a GPU, in Triton: build, splat, blur and slice.

    building.py  place points, pack and sort keys, find neighbours
    segments.py  which entries each vertex sums, in pieces of bounded length
    filtering.py splat, blur, slice

The lattice of kernels/permutohedral/reference.py (Adams, Baek and Davis 2010; rounding and
blur order of Krähenbühl and Koltun's densecrf). Without atomics: sums are in float32 and in a fixed
order, so that two runs give the same bits.
"""

import torch
from torch import Tensor

from kernels.permutohedral.triton.building import build, build_all
from kernels.permutohedral.triton.filtering import filter

__all__ = ["build", "build_all", "filter", "filter_batch"]

MOST_POINTS = 2**22  # that one lattice of several images holds, so that memory stays bounded


def filter_batch(values: Tensor, features: Tensor, reverse: bool = False) -> Tensor:
    """Filter `values` `[B, N, C]` on lattices of `features` `[B, N, D]`; images do not mix.

    One build, and one wait for the device, serves as many images as have `MOST_POINTS` points.
    """
    batch, count, dims = features.shape
    output = torch.empty_like(values, memory_format=torch.contiguous_format)
    points_together = min(MOST_POINTS, (2**31 - 1) // (dims + 1))
    images = max(1, points_together // max(1, count))
    for first in range(0, batch, images):
        points = features[first : first + images]
        lattice = build(points.flatten(0, 1), len(points))
        filtered = filter(lattice, values[first : first + images].flatten(0, 1), reverse)
        output[first : first + images] = filtered.unflatten(0, (len(points), count))
    return output
