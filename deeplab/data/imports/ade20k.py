"""ADE20K as the scene parsing benchmark lays it out: 150 classes from 1 on, 0 = nothing of them.

    images/{training,validation}/*.jpg, annotations/{training,validation}/*.png
    objectInfo150.txt      a table with the names in its last column

The folder itself, or ADEChallengeData2016 in it. Sets of one's own in this layout need such a table
too; its first column is the value, its last the name, with tabs between.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deeplab.data.datasets.base import files_by_name, read_lines
from deeplab.data.datasets.labels import LabelReader, label_table
from deeplab.data.images import SUFFIXES
from deeplab.data.imports.reading import split_name
from deeplab.data.imports.shapes import UNLABELLED, Annotations, Class, Picture
from deeplab.errors import InputError

_TABLE = "objectInfo150.txt"


def read(source: Path, images: Path | None) -> Annotations:
    """All pictures that have a label map."""
    inner = source / "ADEChallengeData2016"
    root = inner if inner.is_dir() else source
    names = _names(root / _TABLE)
    reader = LabelReader(label_table(len(names) + 1))
    folder = root / "images" if images is None else images
    files = files_by_name(folder, SUFFIXES)
    pictures = []
    for name, path in files_by_name(root / "annotations", (".png",)).items():
        file = files[name].relative_to(folder).as_posix() if name in files else f"{name}.jpg"
        split = split_name(name.split("/")[0]) if "/" in name else ""
        label_map = partial(_label_map, reader, path)
        pictures.append(Picture(file, (folder,), path, split=split, label_map=label_map))
    return Annotations([Class(name) for name in names], pictures)


def _names(path: Path) -> list[str]:
    """The names of the classes 1, 2, ..."""
    rows = [[cell.strip() for cell in line.split("\t")] for _, line in read_lines(path)]
    rows = [row for row in rows if row[0].isdecimal()]
    if [int(row[0]) for row in rows] != list(range(1, len(rows) + 1)) or not rows:
        raise InputError(f"{path}: must have lines that begin with 1, 2, ... and end in a name")
    return [row[-1] for row in rows]


def _label_map(reader: LabelReader, path: Path) -> npt.NDArray[np.int16]:
    stored = reader.read(path).astype(np.int16)
    return np.where(stored == 0, UNLABELLED, np.where(stored == 255, 255, stored - 1))
