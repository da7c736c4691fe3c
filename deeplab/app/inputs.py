"""What is opened on the page: photographs, and results of networks for them.

A photograph of more pixels than WORKING is reduced to as many, so that the page stays quick; what
is downloaded, and a network's result, is of the reduced size then.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from deeplab import photographs
from deeplab.data.annotations import (
    UNSURE_INDEX,
    AnnotationError,
    read_colours,
    read_indices,
    read_probabilities,
)
from deeplab.data.images import SUFFIXES, load_picture, read_image
from deeplab.data.outputs import full_palette
from deeplab.errors import InputError

WORKING = 1_000_000  # pixels
VALUES = 64_000_000  # probabilities of a result, at most: 256 MB as float32
UNPACKED = 4 * VALUES + 1_000_000  # bytes of the arrays of an .npz
ARRAYS = (".npy", ".npz")
LABEL_MAP = "a label map is a PNG with a value or a colour for each class, of two classes or more"
LONGEST_NAME = 100  # characters of a sent file's name that are kept, its end


@dataclass(frozen=True, eq=False)
class Photograph:
    """An opened photograph.

    Attributes:
        name: of its file, without folder.
        image: RGB, uint8 `[H, W, 3]`.
        marks: uint8 `[H, W]`, scribbles that come with it, 255 where there are none.
        classes: names of the classes that the scribbles have; none where there are none.
        colours: RGB of these.
        notes: what reading changed.
    """

    name: str
    image: np.ndarray
    marks: np.ndarray
    classes: Sequence[str] = ()
    colours: Sequence[Sequence[int]] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Result:
    """A network's result for a photograph: probabilities float32 `[C, H, W]`, or marks uint8
    `[H, W]`, 255 where a pixel has no class; names and colours of its classes, if it has any."""

    probabilities: np.ndarray | None
    marks: np.ndarray | None
    names: Sequence[str] | None = None
    colours: Sequence[Sequence[int]] | None = None
    notes: Sequence[str] = ()

    @property
    def count(self) -> int:
        """How many classes it has."""
        if self.probabilities is not None:
            return len(self.probabilities)
        assert self.marks is not None
        return int(self.marks[self.marks != UNSURE_INDEX].max()) + 1


def open_photograph(
    name: str, max_megapixels: float | None, content: bytes | None = None
) -> Photograph:
    """A photograph from a file, or from its content.

    Raises InputError as `read_image` does.
    """
    shown = _shown(name) or "photograph"
    image, conversions = read_image(name if content is None else shown, max_megapixels, content)
    notes = [conversion.text for conversion in conversions]
    height, width = image.shape[:2]
    if height * width > WORKING:
        scale = (WORKING / (height * width)) ** 0.5
        size = _side(width * scale), _side(height * scale)
        image = np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
        notes.append(f"reduced from {width} x {height} to {size[0]} x {size[1]} pixels")
    return Photograph(shown, image, _unmarked(image), notes=notes)


def open_example(name: str) -> Photograph:
    """One of the photographs that come with the package. InputError for another name."""
    if name not in photographs.EXAMPLES:
        examples = ", ".join(photographs.EXAMPLES)
        raise InputError(f"example must be one of {examples}, not {name!r:.80}")
    image, annotation, classes = photographs.example(name)
    marks = np.where(annotation.labels == 0, UNSURE_INDEX, annotation.labels - 1)
    assert annotation.colours is not None  # which read_colours has
    colours = annotation.colours.tolist()
    return Photograph(f"{name}.jpg", image, marks.astype(np.uint8), classes, colours)


def open_result(
    name: str, content: bytes, size: tuple[int, int], max_megapixels: float | None = None
) -> Result:
    """A network's result for a photograph of `size` (height, width): softmax or label map.

    max_megapixels: label maps of more pixels (10^6) are refused before they are decoded.

    Raises InputError: as `read_probabilities`, `read_indices` and `read_colours`, for another kind
    of file, and for more values than fit.
    """
    shown = _shown(name)
    suffix = PurePath(shown).suffix.lower()
    if suffix not in (*ARRAYS, *SUFFIXES):
        raise InputError(
            f"{shown or 'the result'}: must be probabilities (.npz, .npy) or a label map (.png)"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"result{suffix}"  # of the name it was sent by only the suffix
        path.write_bytes(content)
        try:
            if suffix in ARRAYS:
                return _probabilities(path, size)
            return _label_map(path, size, max_megapixels)
        except InputError as error:
            raise InputError(str(error).replace(str(path), shown)) from error


def _probabilities(path: Path, size: tuple[int, int]) -> Result:
    if path.suffix == ".npz":
        _check_unpacked(path)
    read = read_probabilities(path, size)
    if read.values.size > VALUES:
        raise InputError(
            f"{path}: {len(read.values)} classes on {size[1]} x {size[0]} pixels are "
            f"{read.values.size / 1e6:.0f} million values, at most {VALUES / 1e6:.0f} million are "
            "possible; make photograph and result smaller"
        )
    colours = None if read.colours is None else read.colours.tolist()
    return Result(read.values, None, read.names, colours, read.notes)


def _label_map(path: Path, size: tuple[int, int], max_megapixels: float | None) -> Result:
    """Class indices where a picture has a value a pixel; colours where it is RGB, or a mask of 0
    and 255, which `deeplab refine` reads by colours too."""
    picture, _ = load_picture(path, max_megapixels)
    valued = picture.mode in ("L", "P") and set(np.unique(np.asarray(picture))) != {0, 255}
    try:
        if valued:
            read = read_indices(path, size, max_megapixels=max_megapixels)
        else:
            read = read_colours(path, size, max_megapixels)
    except AnnotationError as error:
        raise InputError(f"{error.what}; {LABEL_MAP}") from error
    marks = np.where(read.labels == 0, UNSURE_INDEX, read.labels - 1).astype(np.uint8)
    # How the command line mends what is noted would come next.
    notes = [note.partition("; ")[0] for note in read.notes]
    if read.colours is not None:
        return Result(None, marks, read.names, read.colours.tolist(), notes)
    flat = picture.getpalette("RGB") if picture.mode == "P" else None
    if flat is None:
        return Result(None, marks, notes=notes)
    colours = full_palette(np.reshape(flat, (-1, 3)))[: read.num_labels].tolist()
    return Result(None, marks, None, colours, notes)


def _check_unpacked(path: Path) -> None:
    """InputError for an .npz that says it holds more than can be used."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except Exception:  # damaged archives raise whatever their parser meets
        return  # reading it says which
    if size > UNPACKED:
        raise InputError(
            f"{path}: unpacked it has {size / 1e6:.0f} MB, at most {UNPACKED / 1e6:.0f} are "
            "possible; make photograph and result smaller"
        )


def _shown(name: str) -> str:
    """What a file is called on the page and in errors: its name, or the end of a long one."""
    return PurePath(name).name[-LONGEST_NAME:]


def _side(length: float) -> int:
    """Of a reduced photograph, in pixels: a thin one of one pixel is no longer than WORKING."""
    return min(max(1, int(length)), WORKING)


def _unmarked(image: np.ndarray) -> np.ndarray:
    return np.full(image.shape[:2], UNSURE_INDEX, np.uint8)
