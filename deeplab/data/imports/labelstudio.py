"""Label Studio's brush labels, exported as PNG, beside its JSON export.

    task-7-annotation-9-by-1-tag-Car-0.png      a mask for each stroke of the brush
    project.json                                the JSON export, which names the picture of task 7
    images/                                     the pictures, as uploaded

The PNG files alone do not say which picture they belong to, nor where a label's name begins.
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from deeplab.data.datasets.base import files_by_name, files_in
from deeplab.data.images import load_picture
from deeplab.data.imports.reading import read_json, understood
from deeplab.data.imports.shapes import Annotations, Bitmap, Class, Mask, Picture, Shape
from deeplab.errors import InputError

_FILE = re.compile(r"task-(?P<task>\d+)-annotation-(?P<annotation>\d+)-by-[^-]*-(?P<rest>.+)-\d+")
_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")  # what Label Studio puts before an uploaded name
_HALF = 127  # of the opacity of a brush, whose edges are soft


def read(source: Path, images: Path | None) -> Annotations:
    """The pictures of all tasks of the export, with the masks that there are."""
    exports = files_in(source, ".json")
    if len(exports) != 1:
        raise InputError(
            f"{source}: {len(exports)} JSON files; Label Studio's JSON export has to lie beside "
            "its PNG files, since it names the pictures"
        )
    tasks = read_json(exports[0])
    masks = _masks(source)
    folders = (source / "images", source) if images is None else (images,)
    pictures = []
    with understood(exports[0], "Label Studio's JSON export"):
        for task in tasks:
            mine = masks.pop(str(task["id"]), {})
            if len(mine) > 1:
                which = ", ".join(sorted(mine))
                raise InputError(
                    f"{source}: task {task['id']} has the annotations {which}; keep the files of "
                    "one of them"
                )
            sources = _sources(task)
            shapes = tuple(
                Shape(path.name, _label(path, rest, sources), Bitmap(0, 0, partial(_mask, path)))
                for paths in mine.values()
                for path, rest in paths
            )
            name = _name(task["data"], exports[0], folders)
            pictures.append(Picture(name, folders, exports[0], shapes))
    if masks:
        raise InputError(f"{exports[0]}: no task {min(masks)}, but there are masks of it")
    labels = sorted({shape.label for picture in pictures for shape in picture.shapes})
    return Annotations([Class(label) for label in labels], pictures)


def _masks(source: Path) -> dict[str, dict[str, list[tuple[Path, str]]]]:
    """By task and annotation: the files, and what stands in each name before its last number."""
    found: dict[str, dict[str, list[tuple[Path, str]]]] = defaultdict(lambda: defaultdict(list))
    for path in files_by_name(source, (".png",)).values():
        if match := _FILE.fullmatch(path.stem):
            found[match["task"]][match["annotation"]].append((path, match["rest"]))
    if not found:
        raise InputError(f"{source}: no file task-...-annotation-...-by-...-LABEL-0.png there")
    return found


def _sources(task: dict[str, Any]) -> list[str]:
    """The names of the tags that labels come from, the longest first."""
    results = (result for one in task.get("annotations", []) for result in one["result"])
    return sorted({str(result["from_name"]) for result in results}, key=len, reverse=True)


def _label(path: Path, rest: str, sources: list[str]) -> str:
    for name in sources:
        if rest.startswith(f"{name}-"):
            return rest.removeprefix(f"{name}-")
    raise InputError(f"{path}: none of the task's tags, {', '.join(sources)}, begins its label")


def _name(data: dict[str, Any], export: Path, folders: tuple[Path, ...]) -> str:
    """The picture's name, from where it lay on the server."""
    places = [value for value in data.values() if isinstance(value, str) and "/" in value]
    if len(places) != 1:
        raise InputError(f"{export}: a task's data must name one picture, not {len(places)}")
    name = unquote(places[0]).replace("?d=", "/").split("/")[-1]
    plain = _UPLOADED.sub("", name, count=1)
    there = any((folder / name).is_file() for folder in folders)
    return name if there else plain


def _mask(path: Path, height: int, width: int) -> Mask:
    picture, _ = load_picture(path)
    mask = np.asarray(picture.convert("L")) > _HALF
    if mask.shape != (height, width):
        raise InputError(
            f"{path}: {mask.shape[1]} x {mask.shape[0]} pixels, but its picture has "
            f"{width} x {height}"
        )
    return mask
