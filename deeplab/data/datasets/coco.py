"""MS-COCO instances as label maps of the VOC classes, for the papers' pretraining.

Masks are drawn when a picture is read (some milliseconds). Of COCO's eighty categories the twenty
of VOC count and the rest is background. Where objects of two classes overlap, and in regions marked
as a crowd, no label can be trusted: 255. Pictures whose objects cover no more than `min_pixels` are
left out, 1000 as in torchvision's reference training; the area counts, as COCO states it, of single
objects of the twenty classes.

Drawing needs the pycocotools package: pip install 'deeplab-triton[coco]'.
Sources: Lin et al., ECCV 2014; Chen et al., DeepLab v2, section 4.1 (pretraining on COCO).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deeplab.data.conversions import Conversion
from deeplab.data.datasets.base import Image, Labels, SegmentationData, files_in, unknown_split
from deeplab.data.datasets.classes import COCO_TO_VOC, VOC, VOC_PALETTE
from deeplab.data.datasets.labels import IGNORE
from deeplab.data.images import read_image
from deeplab.errors import InputError

_PREFIX = "instances_"


class CocoAsVoc(SegmentationData):
    """The pictures of one annotation file that have enough of the VOC classes."""

    def __init__(self, split: str, folder: Path, annotations: Path, min_pixels: int) -> None:
        self.folder, self.annotations = folder, annotations
        # (file, height, width, objects): objects as JSON text, since hundreds of thousands of
        # lists would each be copied to every worker that touches them.
        self._pictures = _read_annotations(annotations, min_pixels)
        if not self._pictures:
            raise InputError(
                f"{annotations}: no picture with more than {min_pixels} pixels of the VOC classes; "
                "lower min_pixels, or check the file"
            )
        names = [Path(file).with_suffix("").as_posix() for file, *_ in self._pictures]
        super().__init__(f"coco_voc {split}", names, VOC, VOC_PALETTE)

    def picture(self, index: int) -> tuple[Image, Sequence[Conversion]]:
        return read_image(self.files(index)[0])

    def labels(self, index: int) -> Labels:
        file, height, width, objects = self._pictures[index]
        try:
            return draw(height, width, json.loads(objects))
        except Exception as error:  # pycocotools raises Exception itself
            raise InputError(
                f"{self.annotations}: the objects of {file} cannot be drawn ({error}); download "
                "the annotations again"
            ) from error

    def file(self, index: int) -> str:
        return str(self.files(index)[0])

    def files(self, index: int) -> tuple[Path, ...]:
        return (self.folder / self._pictures[index][0],)


def open_coco(root: Path, split: str, min_pixels: int = 1000) -> CocoAsVoc:
    """One annotation file of COCO, as VOC classes; min_pixels: see above."""
    _mask_tools()
    if min_pixels < 0:
        raise InputError(f"min_pixels must be 0 or more, not {min_pixels}")
    annotations = _annotations(root).get(split)
    if annotations is None:
        raise unknown_split(root / "annotations", split, coco_splits(root))
    folder = _pictures(root, split)
    if folder is None:
        raise InputError(f"{root}: no pictures; expected the folder {split} or images/{split}")
    return CocoAsVoc(split, folder, annotations, min_pixels)


def coco_splits(root: Path, min_pixels: int = 1000) -> list[str]:
    return [split for split in _annotations(root) if _pictures(root, split) is not None]


def _annotations(root: Path) -> dict[str, Path]:
    """The files of instances by split; InputError where there is no folder for them."""
    folder = root / "annotations"
    if not folder.is_dir():
        raise InputError(f"{root}: no folder annotations there; it holds instances_train2017.json")
    files = files_in(folder, ".json")
    return {f.stem.removeprefix(_PREFIX): f for f in files if f.stem.startswith(_PREFIX)}


def _pictures(root: Path, split: str) -> Path | None:
    folders = (root / split, root / "images" / split)
    return next((folder for folder in folders if folder.is_dir()), None)


def draw(height: int, width: int, objects: list[list[Any]]) -> Labels:
    """The label map uint8 `[H, W]` of objects [class, is a crowd, segmentation as COCO has it]."""
    labels = np.zeros((height, width), np.uint8)
    conflict = np.zeros((height, width), bool)
    crowd = np.zeros((height, width), bool)
    for index, is_crowd, segmentation in objects:
        inside = _mask(segmentation, height, width)
        if is_crowd:
            crowd |= inside
        else:
            conflict |= inside & (labels != 0) & (labels != index)
            labels[inside] = index
    labels[conflict | (crowd & (labels == 0))] = IGNORE
    return labels


def _mask(segmentation: Any, height: int, width: int) -> npt.NDArray[np.bool_]:
    """The pixels of polygons or of a run-length code (plain counts, or COCO's text)."""
    tools = _mask_tools()
    if isinstance(segmentation, list):
        if any(len(polygon) < 6 for polygon in segmentation):
            raise ValueError("a polygon has fewer than three corners")
        code = tools.merge(tools.frPyObjects(segmentation, height, width))
    else:
        return decode_runs(segmentation, height, width)
    return tools.decode(code).astype(bool)


def decode_runs(segmentation: dict[str, Any], height: int, width: int) -> npt.NDArray[np.bool_]:
    """The pixels of a run-length code (plain counts, or COCO's text), bool `[H, W]`.

    Raises InputError without pycocotools, ValueError and others for a code that makes no sense.
    """
    tools = _mask_tools()
    size, counts = segmentation["size"], segmentation["counts"]
    plain = isinstance(counts, list)
    if list(size) != [height, width] or (
        plain and (sum(counts) != height * width or min(counts) < 0)
    ):
        raise ValueError(f"a mask of {size}, but the picture is {height} x {width}")
    code = tools.frPyObjects(segmentation, height, width) if plain else segmentation
    # A text that ends early is decoded with whatever lies in memory behind it.
    if not plain and tools.encode(tools.decode(code))["counts"].decode() != counts:
        raise ValueError("a run-length code that does not fill the picture")
    return tools.decode(code).astype(bool)


def _read_annotations(path: Path, min_pixels: int) -> list[tuple[str, int, int, bytes]]:
    text = path.read_bytes()
    try:
        content = json.loads(text)
        classes = {
            category["id"]: VOC.index(COCO_TO_VOC[category["name"]])
            for category in content["categories"]
            if category["name"] in COCO_TO_VOC
        }
        objects: dict[int, list[list[Any]]] = defaultdict(list)
        areas: dict[int, float] = defaultdict(float)
        for entry in content["annotations"]:
            if entry["category_id"] in classes:
                index, crowd = classes[entry["category_id"]], int(entry.get("iscrowd", 0))
                objects[entry["image_id"]].append([index, crowd, entry["segmentation"]])
                areas[entry["image_id"]] += 0 if crowd else entry["area"]
        pictures = sorted(content["images"], key=lambda image: image["id"])
        chosen = [image for image in pictures if areas[image["id"]] > min_pixels]
        sizes = [(i["file_name"], int(i["height"]), int(i["width"])) for i in chosen]
        drawn = [json.dumps(objects[image["id"]]).encode() for image in chosen]
        return [(*size, text) for size, text in zip(sizes, drawn, strict=True)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: not COCO's file of instances, or damaged ({type(error).__name__}: {error}); "
            "download the annotations again"
        ) from error


def _mask_tools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise InputError(
            "pycocotools is needed to draw COCO's masks; install it with "
            "pip install 'deeplab-triton[coco]'"
        ) from error
    return mask
