"""Where scores lie on pixels, and which label each is compared with.

With logits of output stride 8 and align_corners, n = 8k + 1 pixels meet k + 1 scores on every
eighth pixel: what Caffe's Interp layer makes of the labels. Style "torchvision" and resize "torch"
upsample without align_corners, which puts score i of m on the centre of its share, pixel
(i + 1/2) n / m: that pixel's label is the one it is trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deeplab.data.augment import shrink_labels
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
    """For each term of the loss, every how many-th pixel's label it looks at.

    Of several scales each has a term, and their maximum one; with a CRF, whose result is one for
    all, there is but that of the result.
    """
    scales = model.config.get("scales")
    if model.output_stride != 8 and stride != 1:
        raise InputError(
            f"loss_stride must be 1 to train {model.config['model']}, whose scores lie "
            f"{model.output_stride} pixels apart and not 8"
        )
    if not scales or model.crf is not None:
        return (stride,)
    last = 1 if stride == 1 else round(8 / scales[-1])
    return (stride,) * len(scales) + (last,)


def labels_of_scores(labels: Tensor, stride: int, grid: Grid) -> Tensor:
    """The label that each score is compared with: [..., H, W] -> [..., h, w].

    The sides are stride k + 1. A picture of that size gives the pixels under the scores.
    """
    if grid.aligned or stride == 1:
        shrunk: Tensor = shrink_labels(labels, stride)
        return shrunk
    of_map = stride if grid.apart else 8
    rows, columns = (
        (2 * torch.arange(count, device=labels.device) + 1) * side // (2 * count)
        for side in labels.shape[-2:]
        for count in [grid.count(side, of_map)]
    )
    every = stride // of_map
    return labels[..., rows[::every, None], columns[::every]]
