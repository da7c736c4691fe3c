"""The loss: cross entropy per labelled pixel, at full size or on the grid of the logits.

    one scale        sum_p w(y_p) * -log P(y_p)  /  sum_p w(y_p)            p: the labelled pixels
    several (MSC)    the sum of such terms, each over its own labels; of scales 1, 0.75, 0.5:
                     fused, scale 1, scale 0.75 brought to the map of scale 1    labels[::8, ::8]
                     scale 0.5 at its own size                                   labels[::16, ::16]

Denominators come from the labels alone: they are known before the first forward pass, so that
micro-batches and processes share those of the whole step, whose gradient does not depend on them.

With logits of output stride 8 and align_corners, n = 8k + 1 pixels meet k + 1 scores on every
eighth pixel: what Caffe's Interp layer makes of the labels. Style "torchvision" and resize "torch"
upsample without align_corners, which puts score i of m on the centre of its share, pixel
(i + 1/2) n / m: that pixel's label is the one it is trained on.

Source: Chen et al., DeepLab v2, section 4.1, and the training prototxt of its ResNet-101.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplab.data.augment import shrink_labels
from deeplab.data.datasets import IGNORE
from deeplab.errors import InputError
from deeplab.model import DeepLab


@dataclass(frozen=True)
class Grid:
    """Where a model's scores lie on the pixels of a crop of stride k + 1 pixels a side.

    aligned: score i lies on pixel stride i, as upsampling with align_corners has it. Otherwise
    scores lie on the centres of their shares, and (apart) those of a coarser stride than 8 too, or
    else on every second of the finer ones. rounds_up: such a map has k + 1 scores a side, not k.
    """

    aligned: bool = True
    apart: bool = False
    rounds_up: bool = True

    @classmethod
    def of(cls, model: DeepLab) -> Grid:
        """floor(n / 2) = 8k pixels give k + 1 scores where poolings round up, k otherwise."""
        return cls(model.aligned, model.resize == "torch", model.style == "caffe")

    def count(self, side: int, stride: int) -> int:
        """How many scores there are on a side."""
        missing = self.apart and stride > 8 and not self.rounds_up
        return (side - 1) // stride + 1 - missing


ALIGNED = Grid()


def label_strides(model: DeepLab, stride: int) -> tuple[int, ...]:
    """For each term of the loss, every how many-th pixel's label it looks at."""
    scales = model.config.get("scales")
    if model.output_stride != 8 and (scales or stride != 1):
        what = "scales must be none" if scales else "loss_stride must be 1"
        raise InputError(
            f"{what} to train {model.config['model']}, whose scores lie {model.output_stride} "
            "pixels apart and not 8"
        )
    return (stride,) if not scales else (8,) * len(scales) + (round(8 / scales[-1]),)


def labels_of_scores(labels: Tensor, stride: int, grid: Grid) -> Tensor:
    """The label that each score is compared with: [B, H, W] -> [B, h, w], sides of stride k + 1."""
    if grid.aligned or stride == 1:
        shrunk: Tensor = shrink_labels(labels, stride)
        return shrunk
    of_map = stride if grid.apart else 8
    rows, columns = (
        (2 * torch.arange(count, device=labels.device) + 1) * side // (2 * count)
        for side in labels.shape[1:]
        for count in [grid.count(side, of_map)]
    )
    every = stride // of_map
    return labels[:, rows[::every, None], columns[::every]]


def loss_denominators(
    labels: Tensor, strides: Sequence[int], class_weights: Tensor | None, grid: Grid = ALIGNED
) -> Tensor:
    """float64 [terms]: the weight of the labelled pixels at each stride.

    labels: integers [B, H, W], 255 ignored; class_weights: [classes], None counts pixels.
    """
    weights = []
    for stride in strides:
        seen = labels_of_scores(labels, stride, grid)
        seen = seen[seen != IGNORE]
        if class_weights is None:
            weights.append(float(seen.numel()))
        else:
            weights.append(float(class_weights.double()[seen.long()].sum()))
    return torch.tensor(weights, dtype=torch.float64)


class StepLoss(nn.Module):
    """Network and loss in one module, which torch.compile and DistributedDataParallel can wrap.

    forward(rgb [B, 3, H, W] in 0-255, labels int64 [B, H, W], denominators [terms] of the whole
    step, none of them 0) -> the part of these samples in the loss, a scalar of at least float32.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        model: DeepLab,
        stride: int = 1,
        class_weights: Tensor | None = None,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.strides = label_strides(model, stride)
        self.grid = Grid.of(model)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, rgb: Tensor, labels: Tensor, denominators: Tensor) -> Tensor:
        sums = [
            F.cross_entropy(
                logits.to(torch.promote_types(logits.dtype, torch.float32)),
                labels_of_scores(labels, stride, self.grid),
                weight=self.class_weights,
                ignore_index=IGNORE,
                reduction="sum",
            )
            for logits, stride in zip(self._logits(rgb), self.strides, strict=True)
        ]
        return (torch.stack(sums) / denominators).sum()

    def _logits(self, rgb: Tensor) -> tuple[Tensor, ...]:
        x = self.model.preprocess(rgb).contiguous(memory_format=self.format)
        if len(self.strides) > 1:
            return tuple(self.model.forward_scales(x))
        image = None if self.model.crf is None else self.model.preprocessing.levels(rgb).float()
        return (self.model(x, image=image, upsample=self.strides == (1,)),)


def segmentation_loss(model: DeepLab, rgb: Tensor, labels: Tensor, stride: int) -> Tensor:
    """The loss of a batch, for a training loop of one's own.

    Args:
        model: in training, of one scale or several.
        rgb: `[B, 3, H, W]`, values 0-255.
        labels: int64 `[B, H, W]`, 255 ignored.
        stride: 1 compares the upsampled logits with the labels, 8 the logits with every eighth.

    Returns:
        The mean cross entropy over the labelled pixels, a scalar; 0 where none is labelled.
    """
    step = StepLoss(model, stride)
    denominators = loss_denominators(labels, step.strides, None, step.grid).clamp(min=1)
    loss: Tensor = step(rgb, labels, denominators.to(rgb.device, torch.float32))
    return loss
