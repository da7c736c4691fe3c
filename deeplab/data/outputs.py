"""Results on disk: label maps with a palette, overlays, probabilities; whole files or none.

Every file is written by `deeplab.whole_file`: neither an error nor Ctrl-C leaves half of it.
"""

from __future__ import annotations

import io
import os
import re
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from deeplab.errors import InputError, OutputError
from deeplab.whole_file import whole_file

# Of zlib: several times as quick as Pillow's own. A level alone searches for repetitions, and finds
# few in what PNG's filters leave of a photograph; label maps of photographs grow by a few per cent
QUICK = {"compress_level": 1, "compress_type": zlib.Z_RLE}
UP = 2  # the number of a filter of PNG
ROWS = 1024  # of a picture that are compressed at a time
PACKAGES = ("kernels", "crf", "deeplab")
CLASS_NAMES, PALETTE = "class_names", "palette"  # arrays of an .npz


def voc_palette() -> np.ndarray:
    """The colours of PASCAL VOC's label maps, uint8 `[256, 3]`, for models that bring none.

    Bit k of a label (k = 0, 1, ...) is bit 7 - k // 3 of red, green or blue in turn, so that
    neighbouring labels differ strongly: 0 black, 1 dark red, 2 dark green, ...
    """
    labels = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for k in range(8):
        palette[:, k % 3] |= (((labels >> k) & 1) << (7 - k // 3)).astype(np.uint8)
    return palette


def full_palette(colours: Sequence[Sequence[int]] | np.ndarray | None) -> np.ndarray:
    """256 colours, uint8 `[256, 3]`: those given first, VOC's after them (or for None)."""
    palette = voc_palette()
    if colours is not None:
        given = np.asarray(colours, np.uint8).reshape(-1, 3)[:256]
        palette[: len(given)] = given
    return palette


@dataclass(frozen=True, eq=False)
class NamedPalette:
    """How classes look and what they are called: palette uint8 `[256, 3]`; names where there are
    any."""

    palette: np.ndarray
    names: Sequence[str] | None = None

    def name(self, index: int) -> str:
        """The class's name, or its number."""
        return self.names[index] if self.names else f"class {index}"

    def arrays(self, classes: int) -> dict[str, np.ndarray]:
        """What an .npz of so many classes (at most 256) tells of them: `palette` uint8 `[C, 3]`
        and, where there are names, `class_names`, strings `[C]`."""
        arrays = {PALETTE: self.palette[:classes]}
        return arrays if self.names is None else arrays | {CLASS_NAMES: np.array(self.names, str)}


def overlay(image: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The picture with each class in its colour, half transparent, and pale class boundaries.

    image: uint8 `[H, W, 3]`; labels: `[H, W]`, below 256, else ValueError; palette: uint8
    `[256, 3]`. A class whose colour is black (VOC's background) keeps the picture's own pixels.
    """
    _require_8_bits(labels)
    picture, shown = Image.fromarray(image), Image.fromarray(labels.astype(np.uint8, copy=False))
    bare = shown.point(np.where(palette.any(axis=-1), 0, 255).tolist())
    shown.putpalette(palette.tobytes())
    mixed = Image.blend(picture, shown.convert("RGB"), 0.5)
    mixed.paste(picture, mask=bare)
    return _with_edges(mixed, _edges(labels))


def _with_edges(picture: Image.Image, edge: np.ndarray) -> np.ndarray:
    """The picture with these pixels half white."""
    paler = Image.blend(picture, Image.new("RGB", picture.size, "white"), 0.5)
    picture.paste(paler, mask=Image.fromarray(edge))
    return np.array(picture)


def _edges(labels: np.ndarray) -> np.ndarray:
    """Where two segments meet, bool `[H, W]`: a pixel wide, and wider from 1000 pixels on.

    Both must be two pixels deep there: a map of specks would be nothing but edges.
    """
    edge = np.zeros(labels.shape, bool)
    for lines, marked in ((labels, edge), (labels.T, edge.T)):
        change = lines[:, 1:] != lines[:, :-1]
        alone = change.copy()
        alone[:, 1:] &= ~change[:, :-1]
        alone[:, :-1] &= ~change[:, 1:]
        marked[:, 1:] |= alone
    thin = edge.copy()
    for step in range(1, 1 + min(labels.shape) // 1000):
        edge[:, step:] |= thin[:, :-step]
        edge[step:] |= thin[:-step]
    return edge


def overlay_masks(image: np.ndarray, masks: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The picture with the mean colour of the classes that hold, and pale borders of each.

    image: uint8 `[H, W, 3]`; masks: `[C, H, W]` of 0 and 1; palette: uint8 `[>= C, 3]`.
    """
    held = masks.sum(0, dtype=np.int64)[..., None]
    colour = np.tensordot(masks, palette[: len(masks)].astype(np.int64), (0, 0)) // held.clip(min=1)
    mixed = np.where(held > 0, (image + colour) // 2, image).astype(np.uint8)
    edge = np.any([_edges(mask) for mask in masks], axis=0)
    return _with_edges(Image.fromarray(mixed), edge)


def folder_names(classes: Sequence[str]) -> list[str]:
    """A folder's name for each class: its own wherever that is one, and all different.

    What leads elsewhere or is no name on some system becomes "_"; of names that are then the same
    all but the first get the class's number behind them. Upper and lower case count as equal.
    """
    names: list[str] = []
    for i, name in enumerate(classes):
        safe = re.sub(r'[\x00-\x1f/\\:*?"<>|]', "_", name).strip(". ") or "_"
        taken = {other.casefold() for other in names}
        names.append(f"{safe}-{i}" if safe.casefold() in taken else safe)
    return names


def write_labels(path: Path, labels: np.ndarray, palette: np.ndarray | None) -> None:
    """A label map `[H, W]` as an 8-bit PNG with a palette: pixel values are the class indices.

    palette: uint8 `[256, 3]`; None writes a grey PNG. InputError: a class beyond 8 bits.
    """
    try:
        _require_8_bits(labels)
    except ValueError as error:
        raise InputError(f"{path}: {error}; save the probabilities instead") from error
    picture = _labels(labels.astype(np.uint8, copy=False), palette)
    write_bytes(path, _png(picture))


def _require_8_bits(labels: np.ndarray) -> None:
    """ValueError for a class that does not fit into 8 bits."""
    if labels.dtype != np.uint8:
        outside = labels[(labels < 0) | (labels > 255)]
        if outside.size:
            raise ValueError(f"class index {outside[0]} does not fit an 8-bit label map (0 to 255)")


def labels_png(labels: np.ndarray, palette: np.ndarray | None) -> bytes:
    """What `write_labels` writes, of labels uint8 `[H, W]`."""
    return _png(_labels(labels, palette))


def _labels(labels: np.ndarray, palette: np.ndarray | None) -> Image.Image:
    picture = Image.fromarray(labels)
    if palette is not None:
        picture.putpalette(palette.astype(np.uint8).tobytes())
    return picture


def write_picture(path: Path, rgb: np.ndarray) -> None:
    """An RGB picture, uint8 `[H, W, 3]`, as PNG."""
    write_bytes(path, picture_png(rgb))


def picture_png(rgb: np.ndarray) -> bytes:
    """What `write_picture` writes.

    Each row as its difference from the one above (the filter Up, PNG specification, 9.2). Pillow
    tries five filters for each row, which takes as long as all the rest, for a tenth fewer bytes.
    """
    height, width, _ = rgb.shape
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
    compressor = zlib.compressobj(QUICK["compress_level"], strategy=QUICK["compress_type"])
    rows, data, above = rgb.reshape(height, 3 * width), [], np.zeros((1, 3 * width), np.uint8)
    for top in range(0, height, ROWS):
        below = rows[top : top + ROWS]
        lines = np.full((len(below), 1 + 3 * width), UP, np.uint8)
        np.subtract(below, np.concatenate([above, below[:-1]]), out=lines[:, 1:])
        data.append(compressor.compress(lines.data))
        above = below[-1:]
    data.append(compressor.flush())
    chunks = (b"IHDR", header), (b"IDAT", b"".join(data)), (b"IEND", b"")
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in chunks:
        checksum = zlib.crc32(content, zlib.crc32(kind))
        parts += [struct.pack(">I", len(content)), kind, content, struct.pack(">I", checksum)]
    return b"".join(parts)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Arrays by name, as a compressed .npz file."""
    _write(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]


def write_text(path: Path, text: str) -> None:
    """A text file, UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """A file with this content."""
    _write(path, lambda file: file.write(content))


def write_parts(path: Path, parts: Iterable[bytes]) -> None:
    """A file with these contents, one after another as they come."""
    _write(path, lambda file: file.writelines(parts))


def check_writable(folder: Path) -> None:
    """Raise InputError unless `folder` exists, or can be created, and takes files.

    A temporary file tries it out, in the nearest folder above where it does not exist yet.
    """
    with as_output_error(folder):
        _check_hides_no_package(folder)
        existing = folder.absolute()
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        if not existing.is_dir():
            raise InputError(
                f"{folder}: cannot be the output folder, because {existing} is a file; choose "
                "another"
            )
        with tempfile.TemporaryFile(dir=existing):
            pass


def _check_hides_no_package(folder: Path) -> None:
    """Refuse to make a folder that Python, run in this one, would take for one of our packages."""
    for new in (folder, *folder.parents):
        here = new.name in PACKAGES and new.absolute().parent == Path.cwd()
        if here and not new.exists():
            raise InputError(
                f"{folder}: Python, run in this folder, would take {new} for the package "
                f"{new.name} of deeplab-triton; choose another name, such as out/{new.name}"
            )


def check_writable_file(path: Path) -> None:
    """`check_writable` for one file: its folder must take files, and it must not be a folder."""
    check_writable(path.parent)
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected the name of a file to write")


def output_names(files: Sequence[Path]) -> list[str]:
    """A file name without suffix for each input, all different: its stem wherever that is enough.

    Inputs whose stems collide get their path below the folder that they share, joined by dashes
    (`a/x.jpg`, `b/x.jpg`: `a-x`, `b-x`), then the suffix too (`x.jpg`, `x.png`: `x-jpg`, `x-png`),
    then a number. Upper and lower case count as equal, as on many disks.
    """
    paths = [file.absolute() for file in files]
    names = [path.stem for path in paths]
    if clashes := _clashes(names):
        shared = Path(os.path.commonpath([paths[i].parent for i in clashes]))
        for i in clashes:
            names[i] = "-".join(paths[i].relative_to(shared).with_suffix("").parts)
        for i in _clashes(names):
            names[i] += f"-{paths[i].suffix.lstrip('.').lower()}"
    taken: set[str] = set()
    for i, name in enumerate(names):
        number = 1
        while names[i].casefold() in taken:
            number += 1
            names[i] = f"{name}-{number}"
        taken.add(names[i].casefold())
    return names


def _clashes(names: Sequence[str]) -> list[int]:
    count = Counter(name.casefold() for name in names)
    return [i for i, name in enumerate(names) if count[name.casefold()] > 1]


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, format="PNG", **QUICK)
    return content.getvalue()


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    with as_output_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            write(file)


@contextmanager
def as_output_error(path: Path) -> Iterator[None]:
    """An OSError, such as of a full disk, as an OutputError that names the file."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); choose another output folder"
        ) from error
