"""What the CRF alone is given: annotations and probabilities, from files.

An annotation has labels for some pixels of a picture: by colours, as in pydensecrf's example, or by
class indices, as in VOC's label maps. Probabilities come as an array for each class, or as one of
the foreground.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from deeplab.data.conversions import Conversion
from deeplab.data.images import load_picture
from deeplab.data.outputs import CLASS_NAMES, PALETTE
from deeplab.errors import InputError

ROUNDING = 0.01  # of probabilities and their sums: half precision, resizing
UNSURE_INDEX = 255
MAX_LABELS = 255
SMALL_INDEX = 64  # grey levels below, and 255, are more likely class indices than drawn shades
FOREGROUND = ("background", "foreground")

GREY = (
    "a grey picture of small values, read as colours (0 is unsure); if its values are class "
    "indices, read it with --indices (read_indices)"
)
INDEXED = (
    "a palette picture, read by its colours (black is unsure); if its values are class indices, as "
    "in VOC's label maps, read it with --indices (read_indices)"
)
MASK = (
    "only black and white, read as a mask of two labels, background and foreground; for black to "
    "be unsure, mark the background in a third colour"
)
FOREGROUND_MAP = "one value for each pixel, read as the probability of foreground"

GT_PROB = 0.7  # how far labels are to be trusted, as in pydensecrf's example and in irn
WHITE = 0xFFFFFF
FILLED = 2  # blocks of 2 x 2 pixels from which on a colour fills an area
BLENDS = 4  # colours in between others from which on soft edges are likely


class AnnotationError(InputError):
    """A file that is no annotation.

    what: is wrong with it, without how to mend it with options of the command line.
    """

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(f"{what}; {mend}")
        self.what = what


@dataclass(frozen=True)
class Annotation:
    """Labels for some of a picture's pixels.

    Attributes:
        labels: int64 `[H, W]`, 0 for unsure, k + 1 for label k.
        num_labels: how many labels there are to choose from.
        colours: uint8 `[num_labels, 3]`, the colour of each label; None for class indices.
        names: of the labels, their colours where they have no other; None for class indices.
        notes: what whoever drew it should know about how it was read.
    """

    labels: np.ndarray
    num_labels: int
    colours: np.ndarray | None = None
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Probabilities:
    """Class probabilities of a picture.

    Attributes:
        values: float32 `[C, H, W]`, summing to 1 over the classes.
        names: of the classes, where there are any.
        notes: on how they were read.
        colours: uint8 `[C, 3]`, of the classes, where there are any.
    """

    values: np.ndarray
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    colours: np.ndarray | None = None


def read_colours(
    path: str | Path,
    size: tuple[int, int],
    max_megapixels: float | None = None,
    colours: int | None = None,
) -> Annotation:
    """An annotation by colours, for a picture of `size` (height, width).

    Each colour is a label, in the order of blue, then green, then red; black, and what is
    transparent, is unsure. Where black and white are all there is, they are the labels background
    and foreground. A palette counts by its colours, whatever their indices.

    colours: how many colours count, those that fill the largest areas; the others are unsure, such
        as the blends at soft (antialiased) edges. None: all of them.

    Raises InputError: as `read_image`; for another size than the picture's, 16-bit pixels, fewer
    than two labels or more than 255, or fewer colours than asked for.
    """
    picture, conversions = load_picture(path, max_megapixels)
    _check_annotation_size(path, picture, size)
    if picture.mode == "F" or picture.mode.startswith("I"):
        raise AnnotationError(
            f"{path}: colours of an annotation are 8-bit, this has pixels of type {picture.mode}",
            "save it as 8-bit PNG, or use --indices if its values are class indices",
        )
    rgba = np.array(picture.convert("RGBA"))
    codes = rgba.view("<u4")[..., 0]  # red in the lowest byte, alpha in the highest
    clear = codes < 1 << 24
    codes[clear] = 0
    codes &= (1 << 24) - 1
    found = np.setdiff1d(codes, 0)
    labels = np.where(codes == 0, 0, np.searchsorted(found, codes) + 1)
    areas = _areas(labels, len(found))
    notes = _texts(conversions)
    if colours is not None:
        labels, found = _largest(path, labels, found, areas, colours)
    elif len(found) > MAX_LABELS:
        raise AnnotationError(
            f"{path}: {len(found)} colours, at most {MAX_LABELS} labels are possible",
            "draw without soft edges (antialiasing) and save as PNG, not JPEG, or say how many of "
            f"the colours count with --colours ({(areas >= FILLED).sum()} of them fill areas)",
        )
    black = (codes == 0) & ~clear
    if found.tolist() == [WHITE] and black.any():
        labels = np.where(black, 1, np.where(labels == 1, 2, 0))
        mask = np.array([[0] * 3, [255] * 3], np.uint8)
        return Annotation(labels, 2, mask, FOREGROUND, (*notes, MASK))
    if len(found) < 2:
        values = picture.mode in ("1", "L", "P")
        hint = ", or read its values as class indices with --indices" if values else ""
        labelled = f"{len(found)} label{'' if len(found) == 1 else 's'}"
        raise AnnotationError(
            f"{path}: {labelled} (colours other than black, which means unsure)",
            f"at least two are needed: mark the background in a colour of its own too{hint}",
        )
    rgb = np.stack([found & 255, (found >> 8) & 255, found >> 16], axis=1)
    notes += _reading_notes(picture)
    if colours is None:
        notes += _soft_edges(rgb, areas)
    names = tuple(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in rgb.tolist())
    return Annotation(labels, len(found), rgb.astype(np.uint8), names, notes)


def read_indices(
    path: str | Path,
    size: tuple[int, int],
    num_classes: int | None = None,
    max_megapixels: float | None = None,
) -> Annotation:
    """An annotation by class indices (VOC's label maps), for a picture of `size` (height, width).

    Pixel k is class k and 255 is unsure, in a palette or grey picture. num_classes: None takes the
    highest index + 1.

    Raises InputError: as `read_image`; for another size than the picture's, a picture of colours,
    fewer than two classes, or an index that num_classes does not allow.
    """
    picture, conversions = load_picture(path, max_megapixels)
    _check_annotation_size(path, picture, size)
    if picture.mode not in ("L", "P", "1"):
        raise InputError(
            f"{path}: class indices need an 8-bit grey or palette picture, this one is "
            f"{picture.mode}; save it so, or leave out --indices if its colours are the labels"
        )
    indices = np.array(picture, np.int64)
    sure = indices != UNSURE_INDEX
    highest = int(indices[sure].max(initial=-1))
    count = num_classes if num_classes is not None else highest + 1
    if count < 2 or count > MAX_LABELS:
        mask = " (a mask of 0 and 255 is read without --indices)" if highest == 0 else ""
        raise AnnotationError(
            f"{path}: {_number_of(count)}, expected 2 to {MAX_LABELS} (255 means unsure)",
            f"mark more, or say how many there are with --classes{mask}",
        )
    if highest >= count:
        y, x = np.argwhere(sure & (indices >= count))[0]
        raise InputError(
            f"{path}: class index {indices[y, x]} at row {y}, column {x} is out of range for "
            f"{count} classes (0 to {count - 1}, or 255 for unsure); correct the file or --classes"
        )
    if highest < 0:
        raise InputError(f"{path}: every pixel is unsure (255); mark some of them")
    return Annotation(np.where(sure, indices + 1, 0), count, notes=_texts(conversions))


def read_probabilities(path: str | Path, size: tuple[int, int]) -> Probabilities:
    """Class probabilities from an .npy or .npz file, for a picture of `size` (height, width).

    `[C, H, W]` or `[H, W, C]`, told apart by the picture's size (and, for cubes, by which axis sums
    to 1); of several arrays in an .npz, the one named `probabilities`. `[H, W]`, alone or with an
    axis of length 1, is the probability of foreground: the classes are background and foreground.
    An .npz may name and colour the classes, as those that this project writes do: `class_names`,
    strings `[C]`, and `palette`, integers `[C, 3]`.

    Raises InputError: missing, damaged or not such a file; another shape or type; NaN or Inf;
    values that are no probabilities (logits, most likely); names or colours that are not one for
    each class.
    """
    path = Path(path)
    array, names, colours = _load_arrays(path)
    read = _probabilities(path, array, size)
    return replace(
        read,
        names=read.names if names is None else _class_names(path, names, len(read.values)),
        colours=None if colours is None else _class_colours(path, colours, len(read.values)),
    )


def _probabilities(path: Path, array: np.ndarray, size: tuple[int, int]) -> Probabilities:
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"{path} must be floating point probabilities, not {array.dtype}; save the softmax "
            "itself, as float32"
        )
    values = array.astype(np.float32, copy=False)
    low, high = values.min(initial=0), values.max(initial=0)  # NaN where there is one
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(
            f"{path}: {int((~np.isfinite(values)).sum())} of {array.size} values are NaN or Inf; "
            "look for them where the file was made"
        )
    if array.shape in (size, (1, *size), (*size, 1)):
        return _of_foreground(path, values.reshape(size))
    axis = _class_axis(path, values, size)
    values = np.ascontiguousarray(np.moveaxis(values, axis, 0))
    if len(values) < 2 or len(values) > MAX_LABELS + 1:
        raise InputError(
            f"{path}: {_number_of(len(values))} in shape {list(array.shape)}; expected 2 to "
            f"{MAX_LABELS + 1}"
        )
    sums = values.sum(axis=0)
    if low < -ROUNDING or sums.min() < 1 - ROUNDING or sums.max() > 1 + ROUNDING:
        raise InputError(
            f"{path}: not probabilities: values from {values.min():.3g} to "
            f"{values.max():.3g}, sums over the classes from {sums.min():.3g} to "
            f"{sums.max():.3g}, expected 0 to 1 and 1; apply a softmax over the classes first"
        )
    if low < 0:
        np.maximum(values, 0, out=values)  # its own array: nobody else has what was loaded
    return Probabilities(values)


def _number_of(classes: int) -> str:
    return "1 class" if classes == 1 else f"{classes} classes"


def _of_foreground(path: Path, array: np.ndarray) -> Probabilities:
    foreground = array.astype(np.float32)
    if foreground.min() < -ROUNDING or foreground.max() > 1 + ROUNDING:
        raise InputError(
            f"{path}: one value for each pixel, so the probability of foreground, but they go from "
            f"{foreground.min():.3g} to {foreground.max():.3g}, expected 0 to 1; apply a sigmoid "
            "first"
        )
    foreground = foreground.clip(0, 1)
    return Probabilities(np.stack([1 - foreground, foreground]), FOREGROUND, (FOREGROUND_MAP,))


def _class_names(path: Path, names: np.ndarray, classes: int) -> tuple[str, ...]:
    if names.shape != (classes,) or names.dtype.kind != "U":
        raise InputError(
            f"{path}: class_names must be {classes} strings, one for each class, not "
            f"{list(names.shape)} of {names.dtype}; mend them, or leave them out"
        )
    return tuple(names.tolist())


def _class_colours(path: Path, colours: np.ndarray, classes: int) -> np.ndarray:
    whole = colours.dtype.kind in "iu"
    if colours.shape != (classes, 3) or not whole or colours.min() < 0 or colours.max() > 255:
        raise InputError(
            f"{path}: palette must be whole numbers [{classes}, 3] from 0 to 255, a colour for "
            f"each class, not {list(colours.shape)} of {colours.dtype}; mend it, or leave it out"
        )
    return colours.astype(np.uint8)


def _texts(conversions: list[Conversion]) -> tuple[str, ...]:
    return tuple(conversion.text for conversion in conversions)


def _areas(labels: np.ndarray, count: int) -> np.ndarray:
    """How many blocks of 2 x 2 pixels each label fills, int64 `[count]`; soft edges fill hardly any
    and thin lines few."""
    corner = labels[:-1, :-1]
    filled = (corner == labels[1:, :-1]) & (corner == labels[:-1, 1:]) & (corner == labels[1:, 1:])
    return np.bincount(corner[filled], minlength=count + 1)[1:]


def _largest(
    path: str | Path, labels: np.ndarray, found: np.ndarray, areas: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The labels with only `count` of the colours `found`, those of the largest areas; these."""
    if not 1 <= count <= min(len(found), MAX_LABELS):
        raise InputError(
            f"{path}: --colours {count} must be 1 to {min(len(found), MAX_LABELS)}, as many as "
            "there are colours other than black"
        )
    pixels = np.bincount(labels.ravel(), minlength=len(found) + 1)[1:]
    kept = np.sort(np.lexsort((pixels, areas))[-count:])
    table = np.zeros(len(found) + 1, np.int64)
    table[kept + 1] = np.arange(1, count + 1)
    return table[labels], found[kept]


def _soft_edges(rgb: np.ndarray, areas: np.ndarray) -> tuple[str, ...]:
    """What to say about colours that fill no area and lie between those that do, or black."""
    fills = areas >= FILLED
    ends = np.concatenate([np.zeros((1, 3), np.int64), rgb[fills]]).astype(np.float64)
    thin = rgb[~fills].astype(np.float64)
    first, second = np.triu_indices(len(ends), 1)
    between = np.zeros(len(thin), bool)
    for start, way in zip(ends[first], (ends[second] - ends[first]), strict=True):
        along = ((thin - start) @ way / (way @ way)).clip(0, 1)
        nearest = start + along[:, None] * way
        between |= np.abs(thin - nearest).max(1, initial=0) <= 2  # levels: rounding
    if between.sum() < BLENDS:
        return ()
    return (
        f"{between.sum()} of its {len(rgb)} colours fill no area and lie between others, as soft "
        "edges (antialiasing) leave them, and each is a label of its own; draw with hard edges, or "
        f"leave all unsure but the {fills.sum()} that fill areas: --colours {fills.sum()}",
    )


def _reading_notes(picture: Image.Image) -> tuple[str, ...]:
    """What to say about an annotation that looks like class indices and is read by its colours."""
    if picture.mode in ("P", "PA"):
        return (INDEXED,)
    if picture.mode == "L":
        values = np.unique(np.asarray(picture))
        if values[values != UNSURE_INDEX].max(initial=0) < SMALL_INDEX:
            return (GREY,)
    return ()


def _check_annotation_size(path: str | Path, picture: Image.Image, size: tuple[int, int]) -> None:
    height, width = size
    if (picture.height, picture.width) != size:
        raise InputError(
            f"{path}: the annotation is {picture.width} x {picture.height} pixels, the image "
            f"{width} x {height} (after any EXIF turn); save it at the image's size"
        )


def _load_arrays(path: Path) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """The probabilities; names and colours of the classes where they are there."""
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty (0 bytes); save or copy it again")
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, None, None
        with loaded:
            about = [loaded[n] if n in loaded.files else None for n in (CLASS_NAMES, PALETTE)]
            names = [name for name in loaded.files if name not in (CLASS_NAMES, PALETTE)]
            if len(names) != 1 and "probabilities" not in names:
                raise InputError(
                    f"{path}: arrays {', '.join(names) or '(none)'}; expected one, or one of them "
                    "named 'probabilities'"
                )
            return loaded["probabilities" if "probabilities" in names else names[0]], *about
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the name and the folder") from None
    except MemoryError:
        raise InputError(f"{path}: not enough memory to load it") from None
    except Exception as error:  # damaged archives raise whatever their parsers meet
        reason = f"{str(error).partition(chr(10))[0] or type(error).__name__:.200}"
        if "object at 0x" in reason or "pickle" in reason:
            reason = "it is neither, or holds Python objects"
        raise InputError(
            f"{path}: cannot be read as .npy or .npz ({reason}); save it with "
            "numpy.savez_compressed"
        ) from error


def _class_axis(path: Path, array: np.ndarray, size: tuple[int, int]) -> int:
    """0 for `[C, H, W]`, 2 for `[H, W, C]`."""
    shapes = {axis: tuple(np.delete(array.shape, axis)) for axis in (0, 2) if array.ndim == 3}
    axes = [axis for axis, rest in shapes.items() if rest == tuple(size)]
    if not axes:
        height, width = size
        raise InputError(
            f"{path}: shape {list(array.shape)} does not fit the image, {height} high and {width} "
            f"wide must be [classes, {height}, {width}] or [{height}, {width}, classes], or "
            f"[{height}, {width}] for the foreground alone; resize or transpose the probabilities, "
            "or check that they belong to this image"
        )
    if len(axes) == 2:
        axes = [axis for axis in axes if np.allclose(array.sum(axis=axis), 1, atol=ROUNDING)]
        if len(axes) != 1:
            raise InputError(
                f"{path}: shape {list(array.shape)} could be [C, H, W] or [H, W, C] and the sums "
                "do not tell; save it as [C, H, W] of an image that is not as high as it has "
                "classes"
            )
    return axes[0]
