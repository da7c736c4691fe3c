"""What all data sets share: a picture and the classes of its pixels, for each name.

`SegmentationData` is what training, evaluation and the check see; `PairedFiles` reads both from
files. The functions below find such pairs.
"""

from __future__ import annotations

import os
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deeplab.data.bands import read_picture
from deeplab.data.conversions import Conversion
from deeplab.data.datasets.labels import LabelReader
from deeplab.data.images import SUFFIXES
from deeplab.errors import InputError

LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".pgm", ".jpg", ".jpeg")
"""Files that count as label maps in a folder; JPEG ones are found, so that they can be refused."""

Image = npt.NDArray[Any]
Labels = npt.NDArray[np.uint8]


class LabelledImages(Protocol):
    """Any data set of (image uint8 [H, W, 3] RGB, labels [H, W]); sizes may differ.

    For models of other bands images are uint8, uint16 or float32 [H, W, bands].
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


class LabelledPicture(tuple[Image, Labels]):
    """The pair (image, labels) that a data set gives, and what was converted in reading."""

    conversions: tuple[Conversion, ...]

    def __new__(
        cls, image: Image, labels: Labels, conversions: Iterable[Conversion] = ()
    ) -> LabelledPicture:
        pair = super().__new__(cls, (image, labels))
        pair.conversions = tuple(conversions)
        return pair

    def __getnewargs__(self) -> tuple[Image, Labels]:  # for pickle, which keeps attributes itself
        return self[0], self[1]


def conversions_of(pair: object) -> tuple[Conversion, ...]:
    """The conversions of the picture of a pair; none for a plain tuple."""
    return pair.conversions if isinstance(pair, LabelledPicture) else ()


class Recording:
    """A data set of pairs that remembers what was converted in the pictures it has given."""

    def __init__(self, dataset: LabelledImages) -> None:
        self.dataset = dataset
        self.conversions: set[Conversion] = set()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        pair = self.dataset[index]
        self.conversions.update(conversions_of(pair))
        return pair


class Remembering:
    """A data set of pairs that keeps the last one it has given, for who is told of its prediction.

    Attributes: `last`, the pair.
    """

    def __init__(self, dataset: LabelledImages) -> None:
        self.dataset = dataset
        self.last: tuple[Any, Any] = (None, None)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        self.last = self.dataset[index]
        return self.last


@dataclass(frozen=True)
class PredictionLayout:
    """Files of predictions: a PNG of 8 bits for each picture, packed into one file if wanted.

    Attributes:
        values: uint8 `[C]`, the pixel value of each class.
        folder: where the files lie below the one that a user names; {split} stands for the split's
            name.
        ending: what follows a picture's name in its file's.
        coloured: a palette PNG, in which each value has its class's colour; otherwise grey.
        archive: the packed file's name, which ends in .tgz or .zip; empty for none.
        flat: whether the archive holds the files alone, without the folders that they lie in.
    """

    values: npt.NDArray[np.uint8]
    folder: str = ""
    ending: str = ".png"
    coloured: bool = True
    archive: str = ""
    flat: bool = False


class SegmentationData(ABC):
    """Pictures with a class for every pixel: `len(data)`, `data[i]`, and what they mean.

    Attributes:
        name: of the set, and of the split after a space, for messages.
        names: of the pictures, without folder and suffix where that is enough to tell them apart.
        classes: names of the classes, in the order of their indices.
        palette: a colour for each class, uint8 `[C, 3]` RGB.
        unlabelled: why no labels can be read, in one line; empty where they can.
        server: how the set's own evaluation server takes predictions; None where there is none.
        multilabel: whether labels are masks `[C, H, W]` of 0, 1 and 255, so that several classes
            may hold at a pixel.
    """

    multilabel = False

    def __init__(
        self,
        name: str,
        names: Sequence[str],
        classes: Sequence[str],
        palette: npt.ArrayLike,
        unlabelled: str = "",
        server: PredictionLayout | None = None,
    ) -> None:
        self.name = name
        self.names = list(names)
        self.classes = tuple(classes)
        self.palette = np.array(palette, np.uint8)[: len(self.classes)]
        self.unlabelled, self.server = unlabelled, server

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Image, Labels]:
        """Image uint8 `[H, W, 3]` RGB, or of other bands, and labels uint8 `[H, W]`, 255 = ignored,
        or masks `[C, H, W]` where the set is `multilabel`.

        From files they are a `LabelledPicture`, which `conversions_of` asks.

        Raises InputError that names the file: missing, damaged, of two sizes, with unknown labels.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        (image, conversions), labels = self.picture(index), self.labels(index)
        if image.shape[:2] != labels.shape[-2:]:
            raise InputError(f"{self.file(index)}: {size_message(image, labels)}")
        return LabelledPicture(image, labels, conversions)

    def image(self, index: int) -> Image:
        """The picture alone; InputError as for `data[index]`."""
        return self.picture(index)[0]

    @abstractmethod
    def picture(self, index: int) -> tuple[Image, Sequence[Conversion]]:
        """The picture, and what was converted in reading it; InputError as for `data[index]`."""

    @abstractmethod
    def labels(self, index: int) -> Labels:
        """Its labels alone; InputError as for `data[index]`, UnknownLabels among them."""

    @abstractmethod
    def file(self, index: int) -> str:
        """What to call the picture in a message: its file, where it has one."""

    def files(self, index: int) -> tuple[Path, ...]:
        """The files that the picture and its labels need; none where they are generated."""
        return ()

    def unpaired(self) -> list[Path]:
        """Label maps that belong to no picture, where a folder is taken whole."""
        return []

    def stored_values(self) -> npt.NDArray[np.uint8]:
        """The value of each class in the set's own label maps: uint8 `[C]`."""
        return np.arange(len(self.classes), dtype=np.uint8)


def size_message(image: Image, labels: Labels) -> str:
    """The error for a picture and labels of different sizes."""
    (height, width), (rows, columns) = image.shape[:2], labels.shape[-2:]
    turned = (width, height) == (rows, columns)
    hint = "; is one of them turned (EXIF orientation)?" if turned else ""
    return (
        f"the picture has {width} x {height} pixels, its labels {columns} x {rows}; they must be "
        f"of one size{hint}"
    )


@dataclass(frozen=True)
class Pair:
    """A picture and its label map; neither need exist before it is read."""

    name: str
    image: Path
    labels: Path


class PairedFiles(SegmentationData):
    """A data set of files: a picture and a label map for each name.

    bands: of the pictures, as `deeplab.data.bands` reads them.
    """

    def __init__(
        self,
        name: str,
        pairs: Sequence[Pair],
        classes: Sequence[str],
        palette: npt.ArrayLike,
        reader: LabelReader,
        unpaired: Sequence[Path] = (),
        unlabelled: str = "",
        server: PredictionLayout | None = None,
        bands: int = 3,
    ) -> None:
        names = [pair.name for pair in pairs]
        super().__init__(name, names, classes, palette, unlabelled, server)
        self.pairs = list(pairs)
        self.reader = reader
        self.bands = bands
        self._unpaired = list(unpaired)

    def picture(self, index: int) -> tuple[Image, Sequence[Conversion]]:
        return read_picture(self.pairs[index].image, self.bands)

    def labels(self, index: int) -> Labels:
        if self.unlabelled:
            raise InputError(self.unlabelled)
        return self.reader.read(self.pairs[index].labels)

    def file(self, index: int) -> str:
        return str(self.pairs[index].image)

    def files(self, index: int) -> tuple[Path, ...]:
        return self.pairs[index].image, self.pairs[index].labels

    def unpaired(self) -> list[Path]:
        return self._unpaired

    def stored_values(self) -> npt.NDArray[np.uint8]:
        return self.reader.stored_values(len(self.classes))


def pair_folders(
    images: Path, labels: Path, suffixes: Sequence[str] = SUFFIXES
) -> tuple[list[Pair], list[Path]]:
    """Pairs of the files in two folders and their subfolders, by name; label maps left over.

    A picture without labels is paired with the PNG that should be there. InputError where the
    folder of pictures is missing or empty, or two pictures have one name.
    """
    found = files_by_name(images, suffixes)
    if not found:
        raise InputError(f"{images}: no picture there ({', '.join(suffixes)})")
    maps = files_by_name(labels, LABEL_SUFFIXES) if labels.is_dir() else {}
    pairs = [
        Pair(name, image, maps.get(name, labels / f"{name}.png")) for name, image in found.items()
    ]
    return pairs, [path for name, path in maps.items() if name not in found]


def missing_folder(folder: Path) -> str:
    """What `SegmentationData.unlabelled` says where the folder of labels is missing, else ""."""
    return "" if folder.is_dir() else f"{folder}: no such folder"


def files_by_name(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The files below a folder, sorted, under their path in it without suffix; none hidden.

    Links to files and folders are followed; one that leads nowhere is a file that is missing. Names
    are as `composed` gives them.

    Raises InputError where there is no such folder, or two files have one name; OSError where a
    folder in it cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found: dict[str, list[Path]] = {}
    for path in _files_below(folder, ()):
        if path.suffix.lower() in suffixes:
            name = composed(path.relative_to(folder).with_suffix("").as_posix())
            found.setdefault(name, []).append(path)
    if twice := [(path, first) for first, *others in found.values() for path in others]:
        path, first = twice[0]
        more = f" (and so on, {len(twice)} in all)" if len(twice) > 1 else ""
        raise InputError(
            f"{path}: has the name of {first.name}{more}; one picture and one label map belong to "
            "a name, so rename or remove one"
        )
    return {name: first for name, (first,) in found.items()}


def files_in(folder: Path, suffix: str) -> list[Path]:
    """The files with a suffix in a folder itself, sorted, none hidden; none where it is missing."""
    if not folder.is_dir():
        return []
    paths = (path for path in folder.iterdir() if path.suffix == suffix)
    return sorted(path for path in paths if not path.name.startswith("."))


def composed(name: str) -> str:
    """A name in Unicode's composed form: some systems store an accent as a letter of its own."""
    return unicodedata.normalize("NFC", name)


def _files_below(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """The files in a folder and its folders, `above` being those that it lies in."""
    here = folder.resolve()
    if here in above:  # a link that leads back up
        return
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in sorted(visible, key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _files_below(folder / entry.name, (*above, here))
        else:
            yield folder / entry.name


def read_text(path: Path) -> str:
    """A text file in UTF-8; InputError where it is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file in UTF-8"
        raise InputError(f"{path}: cannot be read ({reason})") from error


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not empty, without white space around them, numbered."""
    lines = (line.strip() for line in read_text(path).splitlines())
    return [(number, line) for number, line in enumerate(lines, 1) if line]


def unknown_split(what: object, split: str, splits: Iterable[str]) -> InputError:
    """The error for a split that is not there."""
    known = ", ".join(splits)
    there = f"there are {known}" if known else "there is none; is it the right folder?"
    return InputError(f"{what}: no split {split!r}; {there}")
