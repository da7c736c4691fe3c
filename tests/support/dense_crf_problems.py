"""Logits and images for crf.DenseCRF."""

from typing import Any

import torch
from torch import Tensor

import crf

NORMALIZATIONS = ("symmetric", "before", "after", "none")


def problem(
    batch: int = 2, classes: int = 4, height: int = 6, width: int = 7, dtype: Any = torch.float32
) -> tuple[Tensor, Tensor]:
    """Noisy logits, and images with smooth shading, an edge and a little noise."""
    y = torch.arange(height)[:, None] / 9
    x = torch.arange(width) / 7
    phase = torch.arange(batch * 3).reshape(batch, 3, 1, 1)
    shade = 120 + 80 * torch.sin(x + phase) * torch.cos(y - phase) + 30 * (x + y > 1)
    images = (shade + 4 * torch.randn(shade.shape)).clamp(0, 255).to(torch.uint8)
    return 1.5 * torch.randn(batch, classes, height, width, dtype=dtype), images


def without_terms(classes: int = 4, **options: Any) -> crf.DenseCRF:
    return crf.DenseCRF(classes, **{"gaussian": None, "bilateral": None, **options})


def batch_problem(batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Random logits of three labels, and images, for `batch_layer`."""
    generator = torch.Generator().manual_seed(width)
    logits = torch.randn(batch, 3, height, width, generator=generator)
    images = 255 * torch.rand(batch, 3, height, width, generator=generator)
    return logits, images.to(torch.uint8)


def batch_layer(**options: Any) -> crf.DenseCRF:
    """A CRF of two updates."""
    given = {"bilateral": crf.Bilateral(4.0, 9.0, 60.0), "iterations": 2}
    return crf.DenseCRF(3, **given | options)
