"""Generated scenes: a seeded, unlimited, photo-like data set with exact masks.

A scene is a view over a ground plane: sky, hills, grass and a road in perspective, and on them
objects that shrink towards the horizon, hide one another, cast shadows and fade in haze. Surfaces
have texture and shading; the camera adds a lighting gradient, vignetting, blur and sensor noise.

Every part is a set of polygons, drawn ``OVERSAMPLING`` times finer than the pixels. Its *coverage*
alpha (the share of a pixel that it hides) blends the image, so edges are anti-aliased:

    image <- (1 - alpha) * image + alpha * colour,        label <- class where alpha >= 1/2.

A mask is therefore exact to half a pixel, and nothing is left unlabelled. Structures of one to four
pixels (spokes, legs, wires, rails) are where a network of output stride 8 fails and a dense CRF
helps: the failure case of both DeepLab papers.

A seed fixes a scene bit for bit (for given versions of NumPy and Pillow); the same seed at another
size is the same scene, seen finer or coarser. Splits are ranges of seeds: training below
``VALIDATION_START``, validation from there, test from ``TEST_START`` (never trained on, never tuned
on).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter
from torch.utils.data import Dataset

from deeplab.data.scenes.backdrop import paint_ground, paint_sky
from deeplab.data.scenes.classes import CLASSES, PALETTE
from deeplab.data.scenes.objects import paint_objects
from deeplab.data.scenes.view import DEFAULT_SIZE, View

__all__ = [
    "CLASSES",
    "DEFAULT_SIZE",
    "MIN_SIZE",
    "PALETTE",
    "TEST_START",
    "TRAIN_START",
    "VALIDATION_START",
    "Scene",
    "ScenesDataset",
    "scene",
]

TRAIN_START, VALIDATION_START, TEST_START = 0, 9_000_000, 10_000_000
MIN_SIZE = 16


class Scene(NamedTuple):
    """A generated photograph: ``image`` uint8 RGB [H, W, 3], ``labels`` uint8 [H, W]."""

    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]


def scene(seed: int, size: int | tuple[int, int] = DEFAULT_SIZE) -> Scene:
    """The scene of ``seed``, ``size`` pixels square or ``(height, width)``.

    Raises:
        ValueError: ``seed`` is negative, or a side is shorter than ``MIN_SIZE``.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < MIN_SIZE:
        raise ValueError(
            f"size must be at least {MIN_SIZE} pixels a side, not {height}x{width}; "
            "generate a larger scene and crop it"
        )
    if seed < 0:
        raise ValueError(f"seed must be a non-negative integer, not {seed}")
    layout, texture, sensor = (
        np.random.Generator(np.random.PCG64(s)) for s in np.random.SeedSequence(seed).spawn(3)
    )
    view = View.random(layout, texture, height, width)
    paint_sky(view)
    paint_ground(view)
    paint_objects(view)
    return Scene(_photograph(view, sensor), view.labels)


class ScenesDataset(Dataset[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]):
    """Scenes ``start .. start + length - 1`` as (image uint8 [H, W, 3], labels uint8 [H, W])."""

    name = "the generated scenes"
    classes = CLASSES
    palette = PALETTE

    def __init__(
        self, start: int = TRAIN_START, length: int = 1000, size: int | tuple[int, int] = 321
    ) -> None:
        if length < 0:
            raise ValueError(f"length must be a non-negative number of scenes, not {length}")
        self.start, self.length, self.size = start, length, size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Scene:
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        return scene(self.start + index, self.size)


def _photograph(view: View, sensor: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Light falling off across the picture, white balance, blur, sensor noise, 8 bits."""
    rng = view.rng
    rows, columns = view.labels.shape
    y, x = np.linspace(-1, 1, rows, dtype=np.float32), np.linspace(-1, 1, columns, dtype=np.float32)
    slope_x, slope_y = rng.uniform(-0.1, 0.1), rng.uniform(-0.06, 0.06)
    vignette = rng.uniform(0, 0.1)
    light = (1 + slope_y * y - vignette * y * y)[:, None] + (slope_x * x - vignette * x * x)
    balance = (rng.uniform(0.85, 1.15) * rng.uniform(0.94, 1.06, 3)).astype(np.float32)
    exposed = view.image * (light[..., None].astype(np.float32) * balance)
    developed = Image.fromarray(np.clip(exposed + 0.5, 0, 255).astype(np.uint8))
    blurred = np.asarray(developed.filter(ImageFilter.GaussianBlur(rng.uniform(0.25, 0.6))))
    # Photon noise grows as the root of the signal; read-out noise does not.
    read, photon = rng.uniform(0.5, 2.0), rng.uniform(0.0, 0.2)
    signal = blurred.astype(np.float32)
    sigma = np.sqrt(read**2 + photon**2 * signal)
    noisy = signal + sigma * sensor.standard_normal(signal.shape, np.float32)
    return np.clip(noisy + 0.5, 0, 255).astype(np.uint8)
