"""Real photographs and a few scribbles on each, which the dense CRF spreads: no network.

image, annotation = coffee()
found = refine_scribbles(annotation, image, SETTINGS)

`example` has any of `EXAMPLES`, with names for what is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Example:
    """A photograph: what it shows, and what its scribbles mean, by their colours."""

    title: str
    classes: Mapping[str, str]


EXAMPLES = {  # by the stem of the files
    "coffee": Example(
        "A cup of coffee",
        {
            "#ffaa1e": "coffee",
            "#dc143c": "cup",
            "#46823c": "table",
            "#770ba0": "saucer",
            "#3c3cc8": "background",
            "#00c8dc": "spoon",
        },
    ),
    "chelsea": Example(
        "A cat",
        {"#3c3cc8": "background", "#d97706": "cat", "#0f9d70": "eyes", "#c2255c": "nose"},
    ),
    "astronaut": Example(
        "An astronaut",
        {
            "#3c3cc8": "backdrop",
            "#868e96": "table",
            "#c2255c": "flag",
            "#d97706": "suit",
            "#a0522d": "hair",
            "#f2b8a0": "face",
            "#0f9d70": "helmet",
            "#00a8c8": "collar",
            "#7048e8": "shuttle",
        },
    ),
}


def example(name: str) -> tuple[np.ndarray, Annotation, list[str]]:
    """A photograph of `EXAMPLES`, RGB uint8 `[H, W, 3]`, the strokes on it, and their names."""
    folder = Path(__file__).parent
    image, _ = read_image(folder / f"{name}.jpg")
    annotation = read_colours(folder / f"{name}_scribbles.png", image.shape[:2])
    names = EXAMPLES[name].classes
    return image, annotation, [names[colour] for colour in annotation.names or ()]


def coffee() -> tuple[np.ndarray, Annotation]:
    """The photograph, RGB uint8 `[400, 600, 3]`, and the strokes on it."""
    image, annotation, _ = example("coffee")
    return image, annotation


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
