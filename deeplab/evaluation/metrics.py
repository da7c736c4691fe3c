"""Segmentation scores from one confusion matrix over a whole set.

With n_ij the number of pixels of true class i predicted as j, t_i = sum_j n_ij and
p_i = sum_j n_ji:

    IoU_i = n_ii / (t_i + p_i - n_ii),   mIoU = mean_i IoU_i
    pixel accuracy = sum_i n_ii / sum_i t_i,   mean accuracy = mean_i n_ii / t_i

The matrix is summed over all pictures first and divided once, as the VOC kit does: the mean of each
picture's own mIoU is another and usually larger number. Source: Everingham et al., "The Pascal
Visual Object Classes Challenge", IJCV 2010, section 4.3; Long et al., "Fully Convolutional
Networks", CVPR 2015, section 5.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

Absent = Literal["skip", "zero"]
Labels = Tensor | npt.NDArray[Any]


class MaskCounts:
    """Counts of (true, predicted) pairs for the mask of each class, where several may hold.

    IoU_c is that of the ones of class c. A class that is neither true nor predicted anywhere is
    left out of the means, or scored 0, as `absent` says.

    Attributes: `matrix`, int64 ``[num_classes, 2, 2]``; `ignored`, how many values do not count.
    """

    def __init__(
        self, num_classes: int, ignore: int | None = 255, *, absent: Absent = "skip"
    ) -> None:
        self.classes = [ConfusionMatrix(2, ignore, absent=absent) for _ in range(num_classes)]

    def update(self, masks_true: Labels, masks_pred: Labels) -> None:
        """Add masks ``[C, ...]`` of 0 and 1, the true ones of `ignore` too.

        Raises as ``ConfusionMatrix.update``.
        """
        for counts, true, pred in zip(self.classes, masks_true, masks_pred, strict=True):
            counts.update(true, pred)

    def all_reduce(self) -> None:
        """Sum the counts of all processes of torch.distributed, if any; to be called in each."""
        for counts in self.classes:
            counts.all_reduce()

    @property
    def matrix(self) -> Tensor:
        return torch.stack([counts.matrix for counts in self.classes])

    @property
    def ignored(self) -> int:
        return sum(counts.ignored for counts in self.classes)

    def true_pixels(self) -> Tensor:
        """How many pixels each class truly has, int64 ``[C]``."""
        return self.matrix[:, 1].sum(1)

    def iou(self) -> Tensor:
        """Intersection over union of each class's ones, float64 ``[C]``."""
        return torch.stack([counts.iou()[1] for counts in self.classes])

    def miou(self) -> float:
        """Mean of ``iou`` over the classes that count; NaN where there is none."""
        return float(self.iou().nanmean())

    def pixel_accuracy(self) -> float:
        """Share of all answers, one for each pixel and class, that are right."""
        matrix = self.matrix
        return float(matrix.diagonal(dim1=1, dim2=2).sum() / matrix.sum().double())

    def mean_accuracy(self) -> float:
        """Mean over the classes of the share of their own pixels found."""
        found = [counts.accuracies()[1] for counts in self.classes]
        return float(torch.stack(found).nanmean())


class ConfusionMatrix:
    """Counts of (true, predicted) pairs, int64 ``[num_classes, num_classes]`` in ``matrix``.

    ``ignored`` counts the pixels with the label ``ignore``, which are not in the matrix.

    Args:
        ignore: true label of pixels that do not count; None when every pixel counts.
        absent: how a class counts that is neither in the truth nor predicted anywhere. "skip"
            (default) leaves it out of the means; "zero" scores it 0, as the VOC kit does.
    """

    def __init__(
        self, num_classes: int, ignore: int | None = 255, *, absent: Absent = "skip"
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        if ignore is not None and 0 <= ignore < num_classes:
            raise ValueError(
                f"ignore: {ignore} is one of the {num_classes} classes; "
                "choose a label outside them, or None"
            )
        if absent not in ("skip", "zero"):
            raise ValueError(f"absent must be 'skip' or 'zero', not {absent!r}")
        self.num_classes, self.ignore, self.absent = num_classes, ignore, absent
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.ignored = 0

    def update(self, labels_true: Labels, labels_pred: Labels) -> None:
        """Add pictures: integer labels of equal shape, any number of dimensions.

        Raises:
            TypeError: labels that are not integers.
            ValueError: shapes differ, or a label is outside the classes (and not ``ignore``).
        """
        true, pred = _integers("labels_true", labels_true), _integers("labels_pred", labels_pred)
        if true.shape != pred.shape:
            raise ValueError(
                f"labels_pred must be the shape of labels_true, {tuple(true.shape)}, "
                f"not {tuple(pred.shape)}"
            )
        pred, ignored = pred.to(true.device), 0
        if self.ignore is not None:
            counts = true != self.ignore
            ignored = int(counts.numel() - counts.sum())
            true, pred = true[counts], pred[counts]
        self._check_range("labels_true", true)
        self._check_range("labels_pred", pred)
        pairs = true.flatten() * self.num_classes + pred.flatten()
        added = torch.bincount(pairs, minlength=self.num_classes**2)
        self.matrix += added.view(self.num_classes, self.num_classes).cpu()
        self.ignored += ignored

    def all_reduce(self) -> None:
        """Sum the counts of all processes of torch.distributed, if any; to be called in each."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"  # NCCL alone knows no CPU
        total = torch.cat([self.matrix.flatten(), torch.tensor([self.ignored])]).to(device)
        dist.all_reduce(total)
        self.matrix = total[:-1].view_as(self.matrix).cpu()
        self.ignored = int(total[-1])

    def true_pixels(self) -> Tensor:
        """How many pixels each class truly has, int64 [C]."""
        return self.matrix.sum(1)

    def iou(self) -> Tensor:
        """Intersection over union of each class, float64 [C]; an absent class is NaN or 0."""
        hits = self.matrix.diagonal()
        return self._ratio(hits, self.matrix.sum(0) + self.matrix.sum(1) - hits)

    def miou(self) -> float:
        """Mean of ``iou`` over the classes that count; NaN before the first pixel."""
        return float(self.iou().nanmean())

    def pixel_accuracy(self) -> float:
        """Share of pixels with the right label; NaN before the first pixel."""
        return float(self.matrix.diagonal().sum() / self.matrix.sum().double())

    def mean_accuracy(self) -> float:
        """Mean over the classes of the share of their own pixels found.

        A class without a true pixel has no such share: it is left out, or 0 with absent="zero".
        """
        return float(self.accuracies().nanmean())

    def accuracies(self) -> Tensor:
        """The share of its own pixels found, of each class: float64 [C]."""
        return self._ratio(self.matrix.diagonal(), self.matrix.sum(1))

    def _ratio(self, part: Tensor, whole: Tensor) -> Tensor:
        ratio = part.double() / whole.double()  # 0 / 0 is NaN: the absent class
        return ratio if self.absent == "skip" else ratio.nan_to_num(0.0)

    def _check_range(self, name: str, labels: Tensor) -> None:
        if labels.numel() == 0:
            return
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            worst = low if low < 0 else high
            raise ValueError(
                f"{name} must be 0 .. {self.num_classes - 1}, not {worst}; "
                f"pixels to leave out are labelled ignore={self.ignore} in labels_true"
            )


def _integers(name: str, labels: Labels) -> Tensor:
    tensor = torch.as_tensor(
        np.ascontiguousarray(labels) if isinstance(labels, np.ndarray) else labels
    )
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must be integer labels, not {tensor.dtype}")
    return tensor.long()
