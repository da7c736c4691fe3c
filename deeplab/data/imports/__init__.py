"""Annotations of other tools as a folder that `--data folder` reads.

    report = import_annotations("labelme", "marked", "mine", Settings(unlabelled="background"))

Each format has a module whose `read(source, images)` gives `Annotations` (shapes.py); drawing.py
draws them, splitting.py makes splits, writing.py writes the folder, whole or not at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deeplab.data.datasets.counts import listed
from deeplab.data.datasets.folder import read_class_file
from deeplab.data.datasets.labels import IGNORE
from deeplab.data.images import SUFFIXES
from deeplab.data.imports import (
    ade20k,
    coco,
    cvat,
    labelme,
    labelstudio,
    supervisely,
    voc,
    yolo,
)
from deeplab.data.imports.drawing import ORDERS, Drawn, Values, draw
from deeplab.data.imports.reading import upright_size
from deeplab.data.imports.shapes import Annotations, Class, Picture
from deeplab.data.imports.splitting import split_pictures
from deeplab.data.imports.writing import NewFolder, palette_of
from deeplab.errors import InputError

__all__ = ["FORMATS", "ImportReport", "Settings", "import_annotations"]

FORMATS: dict[str, Callable[[Path, Path | None], Annotations]] = {
    "coco": coco.read,
    "labelme": labelme.read,
    "yolo": yolo.read,
    "voc": voc.read,
    "cvat": cvat.read,
    "supervisely": supervisely.read,
    "ade20k": ade20k.read,
    "labelstudio": labelstudio.read,
}
"""What reads each format; the modules' docstrings say how its files have to lie."""

IGNORED = "ignore"
"""What `unlabelled` and `crowds` are called where they are to be ignored."""


@dataclass(frozen=True)
class Settings:
    """How annotations become label maps.

    Attributes:
        images: the folder of the pictures, where they do not lie as the format has them.
        classes: a class file as data sets of one's own have it: which classes, in which order.
        ignore: labels whose areas become 255.
        unlabelled: what areas without a shape are: "ignore" (255), or the name of their class,
            which becomes the first where the annotations have none of that name.
        crowds: what crowds are: "ignore" (255), or "unlabelled", left out.
        order: which shape covers which: see `drawing`.
        split: the share of pictures for training; None keeps the splits that there are.
        group: a pattern whose matches in file names keep pictures in one split.
        seed: of the lot that decides on the split.
        link: whether pictures are symbolic links instead of copies.
    """

    images: Path | None = None
    classes: Path | None = None
    ignore: tuple[str, ...] = ()
    unlabelled: str = IGNORED
    crowds: str = IGNORED
    order: str = "largest"
    split: float | None = None
    group: str | None = None
    seed: int = 0
    link: bool = False


@dataclass
class ImportReport:
    """What was imported.

    Attributes:
        classes: names, in the order of their values.
        pictures: how many in each split; "" for none.
        shapes, images: how many shapes of each label were drawn, and in how many pictures; ignored
            labels too. Of label maps, which have no shapes, the pictures of each class.
        without: the pictures in which nothing is marked.
        dropped: how many shapes were left out, by what they are.
        cut: how many shapes reach beyond their picture and were cut.
        notes: what else whoever annotated should know.
    """

    classes: tuple[str, ...]
    pictures: Counter[str] = field(default_factory=Counter)
    shapes: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    without: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, picture: Picture, drawn: Drawn) -> None:
        """Count one picture."""
        present = set(drawn.shapes)
        if picture.label_map is not None:
            shown = np.unique(drawn.labels)
            present |= {self.classes[value] for value in shown[shown < len(self.classes)]}
        self.pictures[picture.split] += 1
        self.shapes += drawn.shapes
        self.images.update(present)
        self.dropped += drawn.dropped
        self.cut += drawn.cut
        if not present:
            self.without.append(picture.file)


def import_annotations(
    kind: str,
    source: str | Path,
    out: str | Path,
    settings: Settings | None = None,
    advance: Callable[[int], object] = lambda total: None,
) -> ImportReport:
    """Write the annotations at `source` and their pictures to the new folder `out`.

    advance: called after each picture with the number of all.

    Raises InputError: an unknown format or setting, files that are missing, damaged or of another
    format, shapes outside their picture, labels without a class, a folder that exists or cannot be
    written. Then `out` is not there.
    """
    settings = settings or Settings()
    source, out = Path(source), Path(out)
    _check(kind, source, settings)
    folder = NewFolder(out)
    found = _read(kind, source, settings.images)
    classes, report = _classes(found, settings)
    pictures = found.pictures
    if settings.split is not None:
        pictures = split_pictures(pictures, settings.split, settings.group, settings.seed)
    files = _located(pictures)
    report.notes += _unannotated(files)
    values = _values(found, classes, settings)
    with folder.being_written():
        folder.write_classes(classes)
        palette = palette_of(classes)
        names = folder.names(files, [picture.split for picture in pictures])
        for picture, file, name in zip(pictures, files, names, strict=True):
            drawn = draw(picture, _size(picture, file), values, settings.order)
            folder.write_picture(name, file, settings.link)
            folder.write_labels(name, drawn.labels, palette)
            report.add(picture, drawn)
            advance(len(pictures))
    return report


def _check(kind: str, source: Path, settings: Settings) -> None:
    if kind not in FORMATS:
        raise InputError(f"no format {kind!r}; there are {', '.join(FORMATS)}")
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    if settings.order not in ORDERS:
        raise InputError(f"--order must be {' or '.join(ORDERS)}, not {settings.order}")
    if settings.crowds not in (IGNORED, "unlabelled"):
        raise InputError(f"--crowds must be ignore or unlabelled, not {settings.crowds}")
    if settings.group is not None and settings.split is None:
        raise InputError("--group only counts with --split; give both")
    if settings.images is not None and not settings.images.is_dir():
        raise InputError(f"--images {settings.images}: no such folder")


def _read(kind: str, source: Path, images: Path | None) -> Annotations:
    try:
        found = FORMATS[kind](source, images)
    except OSError as error:
        raise InputError(
            f"{error.filename or source}: cannot be read ({error.strerror or error})"
        ) from error
    if not found.pictures:
        raise InputError(f"{source}: names no picture")
    return found


def _classes(found: Annotations, settings: Settings) -> tuple[list[Class], ImportReport]:
    """The classes of the new set, in the order of their values, with the report that begins."""
    ignored = {*found.ignored, *settings.ignore}
    declared = found.classes
    if settings.classes is not None:
        described = read_class_file(settings.classes)
        colours = (tuple(colour) for colour in described.palette.tolist())
        declared = [Class(*one) for one in zip(described.names, colours, strict=True)]
    classes = [one for one in declared if one.name not in ignored]
    known = {one.name for one in (*found.classes, *declared)} | set(found.ignored)
    known |= {shape.label for picture in found.pictures for shape in picture.shapes}
    for name in settings.ignore:
        if name not in known:
            raise InputError(f"--ignore {name}: no class of that name; there are {_list(known)}")
    if settings.unlabelled in ignored:
        raise InputError(f"--unlabelled {settings.unlabelled}: is ignored; say --unlabelled ignore")
    if settings.unlabelled != IGNORED and settings.unlabelled not in {c.name for c in classes}:
        classes.insert(0, Class(settings.unlabelled, (0, 0, 0)))
    if not all(one.name.strip() for one in classes):
        raise InputError("a class without a name; give it one where the pictures were annotated")
    if len({one.name for one in classes}) < len(classes):
        raise InputError(
            f"two classes are called the same, of {_list(one.name for one in classes)}"
        )
    if not 1 <= len(classes) <= IGNORE:
        raise InputError(f"{len(classes)} classes; expected 1 to {IGNORE}")
    report = ImportReport(tuple(one.name for one in classes))
    report.dropped += found.dropped
    given = [one.colour for one in classes if one.colour is not None]
    if len(set(given)) < len(given):
        report.notes.append("some classes share a colour; all but one of them got others")
    return classes, report


def _values(found: Annotations, classes: list[Class], settings: Settings) -> Values:
    """What becomes which value."""
    labels = {one.name: value for value, one in enumerate(classes)}
    labels |= dict.fromkeys((*found.ignored, *settings.ignore), IGNORE)
    own = [one.name for one in found.classes]
    unknown = [name for name in own if name not in labels]
    if unknown and any(picture.label_map is not None for picture in found.pictures):
        raise InputError(
            f"{settings.classes}: has no class {unknown[0]!r}, which the label maps have; add it, "
            "or --ignore it"
        )
    values = np.array([labels.get(name, IGNORE) for name in own], np.uint8)
    unlabelled = labels.get(settings.unlabelled, IGNORE)
    return Values(labels, values, unlabelled, settings.crowds == IGNORED)


def _located(pictures: list[Picture]) -> list[Path]:
    """The file of each picture; InputError where one is missing, or annotated twice."""
    files: list[Path] = []
    missing: list[Picture] = []
    seen: dict[Path, Picture] = {}
    for picture in pictures:
        name = Path(picture.path)
        places = (folder / one for one in (name, name.name) for folder in picture.folders)
        file = next((place for place in places if _is_file(place)), None)
        if file is None:
            missing.append(picture)
            continue
        if file.suffix.lower() not in SUFFIXES or file.name.startswith("."):
            raise InputError(f"{file}: must be a picture ({', '.join(SUFFIXES)}), and not hidden")
        first = seen.setdefault(file.resolve(), picture)
        if first is not picture:
            raise InputError(f"{file}: annotated twice, in {first.source} and {picture.source}")
        files.append(file)
    if missing:
        first, folders = missing[0], ", ".join(map(str, missing[0].folders))
        raise InputError(
            f"{first.source}: the picture {first.file} is not there ({len(missing)} of "
            f"{len(pictures)} are missing); looked in {folders}; say where with --images DIR"
        )
    return files


def _unannotated(files: list[Path]) -> list[str]:
    """What to say of pictures that lie beside those of the annotations and are not among them."""
    used = {file.resolve() for file in files}
    beside = (path for folder in {file.parent for file in files} for path in folder.iterdir())
    pictures = (p for p in beside if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    left = [path.name for path in pictures if path.resolve() not in used]
    if not left:
        return []
    what = "picture lies" if len(left) == 1 else "pictures lie"
    return [f"{len(left)} {what} beside the others without annotations: {_list(left)}"]


def _size(picture: Picture, file: Path) -> tuple[int, int]:
    """(height, width) of a picture; InputError where it is annotated as another."""
    size = upright_size(file)
    if picture.size is not None and picture.size != size:
        (rows, columns), (height, width) = picture.size, size
        turned = "; is it turned (EXIF orientation)?" if picture.size == size[::-1] else ""
        raise InputError(
            f"{picture.source}: {picture.file} is annotated as {columns} x {rows} pixels, but "
            f"{file} has {width} x {height}{turned}"
        )
    return size


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as of a name that is too long
        return False


def _list(names: Iterable[str]) -> str:
    return listed(sorted(names))
