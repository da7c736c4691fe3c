"""Label maps from files, and their values as classes.

A label map stores values; a data set gives classes. Between them is a table of 256 entries,

    class = table[value],    0 <= class < C,    255 = ignored,    -1 = not to be there

so that a set with another ignore label (CamVid's 11), other ids (Cityscapes) or another order gives
the same kind of labels as VOC.

Pixel values are what counts: the indices of a palette PNG, the grey levels of a grey one. Lossy
files are refused, since JPEG invents values at every edge. Grey PNGs of 2 and 4 bits hold small
indices too, which decoders stretch to 0-255; that is taken back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deeplab.data.datasets.sbd import read_segmentation
from deeplab.data.images import load_picture
from deeplab.errors import InputError

IGNORE = 255
"""The label of pixels that count neither in a loss nor in a score, in every data set."""


class UnknownLabels(InputError):
    """A label map holds values that are neither a class nor ignored.

    `labels` is the map as it would be with those pixels ignored, `unknown` how many they are.
    """

    def __init__(
        self, message: str, labels: npt.NDArray[np.uint8] | None = None, unknown: int = 0
    ) -> None:
        super().__init__(message)
        self.labels = labels
        self.unknown = unknown


@dataclass(frozen=True)
class LabelReader:
    """How label files become classes: `table` int16 `[256]` by value, `colours` for RGB files."""

    table: npt.NDArray[np.int16]
    colours: Mapping[tuple[int, int, int], int] = field(default_factory=dict)

    def stored_values(self, classes: int) -> npt.NDArray[np.uint8]:
        """The value of each class in a label map, the first where it has several: uint8 `[C]`."""
        return np.array([np.flatnonzero(self.table == c)[0] for c in range(classes)], np.uint8)

    def read(self, path: Path) -> npt.NDArray[np.uint8]:
        """The classes in a label map; InputError, UnknownLabels as `SegmentationData.labels`."""
        stored = read_values(path, allow_colours=bool(self.colours))
        if stored.ndim == 3:
            return read_by_colour(path, stored, self.colours)
        classes = self.table[stored]
        if classes.min() >= 0:
            return classes.astype(np.uint8)
        unknown, counts = np.unique(stored[classes < 0], return_counts=True)
        row, column = np.argwhere(stored == unknown[0])[0]
        others = f", also {_numbers(unknown[1:].tolist())}" if len(unknown) > 1 else ""
        raise UnknownLabels(
            f"{path}: label {unknown[0]} in {counts[0]} {'pixel' if counts[0] == 1 else 'pixels'}, "
            f"first at row {row}, column {column}{others}; expected "
            f"{_numbers(np.flatnonzero(self.table >= 0).tolist())}",
            np.where(classes < 0, IGNORE, classes).astype(np.uint8),
            int(counts.sum()),
        )


def label_table(
    classes: int | Mapping[int, int], ignore: Iterable[int] = ()
) -> npt.NDArray[np.int16]:
    """The table from stored values to classes: a number of classes means that value = class.

    `ignore` has the values that count for nothing, 255 always among them unless it is a class.
    """
    table = np.full(256, -1, np.int16)
    table[[IGNORE, *ignore]] = IGNORE
    if isinstance(classes, int):
        classes = {value: value for value in range(classes)}
    table[list(classes)] = list(classes.values())
    return table


def read_values(path: Path, allow_colours: bool = False) -> npt.NDArray[np.uint8]:
    """The stored values of a label map, uint8 `[H, W]`; of an RGB one `[H, W, 3]` if allowed.

    A file that ends in .mat is one of SBD's.

    Raises InputError: not readable, JPEG, colours where none are allowed, values above 255,
    transparency, floating point.
    """
    if path.suffix.lower() == ".mat":
        return read_segmentation(path)
    picture, _ = load_picture(path)
    with path.open("rb") as file:
        header = file.read(26)
    if header.startswith(b"\xff\xd8"):
        raise InputError(
            f"{path}: a label map as JPEG has lost its values; export the labels again as PNG"
        )
    if picture.mode in ("P", "L"):
        return np.asarray(picture, np.uint8) // _stretched(header)
    if picture.mode == "1":
        return np.asarray(picture).astype(np.uint8)
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 255:
            raise InputError(
                f"{path}: values from {values.min()} to {values.max()}; class indices are 0 to "
                "254, and 255 means ignored: map the values to that range"
            )
        return values.astype(np.uint8)
    opaque = picture.mode == "RGBA" and bool((np.asarray(picture)[..., 3] == 255).all())
    if picture.mode == "RGB" or opaque:
        if allow_colours:
            return np.asarray(picture.convert("RGB"))
        raise InputError(
            f"{path}: a picture in colours, but class indices are expected (8-bit grey, or a "
            "palette); save indices, or for a data set of your own give the classes their colours "
            "in classes.toml"
        )
    raise InputError(
        f"{path}: pixels of type {picture.mode}, but class indices are expected; save the labels "
        "as 8-bit grey PNG"
    )


def read_by_colour(
    path: Path, rgb: npt.NDArray[np.uint8], colours: Mapping[tuple[int, int, int], int]
) -> npt.NDArray[np.uint8]:
    """Classes by colour, uint8 `[H, W]`, from `[H, W, 3]`; UnknownLabels for another colour."""
    keys = np.array([_code(np.array(colour)) for colour in colours])
    order = np.argsort(keys)
    keys, values = keys[order], np.array(list(colours.values()), np.uint8)[order]
    codes = _code(rgb.astype(np.int64))
    place = np.searchsorted(keys, codes).clip(max=len(keys) - 1)
    known = keys[place] == codes
    labels = np.where(known, values[place], IGNORE).astype(np.uint8)
    if known.all():
        return labels
    row, column = np.argwhere(~known)[0]
    others = len(np.unique(codes[~known])) - 1
    more = f" (and so on, {others + 1} colours in all)" if others else ""
    raise UnknownLabels(
        f"{path}: colour {tuple(rgb[row, column].tolist())} at row {row}, column {column} belongs "
        f"to no class{more}; add it to the class file, and draw without soft edges",
        labels,
        int((~known).sum()),
    )


def _code(rgb: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    return (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]


def _stretched(header: bytes) -> int:
    """By what a decoder multiplies the values of a grey PNG of fewer than 8 bits."""
    if not header.startswith(b"\x89PNG") or len(header) < 26:
        return 1
    depth, colour_type = header[24], header[25]
    return 255 // (2**depth - 1) if colour_type == 0 and depth in (2, 4) else 1


def _numbers(values: Sequence[int]) -> str:
    """1, 2, 3, 7 as '1-3, 7'."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
