"""A real photograph and a few scribbles on it, which the dense CRF spreads: no network.

image, annotation = coffee()
found = refine_scribbles(annotation, image, SETTINGS)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

import crf
from deeplab.crf_settings import CRFSettings
from deeplab.data import outputs
from deeplab.data.annotations import Annotation, read_colours
from deeplab.data.images import read_image
from deeplab.refine import refine_scribbles

PHOTO = Path(__file__).with_name("coffee.jpg")
SCRIBBLES = Path(__file__).with_name("coffee_scribbles.png")
SETTINGS = CRFSettings(5, crf.Gaussian(3.0, 3.0), crf.Bilateral(5.0, 20.0, 8.0))
"""Narrower in space and colour than pydensecrf's example: the strokes lie close together."""

GAP = 14  # between the panels


def coffee() -> tuple[np.ndarray, Annotation]:
    """The photograph, RGB uint8 `[400, 600, 3]`, and the strokes on it."""
    image, _ = read_image(PHOTO)
    return image, read_colours(SCRIBBLES, image.shape[:2])


def picture() -> np.ndarray:
    """Photograph, strokes and what the CRF makes of them, side by side. RGB uint8 `[H, W, 3]`."""
    image, annotation = coffee()
    labels = refine_scribbles(annotation, image, SETTINGS).labels
    colours = annotation.colours
    assert colours is not None  # which read_colours has
    marked = annotation.labels[..., None] > 0
    strokes = np.where(marked, colours[annotation.labels - 1], _pale(image))
    segmented = outputs.overlay(image, labels, outputs.full_palette(colours))
    panels = (image, strokes.astype(np.uint8), segmented)
    height, width, _ = image.shape
    page = Image.new("RGB", (3 * width + 2 * GAP, height), (255, 255, 255))
    for i, panel in enumerate(panels):
        page.paste(Image.fromarray(panel), (i * (width + GAP), 0))
    return np.array(page)


def _pale(image: np.ndarray) -> np.ndarray:
    return (0.6 * image + 0.4 * 255).round().astype(np.uint8)
