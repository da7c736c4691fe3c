"""YOLO's segmentation: a text file for each picture, a class and an outline on each line.

    0 0.1125 0.25 0.3 0.25 0.3 0.5          class, then x and y as shares of width and height

SRC is the data.yaml, or the folder that holds it, or a folder with classes.txt (a name a line).
Labels lie in labels/ as the pictures do in images/, under the same names. Splits are those of
data.yaml, or the folders in images/. A picture without a file of labels shows nothing marked; lines
of four numbers are boxes and left out. data.yaml needs PyYAML.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from deeplab.data.datasets.base import composed, files_by_name, files_in, read_lines, read_text
from deeplab.data.images import SUFFIXES
from deeplab.data.imports.reading import outline, split_name, understood
from deeplab.data.imports.shapes import BOXES, Annotations, Class, Picture, Polygon, Shape
from deeplab.errors import InputError


def read(source: Path, images: Path | None) -> Annotations:
    """All pictures that data.yaml names, or that lie in images/."""
    if images is not None:
        raise InputError("--images: YOLO's pictures lie in images/ beside labels/; leave it out")
    root = source.parent if source.is_file() else source
    described = _description(source)
    if described is None:
        names = [name for _, name in read_lines(root / "classes.txt")]
        folders = {"": [root / "images"]}
    else:
        content = _yaml(described)
        with understood(described, "YOLO's data.yaml"):
            names = _names(content["names"])
            folders = _folders(described, content)
    dropped: Counter[str] = Counter()
    pictures = []
    for split, places in folders.items():
        for file in (file for place in places for file in _files(place)):
            labels = _labels(file)
            shapes = _shapes(labels, names, dropped) if labels.is_file() else ()
            own = split or _split(file, root / "images")
            pictures.append(Picture(file.name, (file.parent,), labels, shapes, None, own))
    return Annotations([Class(name) for name in names], pictures, dropped=dropped)


def _description(source: Path) -> Path | None:
    """The YAML file; None where classes.txt takes its place."""
    if source.is_file():
        return source
    files = files_in(source, ".yaml") + files_in(source, ".yml")
    if not files and (source / "classes.txt").is_file():
        return None
    if len(files) != 1:
        raise InputError(
            f"{source}: {len(files)} YAML files; expected data.yaml alone, or classes.txt"
            + ("; name the right one as SRC" if files else "")
        )
    return files[0]


def _yaml(path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise InputError(
            f"{path}: PyYAML is needed to read it; install it with pip install "
            "'deeplab-triton[yolo]', or put the class names into classes.txt and move it away"
        ) from error
    try:
        return yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not valid YAML ({error}); export it again") from error


def _names(names: Any) -> list[str]:
    """Class names of a list, or of a mapping from 0, 1, ..."""
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise ValueError(f"names of the classes {sorted(names)}, expected 0, 1, ...")
        return [str(names[index]) for index in range(len(names))]
    return [str(name) for name in list(names)]


def _folders(path: Path, content: dict[str, Any]) -> dict[str, list[Path]]:
    """The folders, or lists of pictures, of each split."""
    base = path.parent / str(content.get("path") or "")
    bases = [base, path.parent] if base.is_dir() else [path.parent]
    found: dict[str, list[Path]] = {}
    for key in ("train", "val", "test"):
        entry = content.get(key)
        for one in entry if isinstance(entry, list) else [entry] if entry else []:
            # Roboflow writes ../train/images for what lies beside the file.
            texts = (str(one), str(one).removeprefix("../"))
            places = [place / text for place in bases for text in texts]
            there = next((place for place in places if place.exists()), None)
            if there is None:
                raise InputError(f"{path}: {key}: {one}: no such folder or list of pictures")
            found.setdefault(key, []).append(there)
    if not found:
        raise InputError(f"{path}: names no pictures; expected train: or val: with a folder")
    return found


def _files(place: Path) -> list[Path]:
    """The pictures of a folder, or of a text file that lists them."""
    if place.is_file():
        return [place.parent / line for _, line in read_lines(place)]
    pictures = list(files_by_name(place, SUFFIXES).values())
    _check_labels(place, pictures)
    return pictures


def _check_labels(place: Path, pictures: list[Path]) -> None:
    """Refuse labels without a picture; what labelImg calls classes.txt lies among them too."""
    folder = _labels(place / "any.jpg").parent
    if folder == place or not folder.is_dir():
        return
    named = {composed(file.relative_to(place).with_suffix("").as_posix()) for file in pictures}
    labels = files_by_name(folder, (".txt",))
    if lost := [path for name, path in labels.items() if name not in named | {"classes"}]:
        raise InputError(
            f"{lost[0]}: no picture in {place} has this name ({len(lost)} of {len(labels)} files)"
        )


def _labels(picture: Path) -> Path:
    """Where the labels of a picture lie: in labels/ for its last images/, or beside it."""
    parts = list(picture.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _split(file: Path, images: Path) -> str:
    """The split of a picture whose folder in images/ is called like one."""
    inside = file.relative_to(images).parts if file.is_relative_to(images) else ()
    return split_name(inside[0]) if len(inside) > 1 else ""


def _shapes(path: Path, names: list[str], dropped: Counter[str]) -> tuple[Shape, ...]:
    shapes = []
    for number, line in read_lines(path):
        first, *numbers = line.split()
        if not first.isdecimal() or int(first) >= len(names):
            raise InputError(
                f"{path}: line {number}: class {first} must be 0 to {len(names) - 1}, an index of "
                "the class names"
            )
        if len(numbers) == 4:
            dropped[BOXES] += 1
            continue
        with understood(path, f"YOLO's labels (line {number})"):
            outlined = Polygon((outline([float(one) for one in numbers]),), relative=True)
            shapes.append(Shape(f"line {number}", names[int(first)], outlined))
    return tuple(shapes)
