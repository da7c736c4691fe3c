"""CRFs through the interface of pydensecrf, its photographs, and the bar of the drop-in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import crf.pydensecrf.densecrf as dcrf

Array = np.ndarray[Any, Any]

PHOTOGRAPHS = Path(__file__).parents[3] / "shared" / "data" / "pydensecrf"


def assert_meets_bar(marginals: Any, reference: Any) -> None:
    """Marginals `[labels, points]` within 2e-3, and labels equal, for 99.9% of them."""
    marginals, reference = np.asarray(marginals), np.asarray(reference)
    assert marginals.shape == reference.shape
    near = np.abs(marginals - reference) <= 2e-3
    assert near.mean() >= 0.999, f"largest difference {np.abs(marginals - reference).max()}"
    same = marginals.argmax(axis=0) == reference.argmax(axis=0)
    assert same.mean() >= 0.999, f"{np.count_nonzero(~same)} of {same.size} labels differ"


def photograph(number: int) -> tuple[Array, Array]:
    """(image, scribbles) `[H, W, 3]` uint8 of pydensecrf's example number 1 or 3."""
    if not PHOTOGRAPHS.is_dir():
        pytest.skip(f"pydensecrf's example photographs are not at {PHOTOGRAPHS}")
    image = Image.open(PHOTOGRAPHS / f"im{number}.png").convert("RGB")
    scribbles = Image.open(PHOTOGRAPHS / f"anno{number}.png").convert("RGB")
    return np.array(image), np.array(scribbles)


def kl_per_step(crf: Any, steps: int) -> tuple[Array, list[float]]:
    """Q after `steps` updates by hand, and the divergence before each and after the last."""
    q, tmp1, tmp2 = crf.startInference()
    divergences = [crf.klDivergence(q)]
    for _ in range(steps):
        crf.stepInference(q, tmp1, tmp2)
        divergences.append(crf.klDivergence(q))
    return np.array(q), divergences


def noisy_image(rng: np.random.Generator, height: int, width: int) -> Array:
    level, noise = rng.choice([0, 20, 128]), rng.choice([4, 25])
    blocks = level + rng.integers(0, 100, (-(-height // 6), -(-width // 6), 3))
    image = np.kron(blocks, np.ones((6, 6, 1)))[:height, :width]
    return np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8)


POINTS, LABELS = 24, 3  # whole blocks of four
UNARY = np.random.default_rng(0).gamma(2.0, 1.0, (LABELS, POINTS)).astype(np.float32)
FEATURES = np.random.default_rng(1).normal(0, 1, (2, POINTS)).astype(np.float32)
MATRIX = np.array([[-2, 1, 0], [0, -1, 0.5], [3, 0, -4]], np.float32)


def small_crf(
    unary: Any = UNARY, features: Any = FEATURES, compat: Any = MATRIX, **options: Any
) -> dcrf.DenseCRF:
    crf = dcrf.DenseCRF(POINTS, LABELS)
    crf.setUnaryEnergy(unary)
    crf.addPairwiseEnergy(features, compat, **options)
    return crf


def on_a_picture(sxy: Any, srgb: Any, image: Any) -> Array:
    """Marginals of a small picture with a bilateral term."""
    crf = dcrf.DenseCRF2D(image.shape[1], image.shape[0], LABELS)
    crf.setUnaryEnergy(UNARY[:, : image.shape[0] * image.shape[1]])
    crf.addPairwiseBilateral(sxy, srgb, image, compat=2)
    return crf.inference(3)


def with_two_terms(
    module: Any, unary: Array, image: Array, sigmas: tuple[float, float], compat: float = 5
) -> Any:
    """A DenseCRF2D of a module over energies `[labels, H * W]`: smoothness, and appearance."""
    height, width = image.shape[:2]
    crf = module.DenseCRF2D(width, height, len(unary))
    crf.setUnaryEnergy(unary)
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=sigmas[0], srgb=sigmas[1], rgbim=image, compat=compat)
    return crf


def example(
    densecrf: Any, utils: Any, image: Array, scribbles: Array, two_d: bool = False
) -> tuple[Array, Any]:
    """pydensecrf's own example on RGB arrays: the colours of the labels, and the CRF over them."""
    codes = scribbles.astype(np.uint32) @ np.array([1, 1 << 8, 1 << 16], np.uint32)
    values, labels = np.unique(codes, return_inverse=True)
    unsure = 0 in values
    values = values[1:] if unsure else values
    colours = np.stack([values & 255, values >> 8 & 255, values >> 16], axis=1).astype(np.uint8)
    height, width = image.shape[:2]
    if two_d:
        crf = densecrf.DenseCRF2D(width, height, len(values))
    else:
        crf = densecrf.DenseCRF(width * height, len(values))
    known = {"gt_prob": 0.7, "zero_unsure": unsure}
    crf.setUnaryEnergy(utils.unary_from_labels(labels.ravel(), len(values), **known))
    types = {"kernel": densecrf.DIAG_KERNEL, "normalization": densecrf.NORMALIZE_SYMMETRIC}
    if two_d:
        crf.addPairwiseGaussian(sxy=(3, 3), compat=3, **types)
        crf.addPairwiseBilateral(sxy=(80, 80), srgb=(13, 13, 13), rgbim=image, compat=10, **types)
    else:
        features = utils.create_pairwise_gaussian(sdims=(3, 3), shape=image.shape[:2])
        crf.addPairwiseEnergy(features, compat=3, **types)
        sigmas = {"sdims": (80, 80), "schan": (13, 13, 13)}
        features = utils.create_pairwise_bilateral(**sigmas, img=image, chdim=2)
        crf.addPairwiseEnergy(features, compat=10, **types)
    return colours, crf
