"""What the CRF comparisons run on: a photograph of any size, unary energies as a network would give
them, and the pydensecrf program that people write."""

import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from machine import ROOT
from PIL import Image

PEER = "pydensecrf2"
PEER_MODULE = "pydensecrf.densecrf"
SIGMAS = ((80, 13), (49, 5), (67, 3))  # sigma_xy and sigma_rgb of the papers' models
SPATIAL_SIGMA, SPATIAL_WEIGHT, BILATERAL_WEIGHT = 3, 3, 4

# Looked for beside the checkout; where none is, a generated scene stands in.
PHOTOGRAPHS = ("voc_sample/JPEGImages/2011_000025.jpg", "pydensecrf/im1.png")
SCENE_SEED = 10_000_000


@dataclass(frozen=True)
class CRFProblem:
    """A batch of images of one size, and its CRF."""

    height: int
    width: int
    labels: int
    sigma_xy: float
    sigma_rgb: float
    iterations: int
    batch: int = 1


def dense_crf_2d(
    library: ModuleType,
    problem: CRFProblem,
    energies: npt.NDArray[np.float32],
    image: npt.NDArray[np.uint8],
) -> Any:
    """A DenseCRF2D with everything set, as users of pydensecrf write it.

    Energies `[labels, H * W]`, image `[H, W, 3]`.
    """
    dense = library.DenseCRF2D(problem.width, problem.height, problem.labels)
    dense.setUnaryEnergy(energies)
    dense.addPairwiseGaussian(sxy=SPATIAL_SIGMA, compat=SPATIAL_WEIGHT)
    dense.addPairwiseBilateral(
        sxy=problem.sigma_xy, srgb=problem.sigma_rgb, rgbim=image, compat=BILATERAL_WEIGHT
    )
    return dense


def installed(module: str) -> ModuleType | None:
    """The module, None where its package is not installed."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return None
    return importlib.import_module(module)


def importable(module: str) -> ModuleType | None:
    """The module, None where it is not installed, or not for the torch that is."""
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError):
        return None


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

    Smoothed noise on a map of stride 8, brought to full size bilinearly and scaled to confident
    scores, as the output of a DeepLab network is.
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
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC))
