"""COCO's JSON of instances: polygons, or run lengths where the area has holes or is a crowd.

SRC is one JSON file, or a folder with several (annotations/instances_train.json, or
train/_annotations.coco.json as Roboflow writes it), each a split if its name or folder says so.
Objects that have a box alone are left out. Run lengths need pycocotools.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deeplab.data.datasets.base import files_in
from deeplab.data.datasets.coco import decode_runs
from deeplab.data.imports.reading import outline, read_json, split_name, understood
from deeplab.data.imports.shapes import (
    BOXES,
    Annotations,
    Bitmap,
    Class,
    Mask,
    Picture,
    Polygon,
    Shape,
)
from deeplab.errors import InputError

WHAT = "COCO's file of instances"
_INSTANCES = "instances_"


def read(source: Path, images: Path | None) -> Annotations:
    """All files of instances below `source`."""
    found = Annotations([], [])
    for path, split in _files(source):
        content = read_json(path)
        folders = _folders(source, path, split) if images is None else (images / split, images)
        with understood(path, WHAT):
            _add(found, content, path, folders, split_name(split) or split)
    return found


def _files(source: Path) -> list[tuple[Path, str]]:
    """The files, and the name of each one's split as it stands there; "" for a single file."""
    if source.is_file():
        return [(source, "")]
    files = files_in(source / "annotations", ".json") or files_in(source, ".json")
    # COCO's own folder holds captions and keypoints of the same pictures too.
    files = [path for path in files if path.stem.startswith(_INSTANCES)] or files
    named = [(path, path.stem.removeprefix(_INSTANCES)) for path in files]
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        inside = (path for path in files_in(folder, ".json") if path.name.endswith(".coco.json"))
        named += [(path, folder.name) for path in inside]
    if not named:
        raise InputError(f"{source}: no JSON file there, nor in annotations/ or split folders")
    if len(named) == 1 and not split_name(named[0][1]):
        return [(named[0][0], "")]
    return named


def _folders(source: Path, path: Path, split: str) -> tuple[Path, ...]:
    root = path.parent if source.is_file() else source
    if root.name == "annotations":
        root = root.parent
    named = (root / split, root / "images" / split) if split else ()
    return (*named, root / "images", path.parent, root)


def _add(
    found: Annotations, content: Any, path: Path, folders: tuple[Path, ...], split: str
) -> None:
    """Put one file's classes and pictures with the others."""
    names = {}
    for category in content["categories"]:
        names[category["id"]] = str(category["name"])
        if names[category["id"]] not in {one.name for one in found.classes}:
            found.classes.append(Class(names[category["id"]], _colour(category.get("color"))))
    pictures = {image["id"]: image for image in content["images"]}
    shapes: dict[Any, list[Shape]] = defaultdict(list)
    for entry in content["annotations"]:
        name = f"annotation {entry['id']}"
        if entry["image_id"] not in pictures:
            raise InputError(f"{path}: {name}: no picture has the id {entry['image_id']!r}")
        if entry["category_id"] not in names:
            raise InputError(f"{path}: {name}: no category has the id {entry['category_id']!r}")
        if not entry.get("segmentation"):
            found.dropped[BOXES] += 1
            continue
        shapes[entry["image_id"]].append(
            Shape(
                name,
                names[entry["category_id"]],
                _region(entry["segmentation"]),
                crowd=bool(entry.get("iscrowd", 0)),
            )
        )
    for key, image in pictures.items():
        size = (int(image["height"]), int(image["width"]))
        mine = tuple(shapes[key])
        found.pictures.append(Picture(str(image["file_name"]), folders, path, mine, size, split))


def _colour(levels: Any) -> tuple[int, int, int] | None:
    if levels is None:
        return None
    red, green, blue = levels
    if not all(isinstance(level, int) and 0 <= level <= 255 for level in levels):
        raise ValueError(f"a colour {levels}")
    return red, green, blue


def _region(segmentation: Any) -> Polygon | Bitmap:
    if isinstance(segmentation, dict):
        return Bitmap(0, 0, partial(_mask, segmentation))
    return Polygon(tuple(outline(numbers) for numbers in segmentation))


def _mask(segmentation: dict[str, Any], height: int, width: int) -> Mask:
    try:
        return np.asarray(decode_runs(segmentation, height, width), bool)
    except InputError:  # pycocotools is not there
        raise
    except Exception as error:  # pycocotools raises Exception itself
        raise ValueError(f"a run-length code that makes no sense ({error})") from error
