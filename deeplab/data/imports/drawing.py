"""Shapes as a label map: each pixel has the class of the topmost shape that covers its middle.

Pillow draws outlines. It knows whole pixels only, truncates fractions and paints both ends of a
span, so an outline is drawn four times as large and looked at in the middle of each pixel: that is
wrong for middles within a quarter of a pixel of the border at most, instead of within one.

Crowds lie below everything. The others lie by layer where the tool has layers, and within a layer
the largest at the bottom (order "largest"), so that what is in front of something large stays, or
the first of the file at the bottom (order "file").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from deeplab.data.datasets.labels import IGNORE
from deeplab.data.imports.shapes import (
    CORNERS,
    CROWDS,
    TINY,
    UNLABELLED,
    Bitmap,
    Mask,
    Picture,
    Points,
    Shape,
)
from deeplab.errors import InputError

ORDERS = ("largest", "file")
FINE = 4  # positions on an axis of a pixel
_STRIP = 1 << 24  # positions drawn at once: 16 MB


@dataclass(frozen=True)
class Values:
    """What becomes which value of a label map.

    Attributes:
        labels: value of each label; 255 for those that are ignored.
        classes: uint8 `[C]`, value of each class index of a picture's own label map.
        unlabelled: value where nothing is marked.
        crowds: whether crowds are ignored; otherwise they are left out.
    """

    labels: Mapping[str, int]
    classes: npt.NDArray[np.uint8]
    unlabelled: int = IGNORE
    crowds: bool = True


@dataclass
class Drawn:
    """A label map uint8 `[H, W]`, and how many shapes of each label it has, how many were dropped
    and for what, how many reach beyond the picture and are cut."""

    labels: npt.NDArray[np.uint8]
    shapes: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    cut: int = 0


@dataclass(frozen=True)
class _Stamp:
    """Pixels of a shape: a mask whose first pixel is (top, left) of the picture."""

    top: int
    left: int
    mask: Mask
    shape: Shape

    @property
    def area(self) -> int:
        return int(self.mask.sum())


def draw(picture: Picture, size: tuple[int, int], values: Values, order: str) -> Drawn:
    """The label map of a picture of (height, width).

    Raises InputError: a shape that lies outside the picture or makes no sense, a label without a
    value, a label map of another size.
    """
    drawn = Drawn(np.full(size, values.unlabelled, np.uint8))
    if picture.label_map is not None:
        _lay(picture, drawn.labels, picture.label_map(), values)
    stamps = []
    for shape in picture.shapes:
        what = f"{picture.source}: {shape.name} of {picture.file}"
        if shape.label not in values.labels:
            known = ", ".join(list(values.labels)[:12])
            raise InputError(f"{what}: no class is called {shape.label!r}; there are {known}")
        stamp = _stamp(what, shape, size, drawn)
        if stamp is not None and not stamp.mask.any():
            drawn.dropped[TINY] += 1
        elif shape.crowd and not values.crowds:
            drawn.dropped[CROWDS] += 1
        elif stamp is not None:
            stamps.append(stamp)
            drawn.shapes[shape.label] += 1
    if order == "largest":
        stamps.sort(key=lambda stamp: -stamp.area)  # stable: equal ones stay in the file's order
    stamps.sort(key=lambda stamp: (not stamp.shape.crowd, stamp.shape.layer))
    for stamp in stamps:
        height, width = stamp.mask.shape
        rows, columns = slice(stamp.top, stamp.top + height), slice(stamp.left, stamp.left + width)
        value = IGNORE if stamp.shape.crowd else values.labels[stamp.shape.label]
        drawn.labels[rows, columns][stamp.mask] = value
    return drawn


def _lay(
    picture: Picture, labels: npt.NDArray[np.uint8], own: npt.NDArray[np.int16], values: Values
) -> None:
    """Put a picture's own label map into `labels`."""
    if own.shape != labels.shape:
        raise InputError(
            f"{picture.source}: {own.shape[1]} x {own.shape[0]} pixels, but the picture "
            f"{picture.file} has {labels.shape[1]} x {labels.shape[0]}"
        )
    table = np.full(IGNORE + 1, IGNORE, np.uint8)
    table[: len(values.classes)] = values.classes
    marked = own != UNLABELLED
    labels[marked] = table[own[marked]]


def _stamp(what: str, shape: Shape, size: tuple[int, int], drawn: Drawn) -> _Stamp | None:
    """The pixels of a shape within the picture; None, and counted, where it has no area."""
    height, width = size
    region = shape.region
    if isinstance(region, Bitmap):
        try:
            mask = region.read(height, width)
        except ValueError as error:
            raise InputError(f"{what}: {error}") from error
        left, top = region.left, region.top
        right, bottom = left + mask.shape[1], top + mask.shape[0]
    else:
        scale = np.array([width, height]) if region.relative else 1.0
        parts = [part * scale for part in region.parts if len(part) > 2]
        holes = [hole * scale for hole in region.holes if len(hole) > 2]
        if not parts:
            drawn.dropped[CORNERS] += 1
            return None
        corners = np.concatenate(parts + holes)
        left, top = np.floor(corners.min(0)).tolist()
        right, bottom = np.ceil(corners.max(0)).tolist()
    whole = f"the picture has {width} x {height}"
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        raise InputError(f"{what}: lies outside, at x {left:g}, y {top:g}, but {whole}")
    if left < -width or top < -height or right > 2 * width or bottom > 2 * height:
        raise InputError(
            f"{what}: reaches far outside, from ({left:g}, {top:g}) to ({right:g}, {bottom:g}), "
            f"but {whole}"
        )
    box = (max(int(left), 0), max(int(top), 0), min(int(right), width), min(int(bottom), height))
    drawn.cut += left < -1 or top < -1 or right > width + 1 or bottom > height + 1
    if isinstance(region, Bitmap):
        rows, columns = slice(box[1] - top, box[3] - top), slice(box[0] - left, box[2] - left)
        return _Stamp(box[1], box[0], mask[rows, columns], shape)
    inside = _filled(parts, box)
    if holes:
        inside &= ~_filled(holes, box)
    return _Stamp(box[1], box[0], inside, shape)


def _filled(outlines: list[Points], box: tuple[int, int, int, int]) -> Mask:
    """The pixels of a box (left, top, right, bottom) whose middle lies in any of the outlines."""
    left, top, right, bottom = box
    mask = np.zeros((bottom - top, right - left), bool)
    rows = max(1, _STRIP // (FINE * FINE * (right - left)))
    for start in range(top, bottom, rows):
        end = min(start + rows, bottom)
        for points in outlines:
            strip = Image.new("L", (FINE * (right - left), FINE * (end - start)))
            fine = np.rint((points - (left, start)) * FINE).astype(int)
            ImageDraw.Draw(strip).polygon(fine.ravel().tolist(), fill=1)
            middles = np.asarray(strip)[FINE // 2 :: FINE, FINE // 2 :: FINE]
            mask[start - top : end - top] |= middles.astype(bool)
    return mask
