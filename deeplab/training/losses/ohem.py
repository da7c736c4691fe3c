"""Online hard example mining: cross entropy over the hardest fifth of each picture's pixels.

    sum_b  sum of the k_b largest  w(y_p) * -log P_p(y_p)  of picture b,      k_b = ceil(n_b / 5)

with n_b labelled pixels in picture b; it is divided by sum_b k_b, which the labels alone tell.
Sources: Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example
Mining", CVPR 2016; Wu et al., "Bridging Category-level and Instance-level Semantic Image
Segmentation", 2016, for pixels; the share is that of Cheng et al., "Panoptic-DeepLab", CVPR 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deeplab.data.datasets import IGNORE
from deeplab.training.losses.cross_entropy import pixel_cross_entropy
from deeplab.training.losses.scored import Scored

SHARE = 5  # one of so many pixels is kept


def ohem(scored: Scored) -> Tensor:
    """The sum over the pixels that are kept, a scalar."""
    losses = pixel_cross_entropy(scored).flatten(1)
    # Ignored pixels come behind all others; no more than the labelled ones are kept.
    order = losses.detach().masked_fill(~scored.labelled.flatten(1), -1)
    hardest = losses.gather(1, order.argsort(dim=1, descending=True))
    rank = torch.arange(hardest.shape[1], device=hardest.device)
    return hardest.where(rank < _kept(scored.labels)[:, None], 0).sum()


def kept_pixels(labels: Tensor, class_weights: Tensor | None) -> float:
    """How many pixels of the pictures `[B, h, w]` are kept."""
    return float(_kept(labels).sum())


def _kept(labels: Tensor) -> Tensor:
    """Of each picture, int64 `[B]`."""
    count = (labels != IGNORE).flatten(1).sum(1)
    return (count + SHARE - 1) // SHARE
