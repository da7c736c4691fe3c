"""Distortions of samples on request: rotation, colour jitter, blur and noise.

    rotate           by an angle uniform in [-degrees, degrees] about the middle of the picture
    colour_jitter    brightness b, contrast c, saturation s, each uniform in [1 - j, 1 + j]:
                     x <- b x;  x <- m + c (x - m), m the mean grey;  x <- g + s (x - g), g the grey
    blur             Gaussian, of a standard deviation uniform in [0, sigma] pixels
    noise            Gaussian, of a standard deviation uniform in [0, sigma] grey levels

The grey of a pixel is 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601). Values are rounded and clipped to
0-255 once, at the end. None of these is of the DeepLab papers; each draws from the generator only
where it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from deeplab.data.augment import MEAN_RGB, Labels, Picture, of_planes
from deeplab.data.datasets.labels import IGNORE

GREY = np.array([0.299, 0.587, 0.114], np.float32)


def rotate(
    image: Picture,
    labels: Labels,
    degrees: float,
    rng: np.random.Generator,
    fill: Sequence[float] = MEAN_RGB,
) -> tuple[Picture, Labels]:
    """Turned inside their own size: image uint8 `[H, W, 3]` bilinearly, labels `[H, W]` or
    `[C, H, W]` nearest.

    What comes from beyond the picture has the colour `fill` (RGB 0-255) and the label 255.
    """
    angle = rng.uniform(-degrees, degrees)
    colour = tuple(round(level) for level in fill)
    turned = Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR, fillcolor=colour)
    nearest = Image.Resampling.NEAREST
    truth = of_planes(labels, lambda plane: plane.rotate(angle, nearest, fillcolor=IGNORE))
    return np.array(turned), truth


def distort(
    image: Picture,
    labels: Labels,
    rng: np.random.Generator,
    *,
    colour_jitter: float = 0.0,
    blur: float = 0.0,
    noise: float = 0.0,
    fill: Sequence[float] = MEAN_RGB,
) -> Picture:
    """Colours, sharpness and noise of a sample, in this order; 0 leaves each out.

    image: uint8 `[H, W, 3]` RGB; labels: `[H, W]` or `[C, H, W]`. Pixels of the colour `fill` with
    the label 255 (in every mask), such as those beyond the picture, stay as they are.
    """
    unlabelled = (labels == IGNORE).reshape(-1, *labels.shape[-2:]).all(0)
    beyond = (image == np.round(fill)).all(-1) & unlabelled
    x = image.astype(np.float32)
    if colour_jitter:
        x = _jittered(x, rng.uniform(1 - colour_jitter, 1 + colour_jitter, 3))
    if blur:
        x = _blurred(x, rng.uniform(0, blur))
    if noise:
        x += rng.uniform(0, noise) * rng.standard_normal(x.shape, np.float32)
    distorted = np.clip(np.round(x), 0, 255).astype(np.uint8)
    distorted[beyond] = image[beyond]
    return distorted


def _jittered(x: np.ndarray, factors: np.ndarray) -> np.ndarray:
    brightness, contrast, saturation = factors.astype(np.float32)
    x = brightness * x
    mean = (x @ GREY).mean()
    x = mean + contrast * (x - mean)
    grey = (x @ GREY)[..., None]
    return grey + saturation * (x - grey)


def _blurred(x: np.ndarray, sigma: float) -> np.ndarray:
    """By Pillow, whose Gaussian is a threefold box, in 8 bits."""
    levels = Image.fromarray(np.clip(np.round(x), 0, 255).astype(np.uint8))
    return np.asarray(levels.filter(ImageFilter.GaussianBlur(sigma))).astype(np.float32)
