"""LabelMe: a JSON file for each picture, beside it or naming it.

SRC is a folder, searched with its subfolders; those called train, val or test are splits. Polygons,
rectangles, circles and masks are areas; lines and points are left out. `__ignore__` is ignored and
`_background_` is the class background, as in LabelMe's own conversion. Classes are the labels that
occur, sorted by name, unless --classes says more.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from deeplab.data.datasets.base import files_by_name
from deeplab.data.imports.reading import (
    decoded,
    ellipse,
    outline,
    read_json,
    read_mask,
    rectangle,
    splits_of_folders,
    understood,
)
from deeplab.data.imports.shapes import LINES, Annotations, Bitmap, Class, Picture, Polygon, Shape
from deeplab.errors import InputError

WHAT = "LabelMe's JSON"
IGNORED = "__ignore__"
_BACKGROUND = {"_background_": "background", "__background__": "background"}
_WITHOUT_AREA = ("line", "linestrip", "point", "points")


def read(source: Path, images: Path | None) -> Annotations:
    """All JSON files below `source`."""
    files = [source] if source.is_file() else list(files_by_name(source, (".json",)).values())
    if not files:
        raise InputError(f"{source}: no JSON file there; LabelMe writes one for each picture")
    root = source.parent if source.is_file() else source
    dropped: Counter[str] = Counter()
    pictures = []
    for path, split in zip(files, splits_of_folders(files, root), strict=True):
        content = read_json(path)
        with understood(path, WHAT):
            pictures.append(_picture(path, content, split, images, dropped))
    labels = {shape.label for picture in pictures for shape in picture.shapes} - {IGNORED}
    background = sorted(labels & {"background"})
    names = background + sorted(labels - {"background"})
    return Annotations([Class(name) for name in names], pictures, (IGNORED,), dropped)


def _picture(
    path: Path, content: Any, split: str, images: Path | None, dropped: Counter[str]
) -> Picture:
    shapes = []
    for number, entry in enumerate(content["shapes"], 1):
        label = str(entry["label"])
        region = _region(entry)
        if region is None:
            dropped[LINES] += 1
        else:
            shapes.append(Shape(f"shape {number}", _BACKGROUND.get(label, label), region))
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = (int(height), int(width)) if height and width else None
    folders = (path.parent,) if images is None else (images, path.parent)
    return Picture(str(content["imagePath"]), folders, path, tuple(shapes), size, split)


def _region(entry: dict[str, Any]) -> Polygon | Bitmap | None:
    """The area of a shape; None where it has none."""
    kind = entry.get("shape_type") or "polygon"
    if kind in _WITHOUT_AREA:
        return None
    points = outline(entry["points"])
    if kind == "polygon":
        return Polygon((points,))
    if kind not in ("rectangle", "circle", "mask"):
        raise ValueError(f"a shape of type {kind!r}")
    (x0, y0), (x1, y1) = points.tolist()
    if kind == "rectangle":
        return Polygon((rectangle(x0, y0, x1, y1),))
    if kind == "circle":
        radius = math.hypot(x1 - x0, y1 - y0)
        return Polygon((ellipse(x0, y0, radius, radius),))
    return Bitmap(round(x0), round(y0), partial(read_mask, decoded(entry["mask"])))
