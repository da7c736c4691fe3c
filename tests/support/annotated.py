"""Pictures with known label maps, and the same marked as outlines for other tools' formats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Labels = npt.NDArray[np.uint8]
Outline = list[tuple[int, int]]

VOID = "void"


def outlines(labels: Labels) -> list[tuple[int, Outline]]:
    """The value and the outer border of each region of one value, in no particular order.

    Regions are connected over pixels' edges. A border runs along the edges between pixels, with
    (0, 0) at the picture's corner, and has the region on its right hand. Holes are left out: what
    fills them is a region of its own.
    """
    return _outlines(labels.tobytes(), *labels.shape)


@cache
def _outlines(values: bytes, height: int, width: int) -> list[tuple[int, Outline]]:
    labels = np.frombuffer(values, np.uint8).reshape(height, width)
    return [(value, one) for value in np.unique(labels).tolist() for one in _borders(labels, value)]


def _borders(labels: Labels, value: int) -> list[Outline]:
    inside = np.pad(labels == value, 1)
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (dy, dx), (start, way) in {  # towards the outer neighbour: an edge, walked clockwise
        (-1, 0): ((0, 0), (1, 0)),
        (0, 1): ((1, 0), (0, 1)),
        (1, 0): ((1, 1), (-1, 0)),
        (0, -1): ((0, 1), (0, -1)),
    }.items():
        outer = inside & ~np.roll(inside, (-dy, -dx), (0, 1))
        for y, x in np.argwhere(outer).tolist():
            steps.setdefault((x - 1 + start[0], y - 1 + start[1]), []).append(way)
    found = []
    while steps:
        start = min(steps)
        found.append(_walk(steps, start))
    return [border for border in found if _area(border) > 0]


def _walk(steps: dict[tuple[int, int], list[tuple[int, int]]], start: tuple[int, int]) -> Outline:
    """One closed border, taken out of `steps`; where two touch, it stays with its own region."""
    corners: Outline = []
    at, way = start, (0, 0)
    while True:
        ways = steps[at]
        right = (-way[1], way[0])
        new = right if right in ways else ways[0]
        ways.remove(new)
        if not ways:
            del steps[at]
        if new != way:
            corners.append(at)
        at, way = (at[0] + new[0], at[1] + new[1]), new
        if at == start:
            return corners


def _area(border: Outline) -> float:
    x, y = np.array(border).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def write_coco(root: Path, pictures: dict[str, Labels], names: Sequence[str]) -> Path:
    """root/annotations.json, for pictures in root/images by file name."""
    images, annotations = [], []
    for number, (file, labels) in enumerate(pictures.items(), 1):
        height, width = labels.shape
        images.append({"id": number, "file_name": file, "height": height, "width": width})
        for value, border in outlines(labels):
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": value + 1}
            flat = [float(c) for point in border for c in point]
            annotations.append(entry | {"segmentation": [flat], "iscrowd": 0})
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = root / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def write_labelme(root: Path, pictures: dict[str, Labels], names: Sequence[str]) -> Path:
    """root/marked/*.json, each naming ../images/FILE."""
    folder = root / "marked"
    folder.mkdir()
    for file, labels in pictures.items():
        shapes = [
            {"label": names[value], "points": border, "shape_type": "polygon", "group_id": None}
            for value, border in outlines(labels)
        ]
        content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imageData": None}
        content |= {"imagePath": f"..\\images\\{file}"}
        content |= {"imageHeight": labels.shape[0], "imageWidth": labels.shape[1]}
        (folder / f"{Path(file).stem}.json").write_text(json.dumps(content))
    return folder


def write_yolo(root: Path, pictures: dict[str, Labels], names: Sequence[str]) -> Path:
    """root/data.yaml and root/labels/*.txt."""
    (root / "labels").mkdir()
    for file, labels in pictures.items():
        size = np.array(labels.shape[::-1])
        lines = []
        for value, border in outlines(labels):
            shares = (np.array(border) / size).ravel()
            lines.append(" ".join([str(value), *(f"{share:.6f}" for share in shares)]))
        (root / "labels" / f"{Path(file).stem}.txt").write_text("\n".join(lines) + "\n")
    listed = "\n".join(f"  {index}: {name}" for index, name in enumerate(names))
    (root / "data.yaml").write_text(f"path: .\ntrain: images\nnames:\n{listed}\n")
    return root / "data.yaml"


WRITERS = {"coco": write_coco, "labelme": write_labelme, "yolo": write_yolo}


def photo(path: Path, size: tuple[int, int] = (20, 24), seed: int = 0) -> Path:
    """A picture of noise, of (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def stored(path: Path) -> Labels:
    """The values of a label map."""
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.asarray(image)
