"""The trimap curve: the mIoU near object boundaries, for bands of growing width.

    band(w) = pixels that count, within w pixels of something, in a (2w + 1) x (2w + 1) window

That something is the void band that VOC draws around objects ("void"), or, where a data set has no
such band, a pixel of another label ("boundary"). A curve that rises late belongs to blurry edges.

Source: Kohli et al., "Robust Higher Order Potentials for Enforcing Label Consistency", IJCV 2009;
Krähenbühl and Koltun, NIPS 2011, figure 2; Chen et al., DeepLab v2, figure 10.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplab.evaluation.metrics import Absent, ConfusionMatrix

Around = Literal["void", "boundary"]
WIDTHS = tuple(range(1, 41))


@dataclass(frozen=True)
class TrimapCurve:
    """mIoU and pixel accuracy in the band of each width; None where a band holds no pixel."""

    around: Around
    widths: tuple[int, ...]
    miou: tuple[float | None, ...]
    pixel_accuracy: tuple[float | None, ...]


def band_index(labels: Tensor, widths: Sequence[int], around: Around, ignore: int = 255) -> Tensor:
    """For each pixel of labels `[H, W]` the first of the rising `widths` whose band holds it.

    int64 `[H, W]`, an index into `widths`; len(widths) where no band does. Void pixels get one too.
    """
    x = (labels == ignore if around == "void" else labels)[None, None].float()
    high, low = x, -x
    index = torch.full(labels.shape, len(widths), dtype=torch.int64)
    # A window of 2a + 1 moved over the maxima of a window of 2b + 1 is one of 2(a + b) + 1.
    for k, (before, width) in enumerate(pairwise((0, *widths))):
        high, low = (_largest(extreme, width - before) for extreme in (high, low))
        index[(high != -low)[0, 0] & (index == len(widths))] = k
    return index


class TrimapTally:
    """The confusion of each ring, the pixels that a band adds to the one before."""

    def __init__(
        self,
        num_classes: int,
        widths: Sequence[int],
        around: Around,
        ignore: int = 255,
        absent: Absent = "skip",
    ) -> None:
        if not widths or widths[0] < 1 or any(b <= a for a, b in pairwise(widths)):
            raise ValueError(f"trimap must be rising widths from 1 pixel up, not {list(widths)}")
        self.widths, self.around, self.ignore = tuple(widths), around, ignore
        self.rings = [ConfusionMatrix(num_classes, ignore, absent=absent) for _ in widths]

    def add(self, truth: Tensor, predicted: Tensor) -> None:
        """A picture: labels `[H, W]`, true and predicted."""
        index = band_index(truth, self.widths, self.around, self.ignore)
        for k, ring in enumerate(self.rings):
            inside = index == k
            ring.update(truth[inside], predicted[inside])

    def all_reduce(self) -> None:
        """Sum over all processes of torch.distributed."""
        for ring in self.rings:
            ring.all_reduce()

    def curve(self) -> TrimapCurve:
        """The scores so far, of the band of each width."""
        first = self.rings[0]
        band = ConfusionMatrix(first.num_classes, first.ignore, absent=first.absent)
        miou, accuracy = [], []
        for ring in self.rings:
            band.matrix += ring.matrix
            counted = bool(band.matrix.any())
            miou.append(band.miou() if counted else None)
            accuracy.append(band.pixel_accuracy() if counted else None)
        return TrimapCurve(self.around, self.widths, tuple(miou), tuple(accuracy))


def curves_csv(curves: dict[str, TrimapCurve]) -> str:
    """The curves as CSV: a row for each width, two columns for each curve; empty without pixels."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    scores = ("miou", "pixel_accuracy")
    writer.writerow(["width", *(f"{name} {score}" for name in curves for score in scores)])
    for k, width in enumerate(next(iter(curves.values())).widths):
        row = [getattr(curve, score)[k] for curve in curves.values() for score in scores]
        writer.writerow([width, *("" if value is None else f"{value:.6f}" for value in row)])
    return text.getvalue()


def _largest(x: Tensor, width: int) -> Tensor:
    """The maximum over the (2 width + 1) square around each pixel of `[1, 1, H, W]`."""
    window = 2 * width + 1
    rows = F.max_pool2d(x, (window, 1), 1, (width, 0))
    return F.max_pool2d(rows, (1, window), 1, (0, width))
