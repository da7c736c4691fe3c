"""A picture beside its truth, a prediction and the errors of it, for the eye."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw

from deeplab.data.outputs import overlay
from deeplab.model.preprocess import Preprocessing

TITLES = ("image", "truth", "prediction", "errors")
SMALLEST, LARGEST = 100, 400  # pixels of the longer side of a tile
GAP, HEADING = 4, 14
WRONG, IGNORED = (230, 25, 35), (0, 0, 0)


def panel(
    image: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
    palette: np.ndarray,
    ignore: int = 255,
) -> np.ndarray:
    """The four side by side under their titles, uint8 RGB `[h, w, 3]`, each of bounded size.

    Errors are red on the greyed picture; pixels that do not count are black, there and in the
    truth.

    image: uint8 `[H, W, 3]`; truth, predicted: labels `[H, W]`; palette: uint8 `[256, 3]`.
    """
    size = _fitting(image.shape[1], image.shape[0])
    shown = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    truth, predicted = _resized(truth, size), _resized(predicted, size)
    void = truth == ignore
    of_truth = overlay(shown, np.where(void, 0, truth), palette)
    of_truth[void] = IGNORED
    tiles = [shown, of_truth, overlay(shown, predicted, palette), _errors(shown, truth, predicted)]
    tiles[3][void] = IGNORED
    width, height = size
    whole = Image.new("RGB", (4 * width + 3 * GAP, HEADING + height), "white")
    draw = ImageDraw.Draw(whole)
    for number, (title, tile) in enumerate(zip(TITLES, tiles, strict=True)):
        left = number * (width + GAP)
        draw.text((left + 2, 1), title, fill="black")
        whole.paste(Image.fromarray(tile), (left, HEADING))
    return np.asarray(whole)


def as_rgb(
    image: np.ndarray, preprocessing: Preprocessing, chosen: tuple[int, ...] | None = None
) -> np.ndarray:
    """A picture `[H, W, bands]` as uint8 RGB `[H, W, 3]`: of others those chosen, or the first.

    chosen: the three bands that stand for red, green and blue.
    """
    if image.dtype == np.uint8 and image.shape[2] == 3 and chosen is None:
        return image
    bands = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    levels = preprocessing.levels(bands, chosen)[0].permute(1, 2, 0)
    return levels.float().round().clamp(0, 255).to(torch.uint8).numpy()


def _fitting(width: int, height: int) -> tuple[int, int]:
    longer = max(width, height)
    share = min(max(longer, SMALLEST), LARGEST) / longer
    return max(1, round(width * share)), max(1, round(height * share))


def _resized(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    picture = Image.fromarray(labels.astype(np.uint8))
    return np.asarray(picture.resize(size, Image.Resampling.NEAREST))


def _errors(image: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    grey = image.mean(axis=-1, keepdims=True) * 0.5 + 64
    errors = np.broadcast_to(grey, image.shape).astype(np.uint8)
    errors[truth != predicted] = WRONG
    return errors
