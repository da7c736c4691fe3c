"""What a run's labels teach: whether anything, and how much its rare classes are to weigh.

Some labels are read before the run, all are counted in it.

A run learns nothing where no pixel counts in its loss, and the same answer everywhere where all
that count are of one class. Both end with a loss near 0, and a mIoU of 100 on labels of that kind.

Before the first step label maps are read until two classes have occurred, at most `MOST_READ`. It
is an error only where all have been read. For the rest, each sample brings the number of pixels of
each label in its whole picture: after the first epoch it is known which classes never occur.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deeplab.data.datasets import IGNORE, SegmentationData
from deeplab.data.datasets.counts import LabelCounts, histogram, listed
from deeplab.errors import InputError
from deeplab.evaluation.evaluate import LabelledImages

MOST_READ = 1000  # label maps: seconds, in a set in which none of them shows two classes

TRAINING, VALIDATION = "training labels", "validation labels"


def check_labels(
    dataset: LabelledImages,
    validation: LabelledImages,
    names: Sequence[str],
    class_weights: Sequence[float],
    info: Callable[[str], object],
    masks: bool = False,
) -> None:
    """Read a few label maps of both sets before the first step.

    class_weights: empty where all count alike. info: takes a line where the labels that were read
    teach nothing, but not all were read. masks: each class has one. Only sets whose labels can be
    read alone are looked at.

    Raises InputError: one class alone, or one with a weight above 0; no two classes that count in
    any training label; no labelled pixel in any validation label.
    """
    if alone := LabelCounts.of(TRAINING, names, np.zeros(256, np.int64), masks).alone():
        raise InputError(alone)
    weights = _weights(names, class_weights)
    if np.count_nonzero(weights) == 1 and not masks:
        raise InputError(
            f"class_weights: only that of {names[int(weights.argmax())]} is above 0, so that "
            "nothing is to be told apart; give another class one too"
        )
    for where, data, counting, enough in (
        (TRAINING, dataset, weights > 0, 1 if masks else 2),
        (VALIDATION, validation, weights >= 0, 1),
    ):
        if not isinstance(data, SegmentationData):
            continue
        pixels, read = _sample_labels(data, counting, enough)
        if read is None:
            continue
        part = "" if read == len(data) else f" ({read} of {len(data)} label maps looked at)"
        defect = _defect(LabelCounts.of(where + part, names, pixels, masks), weights)
        if not part:
            raise InputError(defect)
        if read:
            info(f"Note: {defect}")


def _sample_labels(
    data: SegmentationData, counting: npt.NDArray[np.bool_], enough: int
) -> tuple[npt.NDArray[np.int64], int | None]:
    """Pixels by label in label maps spread over the set, and how many were read.

    None once `enough` of the classes that count have occurred, or a label that is no class.
    """
    classes = len(counting)
    pixels, read = np.zeros(256, np.int64), 0
    for index in np.random.default_rng(0).permutation(len(data))[:MOST_READ].tolist():
        try:
            pixels += histogram(data.labels(index))
            read += 1
        except InputError:
            continue
        sound = np.count_nonzero(pixels[:classes][counting]) >= enough
        if sound or (not data.multilabel and pixels[classes:IGNORE].any()):
            return pixels, None
    return pixels, read


def balanced_weights(dataset: LabelledImages, names: Sequence[str]) -> tuple[float, ...]:
    """A weight for each class by which rare classes count as much as others: median frequency.

        w(c) = median of all f / f(c),    f(c) = pixels of c / labelled pixels, in pictures with c

    Up to `MOST_READ` label maps spread over the set are read; those that cannot be are passed over.
    A class that none of them shows weighs as the rarest that was seen. Empty, all alike, where
    nothing is labelled.

    Source: Eigen and Fergus, "Predicting Depth, Surface Normals and Semantic Labels with a Common
    Multi-Scale Convolutional Architecture", ICCV 2015.
    """
    classes = len(names)
    of_class, together = np.zeros(classes), np.zeros(classes)
    for index in np.random.default_rng(0).permutation(len(dataset))[:MOST_READ].tolist():
        try:
            if isinstance(dataset, SegmentationData):  # no need to read the picture
                labels = dataset.labels(index)
            else:
                labels = dataset[index][1]
        except InputError:
            continue
        pixels = histogram(np.asarray(labels))[:classes]
        of_class += pixels
        together[pixels > 0] += pixels.sum()
    seen = of_class > 0
    if not seen.any():
        return ()
    frequency = of_class[seen] / together[seen]
    weights = np.full(classes, np.median(frequency) / frequency.min())
    weights[seen] = np.median(frequency) / frequency
    return tuple(weights.tolist())


class DrawnLabels:
    """The labels of all pictures that a run has drawn, in all its processes.

    masks: labels are masks, of several classes a pixel.
    pixels: int64 `[256]`, of each label in whole pictures, as often as they were drawn.
    loss_weight: the weight in the loss of the labelled pixels in the samples cut out of them.
    """

    def __init__(
        self,
        names: Sequence[str],
        class_weights: Sequence[float],
        crop: int,
        masks: bool = False,
    ) -> None:
        self.names, self.weights, self.crop = names, _weights(names, class_weights), crop
        self.masks = masks
        self.pixels = torch.zeros(256, dtype=torch.int64)
        self.loss_weight = 0.0

    def add(self, pixels: Tensor, loss_weight: float) -> None:
        self.pixels += pixels.long()
        self.loss_weight += loss_weight

    def state(self) -> dict[str, Any]:
        return {"pixels": self.pixels, "mass": self.loss_weight}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """None is of a run that did not count yet: all classes are taken to have occurred in it."""
        self.pixels = torch.ones(256, dtype=torch.int64) if state is None else state["pixels"]
        self.loss_weight = 1.0 if state is None else float(state["mass"])

    def counts(self, where: str) -> LabelCounts:
        return LabelCounts.of(where, self.names, self.pixels.numpy(), self.masks)

    def defect(self, where: str) -> str:
        """Why nothing could be learned from what was drawn, and how to mend it; empty otherwise."""
        if defect := _defect(self.counts(where), self.weights):
            return defect
        if self.loss_weight > 0:
            return ""
        return (
            f"{where}: pictures have labelled pixels, but no sample of {self.crop} x {self.crop} "
            "pixels had one that counts in the loss; raise crop"
        )


def _weights(names: Sequence[str], class_weights: Sequence[float]) -> npt.NDArray[np.float64]:
    return np.array(class_weights) if class_weights else np.ones(len(names))


def _defect(counts: LabelCounts, weights: npt.NDArray[np.float64]) -> str:
    """`LabelCounts.defect`, or that of weights which leave fewer than two classes that occur."""
    if defect := counts.defect():
        return defect
    pairs = list(zip(counts.classes, counts.pixels, weights.tolist(), strict=True))
    occurring = [name for name, pixels, _ in pairs if pixels]
    counting = [name for name, pixels, weight in pairs if pixels and weight]
    if len(counting) > (0 if counts.masks else 1):
        return ""
    which = f"only {counting[0]} has a weight above 0" if counting else "all have the weight 0"
    return (
        f"{counts.where}: {listed(occurring)} occur, of which {which} in class_weights, so that "
        "nothing is to be told apart; give other classes a weight above 0"
    )
