"""Multi-scale input (MSC): one network sees a picture at several scales; the largest score wins.

    s_k = network(interp(x, scale_k)),    scores = max_k interp(s_k, size of s_0)

scale_0 is 1. How pictures and scores are resized belongs to the weights, as the style does:

    resize     side of n pixels at scale s     corners of the grids    logits to the image
    "caffe"    that of Caffe's Interp          coincide                as the style has it
    "torch"    floor(n * s)                    do not                  corners do not coincide

Interp takes s for p/q, shrinks by q first and zooms by p then:

    n' = (n - 1) // q + 1,    size = n' + (n' - 1) * (p - 1)          321 -> 241 -> 161

"torch" is F.interpolate(x, scale_factor=s) without align_corners: pixels are areas, 1/s of them
make one, and what is left over at the lower and right edge goes unseen.

Sources: Chen et al., "DeepLab", TPAMI 2018, section 4.1.2, and its released prototxt; "torch":
libs/models/msc.py, main.py and demo.py of github.com/kazuto1011/deeplab-pytorch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

MSC = (1.0, 0.75, 0.5)  # the paper's
LARGEST_DENOMINATOR = 64

Resize = Literal["caffe", "torch"]
RESIZES: tuple[Resize, ...] = get_args(Resize)


def interp_size(n: int, scale: float) -> int:
    """The size that Caffe's Interp gives `n` pixels at `scale`, at least 1."""
    fraction = Fraction(scale).limit_denominator(LARGEST_DENOMINATOR)
    shrunk = (n - 1) // fraction.denominator + 1
    return shrunk + (shrunk - 1) * (fraction.numerator - 1)


def interp(x: Tensor, size: Sequence[int]) -> Tensor:
    """Caffe's Interp: `[B, C, H, W]` -> `[B, C, *size]`, bilinear with corners aligned."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def shrink(x: Tensor, scale: float, resize: Resize) -> Tensor:
    """A batch `[B, C, H, W]` at `scale`, each side at least 1 pixel."""
    if resize == "caffe":
        return interp(x, [interp_size(n, scale) for n in x.shape[2:]])
    factors = [scale if n * scale >= 1 else 1.25 / n for n in x.shape[2:]]
    return F.interpolate(x, scale_factor=factors, mode="bilinear", align_corners=False)


def bring(scores: Tensor, size: Sequence[int], resize: Resize) -> Tensor:
    """Scores `[B, C, h, w]` on a map of another size, `[B, C, *size]`."""
    if resize == "caffe":
        return interp(scores, size)
    return F.interpolate(scores, size=list(size), mode="bilinear", align_corners=False)


def scores_of_scales(
    network: Callable[[Tensor], Tensor],
    x: Tensor,
    scales: Sequence[float],
    resize: Resize = "caffe",
) -> tuple[Tensor, ...]:
    """The network's scores at each scale, and their maximum first.

    network: x `[B, Cin, H, W]` -> scores `[B, C, h, w]`. scales: as `checked_scales` gives them.
    Returns (maximum, scale 1, scales between brought to the map of scale 1, last scale as it is):
    one more than there are scales. The last is left small because it is trained as it is.
    """
    full = network(x)
    native = [network(shrink(x, scale, resize)) for scale in scales[1:]]
    brought = [bring(scores, full.shape[2:], resize) for scores in native]
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
            "scales must be None, or 1.0 and at least one smaller scale, falling, such as "
            f"(1.0, 0.75, 0.5), not {scales!r}"
        )
    return [float(scale) for scale in listed]
