"""Pictures of any number of bands, with the values that lie in their files.

    .npy            [H, W, bands], or [H, W] of one band
    .tif, .tiff     bands as samples or as pages; read by tifffile, an optional package
    other pictures  what Pillow has: 1 band of grey (8 or 16 bits), 2 with alpha, 3, 4 with alpha

Values are uint8, uint16 or float32. Nothing scales them: a model has a mean and a deviation for
each band, in these units. Three bands are RGB in 0-255 as `deeplab.data.images.read_image` reads
pictures, unless they lie in a .npy file.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deeplab.data.conversions import FRAMES, Conversion
from deeplab.data.images import MAX_MEGAPIXELS, check_file, check_size, load_picture, read_image
from deeplab.errors import InputError

DTYPES = ("uint8", "uint16", "float32")
TIFF = (".tif", ".tiff")
NPY = ".npy"

Read = tuple[np.ndarray, list[Conversion]]


def read_picture(path: str | Path, bands: int = 3, max_megapixels: float = MAX_MEGAPIXELS) -> Read:
    """The picture as a network of that many bands takes it: `[H, W, bands]`; what was converted.

    Three bands are uint8 RGB as `read_image` gives them, .npy apart; others are as they lie in the
    file: uint8, uint16 or float32.

    Raises InputError as `read_image`, and for another number of bands, another dtype, NaN or Inf,
    or a TIFF where tifffile is not installed.
    """
    path = Path(path)
    if bands == 3 and path.suffix.lower() != NPY:
        return read_image(path, max_megapixels)
    check_file(path)
    if path.suffix.lower() == NPY:
        values, conversions = _read_npy(path, bands, max_megapixels)
    elif path.suffix.lower() in TIFF:
        values, conversions = _read_tiff(path, bands, max_megapixels)
    else:
        image, conversions = load_picture(path, max_megapixels)
        values = _of_pillow(path, image)
        _check(path, values.shape, values.dtype, bands, max_megapixels)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = np.count_nonzero(~np.isfinite(values))
        raise InputError(
            f"{path}: NaN or Inf in {count} of {values.size} values; fill them, such as with the "
            "band's mean, and label those pixels 255"
        )
    return values, conversions


def _read_npy(path: Path, bands: int, max_megapixels: float) -> Read:
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # the header is a Python literal: whatever its parser meets
        raise InputError(
            f"{path}: not a readable .npy file ({error!s:.200}); write it with numpy.save"
        ) from error
    if not isinstance(stored, np.ndarray):
        raise InputError(f"{path} must be one array of numpy.save, not an archive of several")
    values = stored[..., None] if stored.ndim == 2 else stored
    _check(path, values.shape, values.dtype, bands, max_megapixels)
    return _native(values), []


def _read_tiff(path: Path, bands: int, max_megapixels: float) -> Read:
    tifffile = _tifffile(path)
    try:
        with tifffile.TiffFile(path) as file:
            first = file.series[0]
            beside = [s for s in file.series[1:] if not (s[0].is_reduced or s[0].is_mask)]
            order = _band_last(path, first.axes, first.shape)
            shape = tuple(1 if axis is None else first.shape[axis] for axis in order)
            _check(path, shape, first.dtype, bands, max_megapixels)
            stored = first.asarray()
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{path}: not enough memory to decode it; make it smaller") from None
    except Exception as error:  # decoders raise whatever their format's parser meets
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{path}: the TIFF is damaged, or of a kind that tifffile cannot read "
            f"({reason:.200}); export it again, uncompressed"
        ) from error
    height, width = order[0], order[1]
    values = np.moveaxis(stored.reshape(first.shape), (height, width), (0, 1)).reshape(shape)
    text = f"the first of {1 + len(beside)} pictures in it is used"
    conversions = [Conversion(str(path), FRAMES, text)] if beside else []
    return _native(values), conversions


def _tifffile(path: Path) -> Any:
    try:
        return importlib.import_module("tifffile")
    except ImportError as error:
        raise InputError(
            f"{path}: a TIFF of bands needs the package tifffile, which does not import "
            f"({error}): pip install 'deeplab-triton[bands]'"
        ) from error


def _band_last(path: Path, axes: str, shape: tuple[int, ...]) -> tuple[int, int, int | None]:
    """Where height, width and bands lie among the axes, as tifffile names them; None for one."""
    others = [i for i, name in enumerate(axes) if name not in "YX" and shape[i] > 1]
    if axes.count("Y") != 1 or axes.count("X") != 1 or len(others) > 1:
        raise InputError(
            f"{path} must have height, width and bands, not axes {axes} of {list(shape)}; save "
            "its bands as samples of one page, or as pages of one band"
        )
    return axes.index("Y"), axes.index("X"), others[0] if others else None


def _of_pillow(path: Path, image: Image.Image) -> np.ndarray:
    """The values `[H, W, bands]` of a picture that is neither packed nor of indices."""
    if image.mode in ("1", "P", "PA"):
        raise InputError(
            f"{path}: a palette or black and white picture has no bands; convert it to grey or RGB"
        )
    values = np.asarray(image)
    if image.mode == "I" and values.min() >= 0 and values.max() <= 65535:
        values = values.astype(np.uint16)  # Pillow's mode for some files of 16 bits
    return _native(values.reshape(image.height, image.width, -1))


def _check(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], bands: int, max_megapixels: float
) -> None:
    if len(shape) != 3:
        raise InputError(f"{path} must be an array [H, W, bands], not of shape {list(shape)}")
    if dtype.name not in DTYPES:
        raise InputError(
            f"{path} must have values of {', '.join(DTYPES)}, not {dtype.name}; convert it, such "
            "as with array.astype(numpy.float32)"
        )
    check_size(path, (shape[1], shape[0]), max_megapixels)
    if shape[2] != bands:
        raise InputError(
            f"{path} must have {bands} band{'s' * (bands > 1)}, as the model or the option bands "
            f"says, not {shape[2]}"
        )


def _native(values: np.ndarray) -> np.ndarray:
    """A copy in memory, in this machine's order of bytes, bands last."""
    return np.array(values, dtype=values.dtype.newbyteorder("="), order="C")
