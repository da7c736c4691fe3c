"""The PASCAL family: VOC 2012 with the SBD labels, PASCAL-Context, PASCAL-Person-Part.

All have JPEGImages/, a folder of PNG label maps and text files that list the names of a split:

    set                   labels                    lists
    voc2012               SegmentationClass         ImageSets/Segmentation/{train,val,trainval}.txt
      trainaug            SegmentationClassAug      ImageSets/Segmentation/trainaug.txt, or
                                                    ImageSets/SegmentationAug/train_aug.txt
    pascal_context        SegmentationClassContext  ImageSets/SegmentationContext/{train,val}.txt
                          or 59_context_labels      or ImageSets/Main/{train,val}.txt
    pascal_person_part    pascal_person_part_gt     pascal_person_part_trainval_list/{train,val}.txt

A line of a list is a name, or image and label file as in the lists of DeepLab's own code
(/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png); the second one's folder is then
where the labels are. The split "all" is every label map, lists or not.

`trainaug` is VOC's train split and the training pictures of SBD (Hariharan et al., ICCV 2011),
10,582 in all. SBD itself has MATLAB files; with SciPy each becomes a label map by

    labels = scipy.io.loadmat("cls/2008_000002.mat")["GTcls"][0, 0]["Segmentation"]
    PIL.Image.fromarray(labels).save("SegmentationClassAug/2008_000002.png")

Sources: the development kits; Mottaghi et al., CVPR 2014; Chen et al., CVPR 2014 (parts).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deeplab.data.datasets import classes as known
from deeplab.data.datasets.base import (
    Pair,
    PairedFiles,
    files_by_name,
    read_lines,
    unknown_split,
)
from deeplab.data.datasets.labels import LabelReader, label_table
from deeplab.errors import InputError

_IMAGES = "JPEGImages"
_USUAL = ("train", "val", "trainval")


@dataclass(frozen=True)
class _Kind:
    """Where a set of the family keeps what; the first folder that exists counts."""

    name: str
    roots: tuple[str, ...]
    labels: tuple[str, ...]
    lists: tuple[str, ...]
    only_usual: bool  # its folders hold other lists too


_VOC = _Kind(
    "voc2012",
    ("", "VOC2012", "VOCdevkit/VOC2012"),
    ("SegmentationClass",),
    ("ImageSets/Segmentation", "ImageSets/SegmentationAug"),
    only_usual=False,
)
_CONTEXT = _Kind(
    "pascal_context",
    ("", "VOC2010", "VOCdevkit/VOC2010"),
    ("SegmentationClassContext", "59_context_labels"),
    ("ImageSets/SegmentationContext", "ImageSets/Main"),
    only_usual=True,
)
_PERSON_PART = _Kind(
    "pascal_person_part",
    ("", "VOC2010", "VOCdevkit/VOC2010"),
    (
        "pascal_person_part_gt",
        "pascal_person_part/pascal_person_part_gt",
        "SegmentationPersonPart",
        "SegmentationPart",
    ),
    (
        "pascal_person_part_trainval_list",
        "pascal_person_part/pascal_person_part_trainval_list",
        "ImageSets/SegmentationPersonPart",
        "ImageSets/SegmentationPart",
        "",
    ),
    only_usual=True,
)


def open_voc(root: Path, split: str) -> PairedFiles:
    """VOC 2012: 21 classes, 255 = the border of objects, ignored."""
    return _open(_VOC, root, split, known.VOC, known.VOC_PALETTE, label_table(len(known.VOC)))


def voc_splits(root: Path) -> list[str]:
    return _splits(_VOC, root)


def open_context(root: Path, split: str, order: str | None = None) -> PairedFiles:
    """PASCAL-Context: background and 59 classes in alphabetical order.

    order: that of the values in the label maps, "alphabetical" or "59_labels" (the authors'
        archive). By default the folder tells: 59_context_labels has the second one. The classes
        that come out are the same.
    """
    if order not in (None, "alphabetical", "59_labels"):
        raise InputError(f"order: expected 'alphabetical' or '59_labels', got {order!r}")
    if order is None:
        folder = _label_folder(_CONTEXT, _find_root(_CONTEXT, root))
        order = "59_labels" if folder.name == "59_context_labels" else "alphabetical"
    stored = known.CONTEXT if order == "alphabetical" else known.CONTEXT_59_LABELS
    table = label_table({value: known.CONTEXT.index(name) for value, name in enumerate(stored)})
    return _open(_CONTEXT, root, split, known.CONTEXT, known.CONTEXT_PALETTE, table)


def context_splits(root: Path, order: str | None = None) -> list[str]:
    return _splits(_CONTEXT, root)


def open_person_part(root: Path, split: str) -> PairedFiles:
    """PASCAL-Person-Part: background and six body parts."""
    table = label_table(len(known.PERSON_PART))
    return _open(_PERSON_PART, root, split, known.PERSON_PART, known.PERSON_PART_PALETTE, table)


def person_part_splits(root: Path) -> list[str]:
    return _splits(_PERSON_PART, root)


def _open(
    kind: _Kind,
    root: Path,
    split: str,
    classes: Sequence[str],
    palette: npt.NDArray[np.uint8],
    table: npt.NDArray[np.int16],
) -> PairedFiles:
    base = _find_root(kind, root)
    lists = _lists(kind, base)
    path = lists.get(_normal(split))
    if split == "all":
        maps = files_by_name(_label_folder(kind, base), (".png",))
        pairs = [Pair(name, base / _IMAGES / f"{name}.jpg", file) for name, file in maps.items()]
    elif path is not None:
        augmented = _normal(split).endswith("aug")
        labels = base / "SegmentationClassAug" if augmented else _label_folder(kind, base)
        pairs = _listed(base, path, labels)
    else:
        raise unknown_split(base, split, _splits(kind, root))
    if not pairs:
        raise InputError(f"{path or base}: names no picture")
    for folder in sorted({pair.labels.parent for pair in pairs}):
        if not folder.is_dir():
            hint = (
                "; SBD's labels are wanted there as PNG, which `deeplab data list voc2012` explains"
                if folder.name == "SegmentationClassAug"
                else ""
            )
            raise InputError(f"{folder}: no such folder, split {split!r} needs it{hint}")
    return PairedFiles(f"{kind.name} {split}", pairs, classes, palette, LabelReader(table))


def _splits(kind: _Kind, root: Path) -> list[str]:
    return [*sorted(_lists(kind, _find_root(kind, root))), "all"]


def _find_root(kind: _Kind, root: Path) -> Path:
    for below in kind.roots:
        if (root / below / _IMAGES).is_dir():
            return root / below
    looked = ", ".join(str(root / below / _IMAGES) for below in kind.roots)
    raise InputError(f"{root}: no pictures of {kind.name}; looked for the folders {looked}")


def _label_folder(kind: _Kind, base: Path) -> Path:
    for folder in kind.labels:
        if (base / folder).is_dir():
            return base / folder
    raise InputError(
        f"{base}: no label maps of {kind.name}; looked for the folders {', '.join(kind.labels)}"
    )


def _lists(kind: _Kind, base: Path) -> dict[str, Path]:
    """The list of each split, by the split's name in one spelling."""
    lists: dict[str, Path] = {}
    for folder in kind.lists:
        for path in sorted((base / folder).glob("*.txt"), key=lambda p: (len(p.name), p.name)):
            name = _normal(path.stem)
            if name in _USUAL or not kind.only_usual:
                lists.setdefault(name, path)
    return lists


def _normal(split: str) -> str:
    """train_aug and trainaug, train_id and train are the same split."""
    return split.lower().removesuffix("_id").replace("_", "")


def _listed(base: Path, path: Path, labels: Path) -> list[Pair]:
    pairs = []
    for number, line in enumerate(read_lines(path), 1):
        words = line.split()
        if len(words) > 2 or (len(words) == 2 and "." not in words[1]):
            raise InputError(
                f"{path}: line {number}: expected a name, or an image and a label file, got "
                f"{line!r}"
            )
        name = Path(words[0]).name.removesuffix(".jpg").removesuffix(".png")
        folder = labels
        if len(words) == 2:
            named = base / Path(words[1].lstrip("/")).parent
            folder = named if named != base and named.is_dir() else labels
        pairs.append(Pair(name, base / _IMAGES / f"{name}.jpg", folder / f"{name}.png"))
    return pairs
