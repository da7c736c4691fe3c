"""A sheet of photographs, their truth and what each row of the ablation says, thin parts enlarged.

Thin is what an opening of its class by a square removes: poles, signs, people far away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from deeplab.data.datasets import IGNORE
from deeplab.data.datasets.base import SegmentationData
from deeplab.data.outputs import full_palette, overlay, write_picture

PICTURES = 4
THIN = 5  # pixels that thin parts are narrower than, on labels of half the size half of it
TILE = (240, 180)  # width and height of a picture on the sheet
MARGIN, HEADING, GAP = 200, 16, 4


@dataclass(frozen=True)
class Shown:
    """A picture, and the part of it that is enlarged: rows and columns from the first up to the
    last, which does not count."""

    index: int
    rows: tuple[int, int]
    columns: tuple[int, int]


def choose_pictures(data: SegmentationData) -> tuple[Shown, ...]:
    """Of each quarter of the pictures the one with the most pixels in thin parts, by its truth."""
    thin = [thin_parts(data.labels(i)[::2, ::2], len(data.classes)) for i in range(len(data))]
    quarters = np.array_split(np.arange(len(data)), min(PICTURES, len(data)))
    best = [max(quarter.tolist(), key=lambda i: int(thin[i].sum())) for quarter in quarters]
    return tuple(_detail(i, thin[i], data.labels(i).shape[:2]) for i in best)


def thin_parts(labels: np.ndarray, classes: int) -> torch.Tensor:
    """Pixels of labels `[H, W]` in parts narrower than the window, bool `[H, W]`."""
    window = THIN // 2 + 1 - THIN // 2 % 2  # odd
    truth = torch.from_numpy(labels.astype(np.int64))
    masks = F.one_hot(truth.clamp(max=classes), classes + 1)[..., :classes]
    masks = masks.permute(2, 0, 1)[None].float()
    eroded = -F.max_pool2d(-masks, window, 1, window // 2)
    opened = F.max_pool2d(eroded, window, 1, window // 2)
    return (masks > opened).any(1)[0]


def write_pictures(
    path: Path, data: SegmentationData, shown: tuple[Shown, ...], found: Mapping[str, Path]
) -> None:
    """The sheet: a column for each picture and its enlarged part, a row for each title of `found`,
    whose files have the labels of the pictures by their index."""
    palette = full_palette(data.palette)
    pairs = {one.index: data[one.index] for one in shown}
    maps = {"truth": {index: labels for index, (_, labels) in pairs.items()}}
    for title, file in found.items():
        with np.load(file, allow_pickle=False) as stored:
            maps[title] = {int(index): stored[index] for index in stored.files}
    width, height = TILE
    titles = ["photograph", *maps]
    sheet = Image.new(
        "RGB",
        (MARGIN + 2 * len(shown) * (width + GAP), len(titles) * (height + GAP)),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for line, title in enumerate(titles):
        top = line * (height + GAP)
        draw.text((4, top + HEADING), title, fill="black")
        for column, one in enumerate(shown):
            image = pairs[one.index][0]
            picture = image
            if title != "photograph":
                picture = _coloured(image, maps[title].get(one.index), palette)
            for part, tile in enumerate((picture, picture[slice(*one.rows), slice(*one.columns)])):
                left = MARGIN + (2 * column + part) * (width + GAP)
                sheet.paste(
                    Image.fromarray(tile).resize(TILE, Image.Resampling.BILINEAR), (left, top)
                )
    write_picture(path, np.asarray(sheet))


def _coloured(image: np.ndarray, labels: np.ndarray | None, palette: np.ndarray) -> np.ndarray:
    """The picture under its labels, black where they do not count; white without labels."""
    if labels is None:
        return np.full_like(image, 255)
    void = labels == IGNORE
    coloured = overlay(image, np.where(void, 0, labels), palette)
    coloured[void] = 0
    return coloured


def _detail(index: int, thin: torch.Tensor, size: tuple[int, ...]) -> Shown:
    """The third of the picture's sides with the most pixels of thin parts."""
    window = [max(1, side // 3) for side in thin.shape]
    sums = F.avg_pool2d(thin[None, None].float(), window, 1)[0, 0]
    top, left = divmod(int(sums.argmax()), sums.shape[1])
    high, wide = (min(size[k], 2 * window[k]) for k in range(2))
    top, left = min(2 * top, size[0] - high), min(2 * left, size[1] - wide)
    return Shown(index, (top, top + high), (left, left + wide))
