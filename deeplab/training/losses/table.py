"""The losses by name, as recipes have them, and what each is divided by.

    name             class weights    a sum over       divided by
    cross_entropy    yes              pixels           the weight of the labelled pixels
    focal            yes              pixels           the same
    ohem             yes              hard pixels      their number
    dice             no               pictures         the number of those with a labelled pixel
    lovasz           no               pictures         the same
    dense_crf        no               pictures         the same

Dice and Lovász weigh the classes of a picture alike as they are. Of several labels a pixel each
class is two, "not it" and "it" (`scored.py`), and its weight is that of its own pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from deeplab.training.losses.cross_entropy import cross_entropy
from deeplab.training.losses.dense_crf import dense_crf
from deeplab.training.losses.dice import dice
from deeplab.training.losses.focal import focal
from deeplab.training.losses.lovasz import lovasz
from deeplab.training.losses.ohem import kept_pixels, ohem
from deeplab.training.losses.scored import Scored, labelled_pictures, labelled_weight


@dataclass(frozen=True)
class Loss:
    """total: the sum, a scalar; 0 with a gradient of 0 where no pixel is labelled.

    denominator: of labels `[B, h, w]` and class weights `[C]` or None.
    """

    total: Callable[[Scored], Tensor]
    denominator: Callable[[Tensor, Tensor | None], float]


LOSSES = {
    "cross_entropy": Loss(cross_entropy, labelled_weight),
    "focal": Loss(focal, labelled_weight),
    "ohem": Loss(ohem, kept_pixels),
    "dice": Loss(dice, labelled_pictures),
    "lovasz": Loss(lovasz, labelled_pictures),
    "dense_crf": Loss(dense_crf, labelled_pictures),
}

LOOKS_AT_PICTURES = frozenset({"dense_crf"})
