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
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deeplab.data.conversions import FRAMES, Conversion
from deeplab.data.images import check_file, check_size, load_picture, read_image
from deeplab.errors import InputError

DTYPES = ("uint8", "uint16", "float32")
TIFF = (".tif", ".tiff")
NPY = ".npy"

Read = tuple[np.ndarray, list[Conversion]]


def read_picture(
    path: str | Path,
    bands: int = 3,
    max_megapixels: float | None = None,
    content: bytes | None = None,
) -> Read:
    """The picture as a network of that many bands takes it: `[H, W, bands]`; what was converted.

    content: the bytes of the file, where they have been read already; `path` only names it then.

    Three bands are uint8 RGB as `read_image` gives them, .npy apart; others are as they lie in the
    file: uint8, uint16 or float32.

    Raises InputError as `read_image`, and for another number of bands, another dtype, NaN or Inf,
    or a TIFF where tifffile is not installed.
    """
    path = Path(path)
    if bands == 3 and path.suffix.lower() != NPY:
        return read_image(path, max_megapixels, content)
    check_file(path, content)
    if path.suffix.lower() == NPY:
        values, conversions = _read_npy(path, bands, max_megapixels, content)
    elif path.suffix.lower() in TIFF:
        values, conversions = _read_tiff(path, bands, max_megapixels, content)
    else:
        image, conversions = load_picture(path, max_megapixels, content)
        values = _of_pillow(path, image)
        _check(path, values.shape, values.dtype, bands, max_megapixels)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = np.count_nonzero(~np.isfinite(values))
        raise InputError(
            f"{path}: NaN or Inf in {count} of {values.size} values; fill them, such as with the "
            "band's mean, and label those pixels 255"
        )
    return values, conversions


def _read_npy(path: Path, bands: int, max_megapixels: float | None, content: bytes | None) -> Read:
    try:
        if content is None:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            stored = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # the header is a Python literal: whatever its parser meets
        raise InputError(
            f"{path}: not a readable .npy file ({error!s:.200}); write it with numpy.save"
        ) from error
    if not isinstance(stored, np.ndarray):
        raise InputError(f"{path} must be one array of numpy.save, not an archive of several")
    values = stored[..., None] if stored.ndim == 2 else stored
    _check(path, values.shape, values.dtype, bands, max_megapixels)
    return _native(values), []


def _read_tiff(path: Path, bands: int, max_megapixels: float | None, content: bytes | None) -> Read:
    """Page by page: series as tifffile finds them follow metadata, to other files too."""
    tifffile = _tifffile(path)
    source = path if content is None else io.BytesIO(content)
    try:
        with _logged_errors() as errors, tifffile.TiffFile(source, _multifile=False) as file:
            pages = [page for page in file.pages if not (page.is_reduced or page.is_mask)]
            first = pages[0]
            stacked = [page for page in pages if page.shape == first.shape and page.axes == "YX"]
            shape = _shape(path, first.axes, first.shape, len(stacked))
            _check(path, shape, first.dtype, bands, max_megapixels)
            if stacked:
                planes = [page.asarray() for page in stacked]
                values = np.stack(planes, axis=2).astype(first.dtype, casting="safe")
            else:
                stored = first.asarray()
                values = np.moveaxis(stored, 0, 2) if first.axes == "SYX" else stored
            left_out = len(pages) > max(1, len(stacked))
        if errors:
            raise ValueError(errors[0])
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
    text = f"the first picture is used, of {len(pages)} pages"
    return _native(values), [Conversion(str(path), FRAMES, text)] if left_out else []


@contextmanager
def _logged_errors() -> Iterator[list[str]]:
    """What tifffile logs as an error, before it gives zeros for what is missing; not printed."""
    errors: list[str] = []
    log, handler = logging.getLogger("tifffile"), logging.Handler(logging.ERROR)
    handler.emit = lambda record: errors.append(record.getMessage())  # type: ignore[method-assign]
    propagates = log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield errors
    finally:
        log.removeHandler(handler)
        log.propagate = propagates


def _tifffile(path: Path) -> Any:
    try:
        return importlib.import_module("tifffile")
    except ImportError as error:
        raise InputError(
            f"{path}: a TIFF of bands needs the package tifffile, which does not import "
            f"({error}): pip install 'deeplab-triton[bands]'"
        ) from error


def _shape(path: Path, axes: str, shape: tuple[int, ...], pages: int) -> tuple[int, int, int]:
    """Height, width and bands of pages with these axes, as tifffile names them."""
    if axes == "YX":
        return shape[0], shape[1], pages
    if axes == "YXS":
        return shape[0], shape[1], shape[2]
    if axes == "SYX":
        return shape[1], shape[2], shape[0]
    raise InputError(
        f"{path} must have height, width and bands, not axes {axes} of {list(shape)}; save its "
        "bands as samples of one page, or as pages of one band"
    )


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
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    bands: int,
    max_megapixels: float | None,
) -> None:
    if len(shape) != 3:
        raise InputError(f"{path} must be an array [H, W, bands], not of shape {list(shape)}")
    if dtype.name not in DTYPES:
        raise InputError(
            f"{path} must have values of {', '.join(DTYPES)}, not {dtype.name}; convert it, such "
            "as with array.astype(numpy.float32)"
        )
    check_size(path, (shape[1], shape[0]), max_megapixels, shape[2] * dtype.itemsize)
    if shape[2] != bands:
        raise InputError(
            f"{path} must have {bands} band{'s' * (bands > 1)}, as the model or the option bands "
            f"says, not {shape[2]}"
        )


def _native(values: np.ndarray) -> np.ndarray:
    """A copy in memory, in this machine's order of bytes, bands last."""
    return np.array(values, dtype=values.dtype.newbyteorder("="), order="C")
