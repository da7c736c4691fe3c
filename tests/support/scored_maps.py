"""Random scores beside labels or masks, and each loss over them as a step takes it."""

from dataclasses import replace

import torch
from torch import Tensor

from deeplab.training.losses import LOSSES, Scored
from deeplab.training.losses.scored import each_labels

CLASSES = 4
WEIGHTS = torch.tensor([0.5, 2.0, 0.25, 1.0], dtype=torch.float64)


def scored(
    seed: int = 0, pictures: int = 3, absent: int = 3, masks: bool = False, **changes: object
) -> Scored:
    """Random scores of 6 x 5 pixels, a third of them ignored; one class occurs nowhere."""
    rng = torch.Generator().manual_seed(seed)
    shape = (pictures, CLASSES, 6, 5) if masks else (pictures, 6, 5)
    labels = torch.randint(0, 2 if masks else CLASSES - 1, shape, generator=rng)
    if masks:
        labels[:, absent] = 0
    else:
        labels[labels >= absent] += 1
    labels[torch.rand(shape, generator=rng) < 1 / 3] = 255
    return Scored(
        2 * torch.randn(pictures, CLASSES, 6, 5, generator=rng, dtype=torch.float64),
        labels,
        torch.randint(0, 256, (pictures, 3, 6, 5), generator=rng).double(),
        **changes,
    )


def total(name: str, given: Scored) -> Tensor:
    return torch.stack([LOSSES[name].total(part) for part in given.each()]).sum()


def denominator(name: str, labels: Tensor, weights: Tensor | None = None) -> float:
    return sum(LOSSES[name].denominator(*part) for part in each_labels(labels, weights))


def mean(name: str, given: Scored) -> Tensor:
    """A loss as it stands in a step."""
    return total(name, given) / denominator(name, given.labels, given.class_weights)


def gradient(name: str, given: Scored) -> tuple[Tensor, Tensor]:
    logits = given.logits.clone().requires_grad_()
    value = total(name, replace(given, logits=logits))
    (found,) = torch.autograd.grad(value, logits)
    return value.detach(), found
