"""A map of scores beside its labels: what every loss is given, and what most are divided by.

A loss is a sum over pixels or pictures, divided by a denominator that the labels alone tell: see
deeplab/training/losses/step_loss.py.

Several labels a pixel are that many problems of two classes, each "not it" with the score 0 and
"it" with the score z, whose softmax is the sigmoid of z: every loss is summed over them, and so is
its denominator. The mean cross entropy is then the binary one over all pixels and classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deeplab.data.datasets import IGNORE


@dataclass(frozen=True)
class Scored:
    """Scores of some pictures and what they are compared with.

    Attributes:
        logits: `[B, C, h, w]`, float32 or float64.
        labels: int64 `[B, h, w]` under the scores, 255 ignored; or masks `[B, C, h, w]` of 0, 1
            and 255, which `each` takes apart before a loss sees them.
        rgb: `[B, 3, h, w]`, values 0-255: the picture under the scores; None for those losses that
            do not look at it.
        inside: bool `[B, h, w]`: False beyond the picture, where a sample is filled; None: nowhere.
        stride: pixels from one score to the next.
        class_weights: `[C]` of the dtype of the logits, or None where all classes weigh 1; of a
            mask the weight of its ones, where its zeros weigh 1.
        label_smoothing: of the cross entropy.
    """

    logits: Tensor
    labels: Tensor
    rgb: Tensor | None = None
    inside: Tensor | None = None
    stride: int = 1
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0

    def each(self) -> tuple[Scored, ...]:
        """What the losses are summed over: this, or of masks the two classes of each."""
        if not are_masks(self.labels):
            return (self,)
        parts = each_labels(self.labels, self.class_weights)
        scores = self.logits.split(1, 1)  # [B, 1, h, w] of each class
        return tuple(
            replace(
                self,
                logits=torch.cat([torch.zeros_like(z), z], 1),
                labels=labels,
                class_weights=weights,
            )
            for z, (labels, weights) in zip(scores, parts, strict=True)
        )

    @property
    def labelled(self) -> Tensor:
        """Which pixels count: bool `[B, h, w]`."""
        return self.labels != IGNORE

    @property
    def truth(self) -> Tensor:
        """The true class as 1 among 0, of the dtype of the logits `[B, C, h, w]`; 0 where ignored.

        Labels are compared, not indexed with, so that an ignored one needs no class.
        """
        classes = torch.arange(self.logits.shape[1], device=self.labels.device)
        return (self.labels[:, None] == classes[:, None, None]).to(self.logits.dtype)

    @property
    def label_weights(self) -> Tensor:
        """The weight of each pixel's class `[B, h, w]`; 0 where ignored."""
        if self.class_weights is None:
            return self.labelled.to(self.logits.dtype)
        weights = self.class_weights.to(self.logits.dtype)
        return weights[self.labels.where(self.labelled, 0)] * self.labelled


def are_masks(labels: Tensor) -> bool:
    """Whether labels of pictures are `[B, C, h, w]`, a mask of each class, and not `[B, h, w]`."""
    return labels.ndim == 4


def each_labels(labels: Tensor, class_weights: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    """Labels `[B, h, w]` with the weights of their classes: these, or those of each mask."""
    if not are_masks(labels):
        return [(labels, class_weights)]
    if class_weights is None:
        return [(mask, None) for mask in labels.unbind(1)]
    pairs = torch.stack([torch.ones_like(class_weights), class_weights], 1)
    return list(zip(labels.unbind(1), pairs, strict=True))


def labelled_weight(labels: Tensor, class_weights: Tensor | None) -> float:
    """The weight of all labelled pixels of integers `[B, h, w]`."""
    seen = labels[labels != IGNORE]
    if class_weights is None:
        return float(seen.numel())
    return float(class_weights.double()[seen.long()].sum())


def labelled_pictures(labels: Tensor, class_weights: Tensor | None) -> float:
    """How many of the pictures `[B, h, w]` have a labelled pixel."""
    return float((labels != IGNORE).flatten(1).any(1).sum())


def present_mean(values: Tensor, truth: Tensor) -> Tensor:
    """The mean over the classes that occur in a picture, summed over the pictures: a scalar.

    values: `[B, C]`, of each class in each picture; truth: `[B, C, h, w]`. A picture without a
    labelled pixel has no class and adds 0, with a gradient of 0.
    """
    present = truth.flatten(2).any(2)
    of_present = values.where(present, 0)
    return (of_present.sum(1) / present.sum(1).clamp(min=1)).sum()
