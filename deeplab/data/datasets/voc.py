"""The PASCAL family: VOC 2012 with the SBD labels, PASCAL-Context, PASCAL-Person-Part.

All have JPEGImages/, a folder of PNG label maps and text files that list the names of a split, as
`deeplab.data.datasets.DATASETS` shows. A line of a list is a name, or image and label file as in
DeepLab's own lists (/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png); the second
one's folder is then where the labels are. The split "all" is every label map, lists or not.

`trainaug` is VOC's train split and all pictures of SBD (Hariharan et al., ICCV 2011) that are not
in VOC's val: 10,582. A label map comes from SegmentationClassAug; or else, since some keep only
SBD's there, from VOC's own SegmentationClass; or else from SBD as it is unpacked, in MATLAB files:
benchmark_RELEASE/dataset/cls/2008_000002.mat. With SBD itself no list is needed.

Sources: the development kits; Mottaghi et al., CVPR 2014; Chen et al., CVPR 2014 (parts).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deeplab.data.datasets import classes as known
from deeplab.data.datasets.base import (
    Pair,
    PairedFiles,
    PredictionLayout,
    files_by_name,
    files_in,
    read_lines,
    unknown_split,
)
from deeplab.data.datasets.labels import LabelReader, label_table
from deeplab.data.outputs import voc_palette
from deeplab.errors import InputError

_IMAGES = "JPEGImages"
_USUAL = ("train", "val", "trainval")
_AUGMENTED, _AUG_LABELS = "trainaug", "SegmentationClassAug"
_SBD_HINT = "; trainaug is made with SBD's labels, which `deeplab data list voc2012` explains"


@dataclass(frozen=True)
class _Kind:
    """Where a set of the family keeps what; the first folder that exists counts."""

    name: str
    classes: tuple[str, ...]
    roots: tuple[str, ...]
    labels: tuple[str, ...]
    lists: tuple[str, ...]
    only_usual: bool = True  # its folders hold other lists too
    server: PredictionLayout | None = None


_VOC = _Kind(
    "voc2012",
    known.VOC,
    ("", "VOC2012", "VOCdevkit/VOC2012"),
    ("SegmentationClass",),
    ("ImageSets/Segmentation", "ImageSets/SegmentationAug"),
    only_usual=False,
    server=PredictionLayout(
        values=np.arange(len(known.VOC), dtype=np.uint8),
        folder="results/VOC2012/Segmentation/comp6_{split}_cls",
        archive="results.tgz",
    ),
)
_CONTEXT = _Kind(
    "pascal_context",
    known.CONTEXT,
    ("", "VOC2010", "VOCdevkit/VOC2010"),
    ("SegmentationClassContext", "59_context_labels"),
    ("ImageSets/SegmentationContext", "ImageSets/Main"),
)
_PERSON_PART = _Kind(
    "pascal_person_part",
    known.PERSON_PART,
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
)


def open_voc(root: Path, split: str, sbd: str | Path | None = None) -> PairedFiles:
    """VOC 2012: 21 classes, 255 = the border of objects, ignored.

    sbd: the folder benchmark_RELEASE of SBD, or the one in it that holds cls/*.mat: label maps of
        split trainaug for pictures that have none elsewhere.
    """
    maps = {} if sbd is None else _sbd_maps(Path(sbd))
    return _open(_VOC, root, split, label_table(len(known.VOC)), maps)


def voc_splits(root: Path, sbd: str | Path | None = None) -> list[str]:
    splits = _splits(_VOC, root)
    return splits if sbd is None or _AUGMENTED in splits else [_AUGMENTED, *splits]


def open_context(root: Path, split: str, order: str | None = None) -> PairedFiles:
    """PASCAL-Context: background and 59 classes in alphabetical order.

    order: that of the values in the label maps, "alphabetical" or "59_labels" (the authors'
        archive). By default the folder tells: 59_context_labels has the second one. The classes
        that come out are the same.
    """
    if order not in (None, "alphabetical", "59_labels"):
        raise InputError(f"order must be 'alphabetical' or '59_labels', not {order!r}")
    if order is None:
        folder = _label_folder(_CONTEXT, _find_root(_CONTEXT, root))
        authors = folder is not None and folder.name == "59_context_labels"
        order = "59_labels" if authors else "alphabetical"
    stored = known.CONTEXT if order == "alphabetical" else known.CONTEXT_59_LABELS
    table = label_table({value: known.CONTEXT.index(name) for value, name in enumerate(stored)})
    return _open(_CONTEXT, root, split, table)


def context_splits(root: Path, order: str | None = None) -> list[str]:
    return _splits(_CONTEXT, root)


def open_person_part(root: Path, split: str) -> PairedFiles:
    """PASCAL-Person-Part: background and six body parts."""
    return _open(_PERSON_PART, root, split, label_table(len(known.PERSON_PART)))


def person_part_splits(root: Path) -> list[str]:
    return _splits(_PERSON_PART, root)


def _open(
    kind: _Kind,
    root: Path,
    split: str,
    table: npt.NDArray[np.int16],
    sbd: Mapping[str, Path] | None = None,
) -> PairedFiles:
    base = _find_root(kind, root)
    lists = _lists(kind, base)
    path = lists.get(_normal(split))
    augmented = kind is _VOC and _normal(split).endswith("aug")
    labels = _label_folder(kind, base)
    if split == "all":
        if labels is None:
            raise InputError(_no_label_maps(kind, base))
        maps = files_by_name(labels, (".png",))
        pairs = [Pair(name, base / _IMAGES / f"{name}.jpg", file) for name, file in maps.items()]
    elif path is not None:
        usual = labels or base / kind.labels[0]
        pairs = _listed(base, path, base / _AUG_LABELS if augmented else usual)
    elif sbd and _normal(split) == _AUGMENTED:
        pairs = _merged(base, lists, sbd)
    else:
        error = unknown_split(base, split, _splits(kind, root))
        raise InputError(f"{error}{_SBD_HINT}") if augmented else error
    if not pairs:
        raise InputError(f"{path or base}: names no picture")
    if augmented:
        maps = {**(sbd or {}), **_maps(base / "SegmentationClass"), **_maps(base / _AUG_LABELS)}
        pairs = [replace(pair, labels=maps.get(pair.name, pair.labels)) for pair in pairs]
    return PairedFiles(
        f"{kind.name} {split}",
        pairs,
        kind.classes,
        voc_palette(),
        LabelReader(table),
        unlabelled=_unlabelled(kind, base, split, {pair.labels.parent for pair in pairs}),
        server=kind.server,
    )


def _unlabelled(kind: _Kind, base: Path, split: str, folders: set[Path]) -> str:
    """What is missing of the folders of labels, in one line; empty where none is."""
    missing = next((folder for folder in sorted(folders) if not folder.is_dir()), None)
    if missing is None:
        return ""
    if missing.name == _AUG_LABELS:
        return f"{missing}: no such folder, split {split!r} needs it{_SBD_HINT}"
    return _no_label_maps(kind, base)


def _merged(base: Path, lists: Mapping[str, Path], sbd: Mapping[str, Path]) -> list[Pair]:
    """What VOC's train split and SBD have, without what VOC's val split has."""
    for split in ("train", "val"):
        if split not in lists:
            raise InputError(
                f"{base}: no list of split {split!r} in {_VOC.lists[0]}; without it trainaug "
                "cannot be kept apart from val"
            )
    own, held_out = ({p.name for p in _listed(base, lists[s], base)} for s in ("train", "val"))
    names = sorted((own | set(sbd)) - held_out)
    images, labels = base / _IMAGES, base / _AUG_LABELS
    return [Pair(name, images / f"{name}.jpg", labels / f"{name}.png") for name in names]


def _maps(folder: Path) -> dict[str, Path]:
    return files_by_name(folder, (".png",)) if folder.is_dir() else {}


def _sbd_maps(folder: Path) -> dict[str, Path]:
    for below in ("cls", "dataset/cls"):
        if (folder / below).is_dir():
            return files_by_name(folder / below, (".mat",))
    raise InputError(
        f"sbd: {folder}: not the folder of SBD; expected dataset/cls/*.mat or cls/*.mat there"
    )


def _splits(kind: _Kind, root: Path) -> list[str]:
    return [*sorted(_lists(kind, _find_root(kind, root))), "all"]


def _find_root(kind: _Kind, root: Path) -> Path:
    for below in kind.roots:
        if (root / below / _IMAGES).is_dir():
            return root / below
    looked = ", ".join(str(root / below / _IMAGES) for below in kind.roots)
    raise InputError(f"{root}: no pictures of {kind.name}; looked for the folders {looked}")


def _label_folder(kind: _Kind, base: Path) -> Path | None:
    folders = (base / folder for folder in kind.labels)
    return next((folder for folder in folders if folder.is_dir()), None)


def _no_label_maps(kind: _Kind, base: Path) -> str:
    looked = ", ".join(kind.labels)
    return f"{base}: no label maps of {kind.name}; looked for the folders {looked}"


def _lists(kind: _Kind, base: Path) -> dict[str, Path]:
    """The list of each split, by the split's name in one spelling."""
    lists: dict[str, Path] = {}
    for folder in kind.lists:
        shortest_first = sorted(files_in(base / folder, ".txt"), key=lambda p: len(p.name))
        for path in shortest_first:  # train.txt before train_id.txt
            name = _normal(path.stem)
            if name in _USUAL or not kind.only_usual:
                lists.setdefault(name, path)
    return lists


def _normal(split: str) -> str:
    """train_aug and trainaug, train_id and train are the same split."""
    return split.lower().removesuffix("_id").replace("_", "")


def _listed(base: Path, path: Path, labels: Path) -> list[Pair]:
    pairs = []
    for number, line in read_lines(path):
        words = line.split()
        if len(words) > 2 or (len(words) == 2 and "." not in words[1]):
            raise InputError(
                f"{path}: line {number} must be a name, or an image and a label file, not {line!r}"
            )
        name = Path(words[0]).name.removesuffix(".jpg").removesuffix(".png")
        folder = labels
        if len(words) == 2:
            named = base / Path(words[1].lstrip("/")).parent
            folder = named if named != base and named.is_dir() else labels
        pairs.append(Pair(name, base / _IMAGES / f"{name}.jpg", folder / f"{name}.png"))
    return pairs
