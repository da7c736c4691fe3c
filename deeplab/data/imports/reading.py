"""What several formats share: JSON and XML from outside, outlines, embedded masks, splits."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import ExifTags, Image

from deeplab.data.datasets.base import read_text
from deeplab.data.imports.shapes import Mask, Points
from deeplab.errors import InputError

SPLITS = ("train", "val", "test")
_SPLIT = re.compile(r"(?:(train)(?:ing)?|(val)(?:id(?:ation)?)?|(test)(?:ing)?)[-_]?\d*")
_HEX = re.compile(r"#?([0-9a-fA-F]{6})(?:[0-9a-fA-F]{2})?")
_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


@contextmanager
def understood(path: Path, what: str) -> Iterator[None]:
    """Whatever goes wrong in taking a file's content apart is an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except _DAMAGE as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: not {what}, or damaged ({reason}); export it again") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file; InputError where it is none."""
    try:
        return json.loads(read_text(path))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); export it again") from error


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file; InputError where it is none, or declares a document type.

    A document type can define entities that swell to gigabytes or name other files, and no tool of
    annotations writes one.
    """
    text = path.read_bytes() if path.is_file() else b""
    if not text:
        raise InputError(f"{path}: no such file, or an empty one")
    parser = ElementTree.XMLParser(target=_NoDocumentType(path))
    try:
        parser.feed(text)
        return parser.close()
    except (ElementTree.ParseError, LookupError) as error:  # LookupError: an unknown encoding
        raise InputError(f"{path}: not valid XML ({error}); export it again") from error


class _NoDocumentType(ElementTree.TreeBuilder):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise InputError(f"{self.path}: declares a document type, which is refused; export again")


def outline(numbers: Any) -> Points:
    """An outline float64 `[N, 2]` from x, y, x, y, ... or (x, y) pairs; ValueError for others."""
    points = np.asarray(numbers, np.float64).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise ValueError("a coordinate that is no finite number")
    return points


def rectangle(x0: float, y0: float, x1: float, y1: float, degrees: float = 0.0) -> Points:
    """The outline of a rectangle between two corners, turned clockwise about its middle."""
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64)
    return _turned(corners, ((x0 + x1) / 2, (y0 + y1) / 2), degrees)


def ellipse(x: float, y: float, rx: float, ry: float, degrees: float = 0.0) -> Points:
    """The outline of an ellipse about (x, y), turned clockwise, with a corner each pixel or so."""
    if not 0 <= max(rx, ry) < 1e6:
        raise ValueError("an ellipse without a sensible radius")
    angles = np.linspace(0, 2 * np.pi, max(32, math.ceil(2 * np.pi * max(rx, ry))), endpoint=False)
    points = np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)
    return _turned(points, (x, y), degrees)


def _turned(points: Points, centre: tuple[float, float], degrees: float) -> Points:
    if not degrees:
        return points
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    away = points - centre
    return away @ np.array([[cosine, sine], [-sine, cosine]]) + np.array(centre)


def read_mask(png: bytes, height: int, width: int) -> Mask:
    """A mask from a picture file within another file, bool `[h, w]`.

    Opaque pixels count where it has transparency, those above 0 otherwise. ValueError where it is
    no picture, or a larger one than the picture that it marks, of (height, width).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(png)) as image:
                if image.height > height or image.width > width:
                    raise ValueError(f"a mask of {image.width} x {image.height} pixels")
                if image.has_transparency_data:
                    return np.asarray(image.convert("RGBA"))[..., 3] > 0
                return np.asarray(image.convert("L")) > 0
    except ValueError:
        raise
    except Exception as error:  # decoders raise whatever their format's parser meets
        raise ValueError(f"a mask that cannot be decoded ({error})") from error


def decoded(text: str) -> bytes:
    """The bytes of a base64 text; ValueError where it is none."""
    return base64.b64decode(text, validate=True)


def colour_of(text: str | None) -> tuple[int, int, int] | None:
    """(R, G, B) of "#rrggbb", where it is one."""
    match = _HEX.fullmatch(text or "")
    if match is None:
        return None
    red, green, blue = bytes.fromhex(match[1])
    return red, green, blue


def split_name(text: str) -> str:
    """train, val or test for the names that tools have for them (train2017, valid, Validation);
    empty for others."""
    match = _SPLIT.fullmatch(text.lower())
    return next(filter(None, match.groups())) if match else ""


def splits_of_folders(paths: Sequence[Path], root: Path) -> list[str]:
    """The split of each file by the folder below `root` that it lies in; none unless all have one.

    The folder may be the first or the second: train/a.json, annotations/train/a.json.
    """
    found = []
    for path in paths:
        folders = path.relative_to(root).parts[:-1][:2]
        found.append(next(filter(None, map(split_name, folders)), ""))
    return found if all(found) else [""] * len(paths)


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture once it is turned as its EXIF says, from its header."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
                return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:  # decoders raise whatever their format's parser meets
        reason = str(error) or type(error).__name__
        raise InputError(f"{path}: no picture can be read there ({reason})") from error
