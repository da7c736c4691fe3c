"""CVAT's own XML, "CVAT for images 1.1": one file for all pictures.

SRC is annotations.xml, or the folder that holds it beside images/. Polygons, masks, ellipses and
boxes are areas, since somebody drew them; lines, points and skeletons are left out. A shape's
z_order is its layer, and CVAT's subsets are splits.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
import numpy.typing as npt

from deeplab.data.imports.reading import (
    colour_of,
    ellipse,
    outline,
    read_xml,
    rectangle,
    split_name,
    understood,
)
from deeplab.data.imports.shapes import (
    LINES,
    Annotations,
    Bitmap,
    Class,
    Mask,
    Picture,
    Polygon,
    Shape,
)
from deeplab.errors import InputError

WHAT = "CVAT's XML for images"
_WITHOUT_AREA = ("polyline", "points", "skeleton", "cuboid")


def read(source: Path, images: Path | None) -> Annotations:
    """All pictures of the file."""
    path = source if source.is_file() else source / "annotations.xml"
    root = read_xml(path)
    if root.find("track") is not None:
        raise InputError(f"{path}: of a video; export it as 'CVAT for images 1.1'")
    folders = (path.parent / "images", path.parent) if images is None else (images,)
    with understood(path, WHAT):
        if root.tag != "annotations":
            raise ValueError(f"its root is <{root.tag}>")
        labels = root.findall("./meta//labels/label")
        classes = [
            Class(label.findtext("name", ""), colour_of(label.findtext("color")))
            for label in labels
            if label.findtext("type") != "skeleton"
        ]
        dropped: Counter[str] = Counter()
        pictures = [_picture(path, image, folders, dropped) for image in root.findall("image")]
        if not classes:
            found = {shape.label for picture in pictures for shape in picture.shapes}
            classes = [Class(name) for name in sorted(found)]
    return Annotations(classes, pictures, dropped=dropped)


def _picture(
    path: Path, image: Element, folders: tuple[Path, ...], dropped: Counter[str]
) -> Picture:
    shapes = []
    for number, entry in enumerate(image, 1):
        if entry.tag in _WITHOUT_AREA:
            dropped[LINES] += 1
        elif entry.tag != "tag":  # which describes the whole picture
            layer = int(entry.get("z_order", "0"))
            region = _region(entry)
            shapes.append(Shape(f"shape {number}", entry.attrib["label"], region, layer))
    subset = image.get("subset", "")
    split = split_name(subset)
    size = (int(image.attrib["height"]), int(image.attrib["width"]))
    places = tuple(folder / subset for folder in folders if subset) + folders
    return Picture(image.attrib["name"], places, path, tuple(shapes), size, split)


def _region(entry: Element) -> Polygon | Bitmap:
    def number(name: str, otherwise: str | None = None) -> float:
        return float(entry.attrib[name] if otherwise is None else entry.get(name, otherwise))

    turned = number("rotation", "0")
    if entry.tag == "polygon":
        pairs = [pair.split(",") for pair in entry.attrib["points"].split(";")]
        return Polygon((outline([[float(x), float(y)] for x, y in pairs]),))
    if entry.tag == "box":
        corners = (number("xtl"), number("ytl"), number("xbr"), number("ybr"))
        return Polygon((rectangle(*corners, turned),))
    if entry.tag == "ellipse":
        middle = (number("cx"), number("cy"))
        return Polygon((ellipse(*middle, number("rx"), number("ry"), turned),))
    if entry.tag == "mask":
        size = (int(number("height")), int(number("width")))
        runs = np.array([int(run) for run in entry.attrib["rle"].split(",")], np.int64)
        return Bitmap(int(number("left")), int(number("top")), partial(_mask, runs, size))
    raise ValueError(f"a shape <{entry.tag}>")


def _mask(runs: npt.NDArray[np.int64], size: tuple[int, int], height: int, width: int) -> Mask:
    """The mask of runs of pixels outside and inside in turn, row by row."""
    inside = 0 < size[0] <= height and 0 < size[1] <= width
    area = size[0] * size[1]
    if not inside or runs.min() < 0 or runs.max() > area or runs.sum() != area:
        raise ValueError(f"runs that do not fill a mask of {size[1]} x {size[0]} in the picture")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size)
