"""Cross entropy, with smoothed labels where that is wanted.

    sum_p  (1 - s) w(y_p) * -log P_p(y_p)  +  s / C sum_c w(c) * -log P_p(c)

over the labelled pixels p; s is the label smoothing, w the class weights. It is divided by
sum_p w(y_p). Sources: Chen et al., DeepLab v2, section 4.1; Szegedy et al., "Rethinking the
Inception Architecture for Computer Vision", 2016, section 7, for the smoothing.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from deeplab.data.datasets import IGNORE
from deeplab.training.losses.scored import Scored


def cross_entropy(scored: Scored) -> Tensor:
    """The sum over the labelled pixels, a scalar."""
    return F.cross_entropy(
        scored.logits,
        scored.labels,
        weight=scored.class_weights,
        ignore_index=IGNORE,
        reduction="sum",
        label_smoothing=scored.label_smoothing,
    )


def pixel_cross_entropy(scored: Scored) -> Tensor:
    """Of each pixel, weighted by its class, without smoothing: `[B, h, w]`, 0 where ignored."""
    return F.cross_entropy(
        scored.logits,
        scored.labels,
        weight=scored.class_weights,
        ignore_index=IGNORE,
        reduction="none",
    )
