"""CRFs through the interface of pydensecrf, small enough to follow."""

from typing import Any

import numpy as np

import crf.pydensecrf.densecrf as dcrf

Array = np.ndarray[Any, Any]


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
