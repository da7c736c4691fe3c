"""Which classes occur in the labels of a set, and whether anything can be learned from them.

One place for the arithmetic and the words, for training, evaluation and the check of a data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deeplab.data.datasets.labels import IGNORE

NO_CLASS = 254  # place of the zeros of masks in a histogram
_NAMED = 12  # classes in one line


@dataclass(frozen=True)
class LabelCounts:
    """Pixels in the labels of `where`, such as "training labels": of each class, and ignored.

    masks: a class has a mask of its own, so that one alone can be learned.
    """

    where: str
    classes: tuple[str, ...]
    pixels: tuple[int, ...]
    ignored: int
    masks: bool = False

    @classmethod
    def of(
        cls,
        where: str,
        classes: Sequence[str],
        histogram: npt.NDArray[np.int64],
        masks: bool = False,
    ) -> LabelCounts:
        """From the number of pixels of each label, int64 `[256]`: classes first, 255 = ignored."""
        pixels = tuple(histogram[: len(classes)].tolist())
        return cls(where, tuple(classes), pixels, int(histogram[IGNORE]), masks)

    @property
    def absent(self) -> tuple[str, ...]:
        """The classes without a pixel."""
        return tuple(c for c, pixels in zip(self.classes, self.pixels, strict=True) if not pixels)

    def note(self) -> str:
        """A line that names the classes without a pixel, or the `defect`; empty without either."""
        if defect := self.defect():
            return defect
        if not self.absent:
            return ""
        share = f"{len(self.absent)} of {len(self.classes)} classes"
        return f"{self.where}: no pixel of {listed(self.absent)} ({share})"

    def alone(self) -> str:
        """What is wrong where one class is all that there is, and how to mend it; else empty."""
        if len(self.classes) > 1 or self.masks:
            return ""
        return (
            f"{self.where}: {self.classes[0]} is the only class, so that every pixel is it "
            "whatever the picture shows; give what is not it a class of its own too, such as "
            "background"
        )

    def defect(self) -> str:
        """What is wrong where fewer than two classes exist or occur, and how to mend it, or ""."""
        if alone := self.alone():
            return alone
        present = [i for i, pixels in enumerate(self.pixels) if pixels]
        if len(present) > 1 or (self.masks and present):
            return ""
        if self.masks:
            return (
                f"{self.where}: no mask has a pixel of its class; check their values: 0, and 1 for "
                "the class or what classes.toml says, as label = 255 for masks of black and white"
            )
        if not present:
            what = "no pixel is labelled" + (", all are ignored (255)" if self.ignored else "")
        else:
            what = f"only {self.classes[present[0]]} (label {present[0]}) "
            what += "and ignored pixels (255) occur" if self.ignored else "occurs"
        mend = "check the label maps, and which of their values is which class"
        if self.ignored:
            mend = (
                "if 255 is a class in these label maps, as in masks of black and white, say so in "
                "classes.toml: label = 255"
            )
        return f"{self.where}: {what}, of {len(self.classes)} classes; {mend}"


def histogram(labels: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """The number of pixels of each label from 0 to 255: int64 `[256]`.

    Of masks `[C, H, W]`: of the ones of each class, of zeros as `NO_CLASS`, and of ignored ones.
    """
    if labels.ndim == 3:
        counts = np.zeros(256, np.int64)
        counts[: len(labels)] = (labels == 1).sum((1, 2))
        counts[NO_CLASS], counts[IGNORE] = (labels == 0).sum(), (labels == IGNORE).sum()
        return counts
    return np.bincount(labels.astype(np.uint8, copy=False).ravel(), minlength=256)


def listed(names: Sequence[str]) -> str:
    """Names with commas, the first dozen of them."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
