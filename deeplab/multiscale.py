"""Multi-scale input (MSC): one network sees a picture at several scales; the largest score wins.

    s_k = network(interp(x, scale_k)),    scores = max_k interp(s_k, size of s_0)

scale_0 is 1. Sizes are those of Caffe's Interp layer for a scale p/q, which shrinks by q first and
zooms by p then, so that the corners of both grids coincide:

    n' = (n - 1) // q + 1,    size = n' + (n' - 1) * (p - 1)          321 -> 241 -> 161

Source: Chen et al., "DeepLab", TPAMI 2018, section 4.1.2, and its released prototxt.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

MSC = (1.0, 0.75, 0.5)  # the paper's
LARGEST_DENOMINATOR = 64


def interp_size(n: int, scale: float) -> int:
    """The size that Caffe's Interp gives `n` pixels at `scale`, at least 1."""
    fraction = Fraction(scale).limit_denominator(LARGEST_DENOMINATOR)
    shrunk = (n - 1) // fraction.denominator + 1
    return shrunk + (shrunk - 1) * (fraction.numerator - 1)


def interp(x: Tensor, size: Sequence[int]) -> Tensor:
    """Caffe's Interp: `[B, C, H, W]` -> `[B, C, *size]`, bilinear with corners aligned."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def scores_of_scales(
    network: Callable[[Tensor], Tensor], x: Tensor, scales: Sequence[float]
) -> tuple[Tensor, ...]:
    """The network's scores at each scale, and their maximum first.

    network: x `[B, 3, H, W]` -> scores `[B, C, h, w]`. scales: as `checked_scales` gives them.
    Returns (maximum, scale 1, scales between brought to the map of scale 1, last scale as it is):
    one more than there are scales. The last is left small because it is trained as it is.
    """
    full = network(x)
    sizes = ([interp_size(n, scale) for n in x.shape[2:]] for scale in scales[1:])
    native = [network(interp(x, size)) for size in sizes]
    brought = [interp(scores, full.shape[2:]) for scores in native]
    fused = full
    for scores in brought:
        fused = torch.maximum(fused, scores)
    return fused, full, *brought[:-1], native[-1]


def checked_scales(scales: Sequence[float] | None) -> list[float] | None:
    """The scales as a list; ValueError unless they begin with 1 and fall towards 0, or are None."""
    if scales is None:
        return None
    listed = list(scales) if isinstance(scales, Iterable) else []
    numbers = all(isinstance(scale, int | float) for scale in listed)
    falling = numbers and all(0 < b < a for a, b in itertools.pairwise(listed))
    if len(listed) < 2 or not falling or listed[0] != 1:
        raise ValueError(
            "scales: expected None, or 1.0 and at least one smaller scale, falling, such as "
            f"(1.0, 0.75, 0.5), got {scales!r}"
        )
    return [float(scale) for scale in listed]
