"""Supervisely: a project folder with meta.json and data sets of img/ and ann/.

    meta.json                       classes with their colours
    DATASET/img/a.jpg, DATASET/ann/a.jpg.json

Polygons with holes, bitmaps and rectangles are areas; lines, points and graphs are left out. A
picture's split is its tag train, val or test, or else the name of its data set.
"""

from __future__ import annotations

import zlib
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from deeplab.data.datasets.base import files_by_name
from deeplab.data.imports.reading import (
    colour_of,
    decoded,
    outline,
    read_json,
    read_mask,
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

_MOST = 1 << 26  # bytes of an unpacked mask, which is a small PNG
_WITHOUT_AREA = ("line", "point", "graph", "cuboid")


def read(source: Path, images: Path | None) -> Annotations:
    """All pictures of the project's data sets."""
    meta = source / "meta.json"
    content = read_json(meta)
    with understood(meta, "Supervisely's meta.json"):
        classes = [Class(str(one["title"]), colour_of(one["color"])) for one in content["classes"]]
    files = [
        path
        for path in files_by_name(source, (".json",)).values()
        if path.parent.name == "ann" and path != meta
    ]
    if not files:
        raise InputError(f"{source}: no annotations there; expected DATASET/ann/*.json")
    dropped: Counter[str] = Counter()
    pictures = []
    for path in files:
        content = read_json(path)
        with understood(path, "Supervisely's annotation"):
            pictures.append(_picture(path, content, source, images, dropped))
    return Annotations(classes, pictures, dropped=dropped)


def _picture(
    path: Path, content: Any, source: Path, images: Path | None, dropped: Counter[str]
) -> Picture:
    shapes = []
    for number, entry in enumerate(content["objects"], 1):
        region = _region(entry)
        if region is None:
            dropped[LINES] += 1
        else:
            shapes.append(Shape(f"object {number}", str(entry["classTitle"]), region))
    tags = [tag["name"] if isinstance(tag, dict) else tag for tag in content.get("tags", [])]
    sets = path.parent.parent.relative_to(source).parts
    split = next(filter(None, map(split_name, map(str, [*tags, *sets]))), "")
    size = (int(content["size"]["height"]), int(content["size"]["width"]))
    folder = path.parent.parent / "img" if images is None else images
    return Picture(_file(folder, path.stem), (folder,), path, tuple(shapes), size, split)


def _file(folder: Path, name: str) -> str:
    """The picture's name: older projects leave its suffix out."""
    if (folder / name).is_file():
        return name
    beside = sorted(folder.glob(f"{_literal(name)}.*"))
    return beside[0].name if len(beside) == 1 else name


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _region(entry: dict[str, Any]) -> Polygon | Bitmap | None:
    """The area of an object; None where it has none."""
    kind = entry.get("geometryType") or ("bitmap" if entry.get("bitmap") else "polygon")
    if kind in _WITHOUT_AREA:
        return None
    if kind == "bitmap":
        left, top = (int(number) for number in entry["bitmap"]["origin"])
        return Bitmap(left, top, partial(_mask, decoded(entry["bitmap"]["data"])))
    outer = outline(entry["points"]["exterior"])
    if kind == "rectangle":
        (x0, y0), (x1, y1) = outer.tolist()
        return Polygon((rectangle(x0, y0, x1, y1),))
    if kind != "polygon":
        raise ValueError(f"an object of type {kind!r}")
    return Polygon((outer,), tuple(outline(hole) for hole in entry["points"].get("interior", [])))


def _mask(packed: bytes, height: int, width: int) -> Mask:
    try:
        png = zlib.decompressobj().decompress(packed, _MOST)
    except zlib.error as error:
        raise ValueError(f"a mask that cannot be unpacked ({error})") from error
    return read_mask(png, height, width)
