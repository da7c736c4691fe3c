"""The loss of a step: a weighted sum of losses, at each map of scores.

    one scale        sum_l weight_l * total_l(scores, labels) / denominator_l(labels)
    several (MSC)    the sum of such terms, each over its own labels; of scales 1, 0.75, 0.5:
                     fused, scale 1, scale 0.75 brought to the map of scale 1    labels[::8, ::8]
                     scale 0.5 at its own size                                   labels[::16, ::16]
                 or, at loss_stride 1, each brought to the size of the labels

for the losses l of `table.py`; with the cross entropy alone that is

    sum_p w(y_p) * -log P(y_p)  /  sum_p w(y_p)                             p: the labelled pixels

Denominators come from the labels alone: they are known before the first forward pass, so that
micro-batches and processes share those of the whole step, whose gradient does not depend on them.
For the same reason losses over areas (Dice, Lovász) are taken picture by picture.

Source: Chen et al., DeepLab v2, section 4.1, and the training prototxt of its ResNet-101.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from deeplab.data.datasets import IGNORE
from deeplab.model import DeepLab
from deeplab.training.auxiliary import AuxiliaryHead
from deeplab.training.losses.grid import ALIGNED, Grid, label_strides, labels_of_scores
from deeplab.training.losses.scored import Scored, are_masks, each_labels
from deeplab.training.losses.table import LOOKS_AT_PICTURES, LOSSES

CROSS_ENTROPY = {"cross_entropy": 1.0}


def loss_denominators(
    labels: Tensor,
    strides: Sequence[int],
    class_weights: Tensor | None,
    grid: Grid = ALIGNED,
    losses: Sequence[str] = ("cross_entropy",),
) -> Tensor:
    """float64 [strides * losses]: what each loss is divided by at each stride, strides first.

    labels: integers [B, H, W], 255 ignored, or masks [B, C, H, W]; class_weights: [classes], None
    counts pixels.
    """
    of_stride = {}
    for stride in dict.fromkeys(strides):
        parts = each_labels(labels_of_scores(labels, stride, grid), class_weights)
        of_stride[stride] = [
            sum(LOSSES[name].denominator(*part) for part in parts) for name in losses
        ]
    return torch.tensor([d for stride in strides for d in of_stride[stride]], dtype=torch.float64)


class StepLoss(nn.Module):
    """Network and loss in one module, which torch.compile and DistributedDataParallel can wrap.

    losses: names of `LOSSES` with their weights in the sum. auxiliary, auxiliary_weight: a head
    whose scores have the same losses, and how much they weigh.

    forward(rgb [B, 3, H, W] in 0-255, labels int64 [B, H, W] or [B, C, H, W], denominators
    [strides * losses] of the whole step, none of them 0) -> the part of these samples in the loss,
    a scalar of at least float32.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        model: DeepLab,
        stride: int = 1,
        class_weights: Tensor | None = None,
        channels_last: bool = True,
        losses: Mapping[str, float] = CROSS_ENTROPY,
        label_smoothing: float = 0.0,
        auxiliary: AuxiliaryHead | None = None,
        auxiliary_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.auxiliary = auxiliary
        self.strides = label_strides(model, stride)
        self.map_weights = (1.0,) * len(self.strides)
        if auxiliary is not None:  # of a model of one scale
            self.strides *= 2
            self.map_weights = (1.0, auxiliary_weight)
        self.grid = Grid.of(model)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.losses, self.label_smoothing = dict(losses), label_smoothing
        self.register_buffer("class_weights", class_weights, persistent=False)
        self._given_weights = class_weights  # these stay where the labels are counted
        # What samples are filled with beyond their picture, in whole levels.
        self.fill = tuple(float(round(level)) for level in model.preprocessing.mean_colour())

    def forward(self, rgb: Tensor, labels: Tensor, denominators: Tensor) -> Tensor:
        totals = []
        under = {stride: self._under(rgb, labels, stride) for stride in dict.fromkeys(self.strides)}
        maps = zip(self._logits(rgb), self.strides, self.map_weights, strict=True)
        for logits, stride, of_map in maps:
            scored = Scored(
                logits.to(torch.promote_types(logits.dtype, torch.float32)),
                *under[stride],
                stride,
                self.class_weights,
                self.label_smoothing,
            )
            parts = scored.each()
            for name, weight in self.losses.items():
                total = torch.stack([LOSSES[name].total(part) for part in parts]).sum()
                totals.append(of_map * weight * total)
        return (torch.stack(totals) / denominators).sum()

    def denominators(self, labels: Tensor) -> Tensor:
        """What these labels add to the denominators: float64 `[strides * losses]`."""
        names = tuple(self.losses)
        return loss_denominators(labels, self.strides, self._given_weights, self.grid, names)

    def _under(
        self, rgb: Tensor, labels: Tensor, stride: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """`labels`, `rgb` and `inside` of `Scored` under the scores of a stride."""
        seen = labels_of_scores(labels, stride, self.grid)
        pixels = inside = None
        if LOOKS_AT_PICTURES & self.losses.keys():
            pixels = labels_of_scores(self.model.preprocessing.levels(rgb), stride, self.grid)
            # A pixel of a picture that has this very colour and no label is left out with them.
            other = [pixels[:, i] != level for i, level in enumerate(self.fill)]
            labelled = seen != IGNORE
            labelled = labelled.any(1) if are_masks(seen) else labelled
            inside = torch.stack([*other, labelled]).any(0)
        return seen, pixels, inside

    def _logits(self, rgb: Tensor) -> tuple[Tensor, ...]:
        x = self.model.preprocess(rgb).contiguous(memory_format=self.format)
        if self.auxiliary is not None:
            return self.auxiliary.scores(self.model, x, upsample=self.strides[0] == 1)
        if len(self.strides) > 1:
            scores = self.model.forward_scales(x)
            if self.strides[0] != 1:
                return scores
            return tuple(self.model.upsample(each, x.shape[2:]) for each in scores)
        image = None if self.model.crf is None else self.model.preprocessing.levels(rgb).float()
        return (self.model(x, image=image, upsample=self.strides == (1,)),)


def segmentation_loss(
    model: DeepLab,
    rgb: Tensor,
    labels: Tensor,
    stride: int,
    losses: Mapping[str, float] = CROSS_ENTROPY,
) -> Tensor:
    """The loss of a batch, for a training loop of one's own.

    Args:
        model: in training, of one scale or several.
        rgb: `[B, 3, H, W]`, values 0-255.
        labels: int64 `[B, H, W]`, 255 ignored; of a multi-label model masks `[B, C, H, W]` of 0, 1
            and 255.
        stride: 1 compares the upsampled logits with the labels, 8 the logits with every eighth.
        losses: names of `deeplab.training.losses.LOSSES` with their weights.

    Returns:
        The mean cross entropy over the labelled pixels, or another sum, a scalar; 0 where none is
        labelled.
    """
    step = StepLoss(model, stride, losses=losses)
    denominators = step.denominators(labels.cpu())
    denominators = denominators.where(denominators > 0, 1.0)
    loss: Tensor = step(rgb, labels, denominators.to(rgb.device, torch.float32))
    return loss
