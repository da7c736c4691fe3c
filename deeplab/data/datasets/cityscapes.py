"""Cityscapes: 19 classes of street scenes, its label ids turned into train ids.

Label maps hold ids from 0 to 33 (and -1, license plates, which 8 bits store as 255); 19 of them
count, the others are ignored. Files of train ids, made by the authors' scripts, hold 0-18 and 255.
The label maps of the test split have no class in them, and can be missing.

The evaluation server, and the authors' script evalPixelLevelSemanticLabeling, take grey PNGs of
label ids (not train ids), CITY_000000_000019*.png, one for each picture, the server in a zip file.
Source: Cordts et al., CVPR 2016; labels.py and that script of cityscapesScripts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deeplab.data.datasets.base import (
    Pair,
    PairedFiles,
    PredictionLayout,
    files_by_name,
    missing_folder,
    unknown_split,
)
from deeplab.data.datasets.classes import (
    CITYSCAPES,
    CITYSCAPES_IDS,
    CITYSCAPES_PALETTE,
    CITYSCAPES_VOID_IDS,
)
from deeplab.data.datasets.labels import LabelReader, label_table
from deeplab.errors import InputError

_IMAGE_END = "_leftImg8bit"
_TABLES = {
    "labelIds": label_table(CITYSCAPES_IDS, CITYSCAPES_VOID_IDS),
    "labelTrainIds": label_table(len(CITYSCAPES)),
}
_SERVER = PredictionLayout(
    values=np.array(list(CITYSCAPES_IDS), np.uint8),
    folder="results",
    ending="_labelIds.png",
    coloured=False,
    archive="results.zip",
    flat=True,
)


def open_cityscapes(root: Path, split: str, labels: str | None = None) -> PairedFiles:
    """One split of Cityscapes; labels: "labelIds" or "labelTrainIds", by default what it has."""
    if labels not in (None, *_TABLES):
        raise InputError(f"labels must be 'labelIds' or 'labelTrainIds', not {labels!r}")
    splits = cityscapes_splits(root)
    if split not in splits:
        raise unknown_split(root / "leftImg8bit", split, splits)
    pictures = files_by_name(root / "leftImg8bit" / split, (".png",))
    pictures = {name: path for name, path in pictures.items() if name.endswith(_IMAGE_END)}
    if not pictures:
        raise InputError(f"{root / 'leftImg8bit' / split}: no file CITY/*{_IMAGE_END}.png there")
    truth = root / "gtFine" / split
    maps = files_by_name(truth, (".png",)) if truth.is_dir() else {}
    unlabelled = missing_folder(truth)
    if labels is None:
        labels = next((k for k in _TABLES if any(m.endswith(f"_gtFine_{k}") for m in maps)), None)
    if labels is None:
        labels, missing = "labelIds", "*_gtFine_labelIds.png or *_gtFine_labelTrainIds.png"
        unlabelled = unlabelled or f"{truth}: no file CITY/{missing} there"
    end = f"_gtFine_{labels}"
    stems = {name.removesuffix(_IMAGE_END): path for name, path in pictures.items()}
    pairs = [Pair(Path(s).name, path, truth / f"{s}{end}.png") for s, path in stems.items()]
    kind = {name.removesuffix(end): path for name, path in maps.items() if name.endswith(end)}
    alone = [path for stem, path in kind.items() if stem not in stems]
    reader = LabelReader(_TABLES[labels])
    name, classes = f"cityscapes {split}", (CITYSCAPES, CITYSCAPES_PALETTE)
    return PairedFiles(name, pairs, *classes, reader, alone, unlabelled, _SERVER)


def cityscapes_splits(root: Path, labels: str | None = None) -> list[str]:
    """The splits that there are; InputError where the folder is not Cityscapes'."""
    folder = root / "leftImg8bit"
    if not folder.is_dir():
        raise InputError(
            f"{root}: no folder leftImg8bit there; unpack leftImg8bit_trainvaltest.zip and "
            "gtFine_trainvaltest.zip into it"
        )
    return sorted(path.name for path in folder.iterdir() if path.is_dir())
