"""A photograph of any size and unary energies as a network would give them, for CRF benchmarks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from machine import ROOT
from PIL import Image

# Looked for beside the checkout; where none is, a generated scene stands in.
PHOTOGRAPHS = ("voc_sample/JPEGImages/2011_000025.jpg", "pydensecrf/im1.png")
SCENE_SEED = 10_000_000


def photograph(height: int, width: int) -> tuple[npt.NDArray[np.uint8], str]:
    """An RGB image uint8 `[height, width, 3]`, and which picture it is."""
    folder = ROOT.parent / "shared" / "data"
    for name in PHOTOGRAPHS:
        if (folder / name).exists():
            return _resized(Image.open(folder / name).convert("RGB"), height, width), name
    from deeplab.data.scenes import scene

    image = Image.fromarray(scene(SCENE_SEED, size=321).image)
    return _resized(image, height, width), f"generated scene {SCENE_SEED}"


def unary_energies(labels: int, height: int, width: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Energies -log p, float32 `[labels, height * width]`, in blobs with soft, noisy borders.

    Smoothed noise on a map of stride 8, brought to full size bilinearly and made sure of itself,
    as the output of a DeepLab network is.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, labels, -(-height // 8), -(-width // 8), generator=generator)
    for _ in range(3):
        coarse = F.avg_pool2d(coarse, 5, stride=1, padding=2, count_include_pad=False)
    scores = F.interpolate(
        coarse / coarse.std() * 3, (height, width), mode="bilinear", align_corners=True
    )
    scores += 0.3 * torch.randn(scores.shape, generator=generator)
    energies = -F.log_softmax(scores[0], dim=0).reshape(labels, -1)
    return np.ascontiguousarray(energies.numpy(), dtype=np.float32)


def _resized(image: Image.Image, height: int, width: int) -> npt.NDArray[np.uint8]:
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image)
