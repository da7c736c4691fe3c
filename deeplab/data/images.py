"""Pictures from anywhere, as the 8-bit RGB arrays that the networks and the CRF work on.

Whatever has to be done to a picture on the way (turning it upright, dropping bits or an alpha
channel) is reported as a `Conversion`; whatever cannot be read is an InputError with its name.
"""

from __future__ import annotations

import ctypes
import glob
import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL._imaging
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from deeplab.data.conversions import (
    BANDS,
    DEEP,
    FRAMES,
    INVISIBLE,
    NEAR_ZERO,
    TRANSPARENT,
    TURNED,
    TWELVE_BITS,
    VEILED,
    Conversion,
)
from deeplab.data.folders import files_below
from deeplab.errors import InputError

MAX_MEGAPIXELS = 100.0  # of what goes through a CRF whole
DECODED = 7  # bytes a pixel of RGB: 4 as Pillow has it, and 3 as an array
ROWS = 1024  # that are copied at a time
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
settings = threading.Lock()  # those of Pillow, libtiff and warnings, changed while a file is read
NEARLY_BLACK = 4096  # 16-bit values below are those of a sensor of 12 bits or fewer, most likely


def read_image(
    path: str | Path, max_megapixels: float | None = None, content: bytes | None = None
) -> tuple[np.ndarray, list[Conversion]]:
    """Read a picture as RGB: uint8 `[H, W, 3]`, and what was converted; `str(...)` is a line each.

    content: the bytes of the file, where they have been read already; `path` only names it then.

    EXIF orientation is applied. Grey, palette, CMYK and other modes become RGB, transparent parts
    are laid on white, 16 bits a channel become 8 (value / 257), bands of a TIFF that it does not
    declare as alpha are left out, and of several frames or pages the first is taken; each of these
    is one conversion, a plain picture has none. Values are never stretched, since a range that a
    file does not declare would be a guess: 16-bit values below 4096, and alpha that leaves nearly
    nothing of the picture, are conversions of their own kind that say so.

    Raises InputError: the file is missing, a folder, unreadable, empty, truncated, damaged, of no
    known format, without pixels, by its header above `max_megapixels` (10^6 pixels) or larger than
    what can be decoded in the memory that is free, or of a pixel type without a fixed range (32-bit
    integer or floating point).
    """
    path = Path(path)
    image, conversions = load_picture(path, max_megapixels, content)
    rgb, more = _to_rgb(path, image, {conversion.kind for conversion in conversions})
    return _pixels(rgb), conversions + more


def load_picture(
    path: str | Path, max_megapixels: float | None = None, content: bytes | None = None
) -> tuple[Image.Image, list[Conversion]]:
    """The decoded picture as Pillow has it, in the file's own mode, upright; what was converted.

    For files whose pixel values mean something other than light, such as label maps; pictures are
    what `read_image` is for, whose arguments and errors are these, save for the pixel types.
    """
    path = Path(path)
    if max_megapixels is not None and not max_megapixels > 0:
        raise InputError(f"max_megapixels must be a number above 0, not {max_megapixels}")
    check_file(path, content)

    def opened() -> ImageFile.ImageFile:
        return Image.open(path if content is None else io.BytesIO(content))

    with settings, _pillow_size_guard_off(), _libtiff_quiet():
        try:
            with opened() as image:
                if image.format == "EPS":  # Pillow would run Ghostscript on it
                    raise InputError(f"{path}: PostScript, not a picture; save it as PNG or JPEG")
                check_size(path, image.size, max_megapixels)
                if image.format == "PNG":
                    with opened() as again:
                        again.verify()  # checksums, at which decoding does not look
                return _decode(path, image)
        except InputError:
            raise
        except UnidentifiedImageError:
            raise InputError(
                f"{path}: no picture could be recognised in it (another kind of file, damaged, or "
                "an image of zero size); save it again as PNG or JPEG"
            ) from None
        except MemoryError:
            raise InputError(f"{path}: not enough memory to decode it; make it smaller") from None
        except Exception as error:  # decoders raise whatever their format's parser meets
            reason = str(error) or type(error).__name__
            raise InputError(
                f"{path}: the image is truncated or damaged ({reason}); copy, download or export "
                "it again"
            ) from error


def find_images(inputs: Sequence[str | Path], recursive: bool = False) -> list[Path]:
    """The files that paths, folders and glob patterns stand for, in order.

    Where several are given, each file once.

    A folder gives its pictures by suffix, or else its .npy files, not hidden ones, and those of its
    subfolders only if `recursive`; a pattern (`*`, `?`, `[`, and `**` through subfolders) gives
    every file that matches. A name that exists is never taken for a pattern.

    Raises InputError where an input gives no file, or where there is no input.
    """
    if not inputs:
        raise InputError(
            "no image given; name files, a folder, or a pattern such as 'photos/*.jpg'"
        )
    files: dict[Path, Path] = {}
    for item in inputs:
        try:
            found = _expand(item, recursive)
            if len(inputs) == 1:  # of a hundred thousand files no second list
                return found
            for file in found:
                files.setdefault(file.resolve(), file)
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before 3.13
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{item}: cannot be opened ({reason})") from error
    return list(files.values())


def _expand(item: str | Path, recursive: bool) -> list[Path]:
    path = Path(item)
    if path.is_dir():
        for suffixes in (SUFFIXES, (".npy",)):
            if files := [path / name for name in files_below(path, suffixes, recursive)]:
                return files
        below = (
            ""
            if recursive
            else f"; subfolders are not searched, '{path}/**/*.jpg' in quotes searches them"
        )
        raise InputError(f"{path}: the folder holds no picture ({', '.join(SUFFIXES)}){below}")
    if not path.exists() and glob.has_magic(str(item)):
        matches = (Path(name) for name in glob.glob(str(item), recursive=True))
        files = sorted(p for p in matches if p.is_file())
        if not files:
            raise InputError(
                f"{item}: no file matches this pattern; check the folder and the suffix"
            )
        return files
    return [path]


def check_file(path: Path, content: bytes | None = None) -> None:
    """InputError where there is no such file, or it is a folder, empty or locked.

    content: what has been read from it, of which only an empty one is refused.
    """
    if content is None:
        try:
            empty = path.stat().st_size == 0
            if not (empty or path.is_dir()):
                path.open("rb").close()
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; check the name and the folder") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{path}: cannot be opened ({reason})") from error
        if path.is_dir():
            raise InputError(f"{path}: is a folder, expected an image file")
    else:
        empty = not content
    if empty:
        raise InputError(f"{path}: the file is empty (0 bytes); copy or download it again")


def check_size(
    path: Path,
    size: tuple[int, int],
    max_megapixels: float | None,
    bytes_a_pixel: float = DECODED,
) -> None:
    """InputError where a picture of (width, height) pixels has none, or too many.

    max_megapixels: None for as many as fit into memory at so many bytes each.
    """
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"{path}: the image has zero size ({width} x {height} pixels)")
    megapixels = width * height / 1e6
    needed, free = width * height * bytes_a_pixel, _free_memory()
    if free is not None and needed > free:
        raise InputError(
            f"{path}: {width} x {height} pixels take at least {needed / 1e9:.1f} GB to read, and "
            f"{free / 1e9:.1f} GB are free; make it smaller, or cut it into parts"
        )
    if max_megapixels is not None and megapixels > max_megapixels:
        raise InputError(
            f"{path}: {width} x {height} pixels are {megapixels:.1f} megapixels, above the limit "
            f"of {max_megapixels:g}; make it smaller, or raise the limit where there is an option "
            f"for it and the memory allows (--max-megapixels {int(megapixels) + 1})"
        )


def _free_memory() -> int | None:
    import torch  # not before it is needed: it takes seconds

    from kernels import memory

    return memory.available(torch.device("cpu"))


@contextmanager
def _libtiff_quiet() -> Iterator[None]:
    """libtiff prints what is wrong with a file, beside what Pillow raises and this module says."""
    library = ctypes.CDLL(PIL._imaging.__file__)
    set_handler = getattr(library, "TIFFSetErrorHandler", None)
    if set_handler is None:  # built without libtiff, or with its names hidden
        yield
        return
    set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
    handler = set_handler(None)
    try:
        yield
    finally:
        set_handler(handler)


@contextmanager
def _pillow_size_guard_off() -> Iterator[None]:
    """Pillow's own limit on sizes, a warning first and then an error, gives way to ours."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata: the pixels are what counts
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _decode(path: Path, image: ImageFile.ImageFile) -> tuple[Image.Image, list[Conversion]]:
    changes = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        image.seek(0)
        changes.append((FRAMES, f"the first of {frames} frames is used"))
    layouts = [str(tile[3]) for tile in image.tile]  # gone once the pixels are loaded
    deep, twelve = (any(bits in layout for layout in layouts) for bits in (";16", ";12"))
    image.load()
    if deep and not image.mode.startswith("I"):
        changes.append((DEEP, "16 bits a channel reduced to 8"))
        changes += near_zero(256 * _brightest(image) + 255)  # at most: the lower bits are gone
    if twelve:
        changes.append((TWELVE_BITS, "12-bit grey converted to 8-bit RGB (value / 4095 * 255)"))
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    bands, alpha = _bands_beside_colours(image)
    upright: Image.Image = image
    if orientation in range(2, 9):
        labels = "labels have to fit the turned picture"
        changes.append(
            (TURNED, f"turned upright, as its EXIF orientation ({orientation}) says; {labels}")
        )
        upright = ImageOps.exif_transpose(image)
    if bands:
        which = "a band beside its colours is" if bands == 1 else f"{bands} bands of it are"
        changes.append((BANDS, f"{which} left out, not being declared as alpha"))
        if upright.mode == "RGBA" and not alpha:
            upright = upright.convert("RGB")
    return upright, [Conversion(str(path), kind, text) for kind, text in changes]


def _brightest(image: Image.Image) -> int:
    """The highest value of the colours of an 8-bit picture; 255 where high values are not light."""
    colours = {"RGB": 3, "RGBA": 3, "L": 1, "LA": 1}.get(image.mode, 0)
    if not colours:
        return 255
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    return int(pixels[..., :colours].max())


def near_zero(highest: int) -> list[tuple[str, str]]:
    """The conversion where the highest of a picture's 16-bit values leaves it nearly black."""
    if not 0 < highest < NEARLY_BLACK:
        return []
    bound = 1 << highest.bit_length()
    return [
        (
            NEAR_ZERO,
            f"its 16-bit values lie below {bound} of 65536, so that it is nearly black; if the "
            f"file has values of fewer bits, multiply them by {65536 // bound}",
        )
    ]


def _bands_beside_colours(image: ImageFile.ImageFile) -> tuple[int, bool]:
    """How many bands of a TIFF are neither colour nor declared as alpha; whether one is alpha.

    Pillow takes a fourth band of which the file says nothing for alpha.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0, False
    tags = image.tag_v2
    kind = int(tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0))
    colours = {2: 3, 5: 4, 6: 3, 8: 3}.get(kind, 1)  # RGB, CMYK, YCbCr, Lab; else grey or palette
    beside = int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)) - colours
    declared = np.atleast_1d(tags.get(TiffImagePlugin.EXTRASAMPLES, ()))
    alpha = bool(np.isin(declared, (1, 2)).any())  # premultiplied, or not
    return max(0, beside - alpha), alpha


def _to_rgb(path: Path, image: Image.Image, done: set[str]) -> tuple[Image.Image, list[Conversion]]:
    """The picture in RGB, and what that took; `done` are the kinds of earlier conversions."""
    changes: list[tuple[str, str]] = []
    if image.mode == "F":
        raise InputError(
            f"{path}: floating-point pixels have no fixed range; scale them to 0-255 and save them "
            "as 8-bit PNG"
        )
    if image.mode.startswith("I"):
        values = _deep_grey(path, image)
        if TWELVE_BITS in done:
            grey = (values * 255 + 2047) // 4095
        else:
            grey = (values + 128) // 257
            changes.append((f"{DEEP}, grey", "16-bit grey converted to 8-bit RGB (value / 257)"))
            changes += near_zero(int(values.max()))
        rgb = Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    elif image.has_transparency_data:
        rgb, changes = _on_white(image)
    else:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        changes = _mode_converted(image)
    return rgb, [Conversion(str(path), kind, text) for kind, text in changes]


def _pixels(rgb: Image.Image) -> np.ndarray:
    """uint8 `[H, W, 3]`; not all at once, which Pillow does by way of a copy."""
    pixels = np.empty((rgb.height, rgb.width, 3), np.uint8)
    for top in range(0, rgb.height, ROWS):
        bottom = min(rgb.height, top + ROWS)
        pixels[top:bottom] = np.asarray(rgb.crop((0, top, rgb.width, bottom)))
    return pixels


def _deep_grey(path: Path, image: Image.Image) -> np.ndarray:
    """Values of up to 16 bits, int64 `[H, W]`."""
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise InputError(
            f"{path}: 32-bit integer pixels ({low} to {high}) have no fixed range; scale them to "
            "0-255 and save them as 8-bit PNG"
        )
    return values


def _on_white(image: Image.Image) -> tuple[Image.Image, list[tuple[str, str]]]:
    """A picture with transparency as it looks on white, and what to say of it."""
    straight = image.convert("LA") if image.mode == "La" else image
    rgba = straight.convert("RGBA")
    alpha = rgba.getchannel("A").histogram()
    pixels = sum(alpha)
    if alpha[255] == pixels:
        return rgba.convert("RGB"), _mode_converted(image)
    laid = f"{_name(image.mode)} with transparency laid on white"
    if alpha[0] == pixels:
        hint = "save the picture without alpha if its colours count"
        change = (INVISIBLE, f"alpha is 0 everywhere, so that all of it is white; {hint}")
    elif alpha[0] + alpha[255] < pixels / 10:
        hint = "if that band is no alpha (infrared, say), save the picture without it"
        change = (VEILED, f"{laid}; nearly all of it is neither opaque nor transparent: {hint}")
    else:
        change = (TRANSPARENT, laid)
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB"), [change]


def _mode_converted(image: Image.Image) -> list[tuple[str, str]]:
    """The conversion of the colours alone, if there is one."""
    text = f"{_name(image.mode)} converted to RGB"
    return [] if image.mode == "RGB" else [(text, text)]


def _name(mode: str) -> str:
    names = {"1": "black and white", "L": "grey", "LA": "grey", "P": "palette", "PA": "palette"}
    names |= {"La": "grey", "RGBa": "RGBA"}
    return names.get(mode, mode)
