"""What is shown and counted of pictures that are too large to be copied at will."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

SHOWN = 50_000_000  # pixels of an overlay, at most
ROWS = 1024  # at a time


def reduced(
    image: np.ndarray, labels: np.ndarray, most: int = SHOWN
) -> tuple[np.ndarray, np.ndarray]:
    """Picture `[H, W, 3]` and labels `[..., H, W]` for an overlay of at most `most` pixels.

    Both as they are where they have no more. Else a whole number k of pixels a side becomes one:
    the mean of the picture's, and the label of the middle one; up to k - 1 at the right and lower
    edge are left out.
    """
    return shrunk(image, labels, factor(image.shape, most))


def factor(size: Sequence[int], most: int = SHOWN) -> int:
    """How many pixels a side become one in an overlay of a picture of `size` (height, width)."""
    return max(1, math.ceil(math.sqrt(size[0] * size[1] / most)))


def shrunk(image: np.ndarray, labels: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture and labels, k pixels a side one, as `reduced` makes them."""
    if k == 1:
        return image, labels
    height, width = max(1, image.shape[0] // k), max(1, image.shape[1] // k)
    rows, columns = min(k, image.shape[0]), min(k, image.shape[1])  # of thin pictures
    shown = np.empty((height, width, 3), np.uint8)
    for top in range(height):
        block = image[top * k : top * k + rows, : width * columns]
        parts = block.reshape(rows, width, columns, 3).sum((0, 2), dtype=np.uint32)
        shown[top] = (parts + rows * columns // 2) // (rows * columns)
    return shown, labels[..., rows // 2 :: k, columns // 2 :: k][..., :height, :width]


def class_areas(labels: np.ndarray) -> np.ndarray:
    """How many pixels each class has, int64: in labels `[H, W]` up to the highest that occurs, in
    masks `[C, H, W]` of 0 and 1 all `C`."""
    if labels.ndim == 3:
        return labels.sum((1, 2), dtype=np.int64)
    areas = np.zeros(0, np.int64)
    for top in range(0, len(labels), ROWS):
        counts = np.bincount(labels[top : top + ROWS].ravel(), minlength=len(areas))
        counts[: len(areas)] += areas
        areas = counts
    return areas
