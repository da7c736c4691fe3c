"""Label maps in VOC's layout, as CVAT ("Segmentation mask 1.1") and labelme2voc write them too.

    JPEGImages/a.jpg, SegmentationClass/a.png, ImageSets/Segmentation/{train,val}.txt
    labelmap.txt      CVAT: name:r,g,b:: on each line; label maps are read by these colours
    class_names.txt   labelme2voc: a name a line; label maps are read by their values

Without either the classes are VOC's own 21. Without lists all label maps are taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deeplab.data.datasets import classes as known
from deeplab.data.datasets.base import files_by_name, files_in, read_lines
from deeplab.data.datasets.labels import IGNORE, LabelReader, label_table, read_by_colour
from deeplab.data.images import SUFFIXES, load_picture
from deeplab.data.imports.labelme import IGNORED
from deeplab.data.imports.reading import split_name
from deeplab.data.imports.shapes import Annotations, Class, Picture
from deeplab.errors import InputError

_ROOTS = ("", "VOC2012", "VOCdevkit/VOC2012")
_LINE = re.compile(r"(?P<name>.+?):(?P<r>\d{1,3}),(?P<g>\d{1,3}),(?P<b>\d{1,3})(?::.*)?")
_BORDER = (224, 224, 192)  # of objects in VOC: value 255 of its palette

LabelMap = npt.NDArray[np.int16]


def read(source: Path, images: Path | None) -> Annotations:
    """All pictures of the lists of splits, or else all that have a label map."""
    folders = [source / root for root in _ROOTS if (source / root / "SegmentationClass").is_dir()]
    if not folders:
        raise InputError(f"{source}: no folder SegmentationClass there")
    root = folders[0]
    classes, reader = _classes(root)
    maps = files_by_name(root / "SegmentationClass", (".png",))
    splits = _splits(root)
    if not splits:
        splits = dict.fromkeys(maps, "")
    folder = root / "JPEGImages" if images is None else images
    files = files_by_name(folder, SUFFIXES)
    pictures = []
    for name, split in splits.items():
        path = maps.get(name, root / "SegmentationClass" / f"{name}.png")
        if name not in maps:
            raise InputError(f"{path}: no such file, but split {split!r} lists the picture")
        file = files[name].relative_to(folder).as_posix() if name in files else f"{name}.jpg"
        pictures.append(
            Picture(file, (folder,), path, split=split, label_map=partial(reader, path))
        )
    return Annotations(classes, pictures)


def _splits(root: Path) -> dict[str, str]:
    """The split of each name in the lists of train, val and test; other lists overlap these."""
    splits: dict[str, str] = {}
    for path in files_in(root / "ImageSets" / "Segmentation", ".txt"):
        split = split_name(path.stem)
        for _, name in read_lines(path) if split else ():
            if splits.setdefault(name, split) != split:
                raise InputError(f"{path}: {name} is in split {splits[name]!r} too")
    return splits


def _classes(root: Path) -> tuple[list[Class], Callable[[Path], LabelMap]]:
    """The classes, and what reads a label map as their indices."""
    if (path := root / "labelmap.txt").is_file():
        classes = [_class(path, *line) for line in read_lines(path) if not line[1].startswith("#")]
        colours = {one.colour: index for index, one in enumerate(classes) if one.colour}
        if len(colours) < len(classes):
            raise InputError(f"{path}: two classes share a colour; make them differ")
        return classes, partial(_by_colour, {_BORDER: IGNORE} | colours)
    if (path := root / "class_names.txt").is_file():
        names = [name for _, name in read_lines(path) if name != IGNORED]
        classes = [Class(name.strip("_")) for name in names]
    else:
        colours_of = zip(known.VOC, known.VOC_PALETTE.tolist(), strict=True)
        classes = [Class(name, tuple(colour)) for name, colour in colours_of]
    return classes, partial(_by_value, LabelReader(label_table(len(classes))))


def _class(path: Path, number: int, line: str) -> Class:
    match = _LINE.fullmatch(line)
    if match is None or max(int(match[c]) for c in "rgb") > IGNORE:
        raise InputError(f"{path}: line {number}: {line!r} must be name:red,green,blue::")
    return Class(match["name"], (int(match["r"]), int(match["g"]), int(match["b"])))


def _by_value(reader: LabelReader, path: Path) -> LabelMap:
    return reader.read(path).astype(np.int16)


def _by_colour(colours: dict[tuple[int, int, int], int], path: Path) -> LabelMap:
    picture, _ = load_picture(path)
    rgb = np.asarray(picture.convert("RGB"))
    return read_by_colour(path, rgb, colours).astype(np.int16)
