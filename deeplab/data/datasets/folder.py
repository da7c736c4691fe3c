"""Data of one's own: images/ and labels/ with the same names, and a file that names the classes.

`DATASETS["folder"].layout` shows the folders, the lists of splits and classes.toml. A name is the
path below images/, with or without its suffix. classes.txt has a class a line, in the order of the
label values from 0 on, with its colour (R G B) behind it if wanted. Label maps are index maps
(grey, or a palette's indices), or RGB pictures in the classes' colours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deeplab import toml
from deeplab.data.bands import NPY
from deeplab.data.datasets.base import (
    Pair,
    PairedFiles,
    composed,
    files_in,
    missing_folder,
    pair_folders,
    read_lines,
    read_text,
    unknown_split,
)
from deeplab.data.datasets.labels import IGNORE, LabelReader, label_table
from deeplab.data.datasets.masks import MaskFiles
from deeplab.data.images import SUFFIXES
from deeplab.data.outputs import voc_palette
from deeplab.errors import InputError

MOST_MASKS = 254
_BESIDE = ("train", "val", "test", "trainval")
_COLOUR = re.compile(r"(?P<name>.*?)\s+(?P<r>\d+)[\s,]+(?P<g>\d+)[\s,]+(?P<b>\d+)$")


@dataclass(frozen=True)
class ClassFile:
    """What a class file says: names, colours `[C, 3]`, and how label files become classes.

    masks: of several labels a pixel how each class's mask becomes 0, 1 and 255; else empty.
    """

    names: tuple[str, ...]
    palette: npt.NDArray[np.uint8]
    reader: LabelReader
    masks: tuple[LabelReader, ...] = ()


def open_folder(
    root: Path,
    split: str,
    classes: str | Path | None = None,
    ignore: int | Sequence[int] = (),
    images: str = "images",
    labels: str = "labels",
    bands: int | None = None,
) -> PairedFiles:
    """A folder of images and labels.

    Args:
        classes: the class file; by default classes.toml or classes.txt in the folder.
        ignore: label values that do not count, besides those of the class file and 255.
        images, labels: names of the two folders.
        bands: how many each picture has, of any values, as `deeplab.data.bands` reads them; then
            .npy files count as pictures too. By default pictures are RGB.
    """
    described = read_class_file(_class_file(root, classes), ignore)
    if bands is not None and bands < 1:
        raise InputError(f"bands must be 1 or more, not {bands}")
    suffixes = SUFFIXES if bands is None else (*SUFFIXES, NPY)
    pairs, unpaired = pair_folders(root / images, root / labels, suffixes)
    lists, folders = _lists(root), _subfolders(root / images)
    split = composed(split)
    if split in lists:
        pairs, unpaired = _listed(lists[split], pairs, root / images, root / labels), []
    elif split in folders:
        pairs = [pair for pair in pairs if pair.name.startswith(f"{split}/")]
        unpaired = [p for p in unpaired if composed(p.relative_to(root / labels).parts[0]) == split]
        if not pairs:
            raise InputError(f"{root / images / split}: no picture there")
    elif split != "all":
        raise unknown_split(root, split, folder_splits(root, images=images))
    name, unlabelled = f"{root.name} {split}", missing_folder(root / labels)
    about = (name, pairs, described.names, described.palette)
    if described.masks:
        inside = None if split in lists else f"{split}/" if split in folders else ""
        return MaskFiles(*about, described.masks, root / labels, inside, unlabelled, bands or 3)
    return PairedFiles(*about, described.reader, unpaired, unlabelled, bands=bands or 3)


def folder_splits(
    root: Path,
    classes: str | Path | None = None,
    ignore: int | Sequence[int] = (),
    images: str = "images",
    labels: str = "labels",
    bands: int | None = None,
) -> list[str]:
    return list(dict.fromkeys([*_lists(root), *_subfolders(root / images), "all"]))


def read_class_file(path: Path, ignore: int | Sequence[int] = ()) -> ClassFile:
    """Read classes.txt or classes.toml; InputError for what makes no sense in it."""
    ignored = [ignore] if isinstance(ignore, int) else list(ignore)
    if path.suffix.lower() == ".toml":
        entries, more, colours, multilabel = _read_toml(path)
        ignored += more
    else:
        entries, colours = [_class_of(path, number, line) for number, line in read_lines(path)], []
        multilabel = False
    for value in ignored:
        _require(_is_level(value), path, f"ignore: {value!r}", "0-255")
    if not 1 <= len(entries) <= IGNORE:
        raise InputError(f"{path}: {len(entries)} classes; expected 1 to {IGNORE}")
    names = [entry["name"] for entry in entries]
    if multilabel:
        return _of_masks(path, names, entries, ignored, colours)
    values = {entry.get("label", i): i for i, entry in enumerate(entries)}
    by_colour = {
        tuple(entry["colour"]): i for i, entry in enumerate(entries) if entry.get("colour")
    }
    for what, unique in (("names", set(names)), ("labels", values)):
        if len(unique) < len(entries):
            raise InputError(f"{path}: two classes share one of their {what}; make them differ")
    if by_colour and len(by_colour) < len(entries):
        raise InputError(f"{path}: each class needs a colour of its own, or none has one")
    clash = sorted(set(values) & set(ignored))
    if clash:
        raise InputError(
            f"{path}: label {clash[0]} is a class ({names[values[clash[0]]]}) and ignored; give "
            "the class another label, or leave it out of the classes"
        )
    palette = np.array(list(by_colour), np.uint8) if by_colour else voc_palette()[: len(names)]
    for colour in colours:
        if not by_colour:
            raise InputError(f"{path}: ignore_colours without colours of classes; give those too")
        if by_colour.setdefault(tuple(colour), IGNORE) != IGNORE:
            name = names[by_colour[tuple(colour)]]
            raise InputError(f"{path}: colour {colour} is a class ({name}) and ignored; choose one")
    reader = LabelReader(label_table(values, ignored), by_colour)
    return ClassFile(tuple(names), palette, reader)


def _of_masks(
    path: Path,
    names: list[str],
    entries: list[dict[str, Any]],
    ignored: list[int],
    colours: list[list[int]],
) -> ClassFile:
    """What a class file of several labels a pixel says, whose labels are the values in masks."""
    if colours:
        raise InputError(f"{path}: ignore_colours must be left out with multilabel")
    if len(set(names)) < len(names):
        raise InputError(f"{path}: two classes share one of their names; make them differ")
    _require(len(names) <= MOST_MASKS, path, "classes with multilabel", f"{MOST_MASKS} at most")
    palette = voc_palette()[1 : len(names) + 1]  # no class is a background, which is black there
    readers = []
    for i, entry in enumerate(entries):
        value = entry.get("label", 1)
        allowed = value != 0 and value not in ignored
        _require(allowed, path, f"label {value} of {names[i]}", "neither 0 nor ignored")
        palette[i] = entry.get("colour", palette[i])
        readers.append(LabelReader(label_table({0: 0, value: 1}, ignored)))
    return ClassFile(tuple(names), palette, LabelReader(label_table({})), tuple(readers))


def _class_file(root: Path, given: str | Path | None) -> Path:
    if given is not None:
        return Path(given)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    for name in ("classes.toml", "classes.txt"):
        if (root / name).is_file():
            return root / name
    raise InputError(
        f"{root}: no classes.toml or classes.txt there; write one, a class name on each line in "
        "the order of the label values from 0 on"
    )


def _class_of(path: Path, number: int, line: str) -> dict[str, Any]:
    match = _COLOUR.match(line)
    if match is None:
        return {"name": line}
    colour = [int(match[c]) for c in "rgb"]
    if max(colour) > 255:
        raise InputError(
            f"{path}: line {number}: {line!r}: a colour has three numbers from 0 to 255"
        )
    return {"name": match["name"], "colour": colour}


def _read_toml(path: Path) -> tuple[list[dict[str, Any]], list[int], list[list[int]], bool]:
    """The classes, the ignored values and colours, and whether several classes may hold."""
    try:
        content = toml.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"{path}: not valid TOML ({error})") from error
    _only(path, content, ("class", "ignore", "ignore_colours", "multilabel"))
    entries = content.get("class", [])
    _require(isinstance(entries, list), path, "class", "tables [[class]]")
    for entry in entries:
        _require(isinstance(entry, dict), path, "class", "tables [[class]]")
        _only(path, entry, ("name", "colour", "label"))
        name, label = entry.get("name"), entry.get("label", 0)
        _require(isinstance(name, str) and bool(name), path, f"name {name!r}", "a text")
        _require(_is_level(label), path, f"label {label!r} of {name}", "0 to 255")
        if "colour" in entry:
            _require_colour(path, entry["colour"])
    ignore = content.get("ignore", [])
    colours = content.get("ignore_colours", [])
    _require(isinstance(colours, list), path, "ignore_colours", "a list of colours")
    for colour in colours:
        _require_colour(path, colour)
    multilabel = content.get("multilabel", False)
    _require(isinstance(multilabel, bool), path, "multilabel", "true or false")
    return entries, ignore if isinstance(ignore, list) else [ignore], colours, multilabel


def _only(path: Path, table: dict[str, Any], allowed: Sequence[str]) -> None:
    unknown = [key for key in table if key not in allowed]
    if unknown:
        raise InputError(f"{path}: unknown entry {unknown[0]!r}; there are {', '.join(allowed)}")


def _require_colour(path: Path, colour: object) -> None:
    right = isinstance(colour, list) and len(colour) == 3 and all(map(_is_level, colour))
    _require(right, path, f"colour {colour!r}", "three numbers from 0 to 255, [R, G, B]")


def _is_level(value: object) -> bool:
    return type(value) is int and 0 <= value <= 255  # True is an int too


def _require(holds: bool, path: Path, what: str, expected: str) -> None:
    if not holds:
        raise InputError(f"{path}: {what} must be {expected}")


def _lists(root: Path) -> dict[str, Path]:
    beside = (root / f"{name}.txt" for name in _BESIDE)
    found = [path for path in (*files_in(root / "splits", ".txt"), *beside) if path.is_file()]
    return {composed(path.stem): path for path in reversed(found)}


def _subfolders(images: Path) -> list[str]:
    if not images.is_dir():
        raise InputError(f"{images}: no such folder; the pictures are expected there")
    folders = (path.name for path in images.iterdir() if path.is_dir())
    return sorted(composed(name) for name in folders if not name.startswith("."))


def _listed(path: Path, pairs: Sequence[Pair], images: Path, labels: Path) -> list[Pair]:
    """The pairs that a list names, in its order; one that is not there stays, to be found."""
    by_name = {pair.name: pair for pair in pairs}
    chosen = []
    for _, line in read_lines(path):
        name = composed(line.replace("\\", "/"))
        if Path(name).suffix.lower() in (*SUFFIXES, NPY):
            name = Path(name).with_suffix("").as_posix()
        missing = Pair(name, images / f"{name}.jpg", labels / f"{name}.png")
        chosen.append(by_name.get(name, missing))
    if not chosen:
        raise InputError(f"{path}: names no picture")
    return chosen
