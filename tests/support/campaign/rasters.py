"""Pictures in every lossless form that holds them, with the pixels that reading has to give.

PNG files are written by hand from the specification, so that bit depths, 16 bits, interlacing and
chunks are there that Pillow does not write, and a slip of Pillow's is not repeated.
"""

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from picture_files import chunk, turned
from PIL import Image

Raster = np.ndarray  # uint8 RGB [H, W, 3]


def rasters(most: int = 40) -> st.SearchStrategy[Raster]:
    """Small pictures: noise, flat ones, ramps, few colours, black and white, grey."""
    sides = st.one_of(st.integers(8, most), st.sampled_from((1, 2, 3, 7)))
    kinds = st.sampled_from(("noise", "flat", "ramp", "few", "grey", "two"))
    return st.builds(raster, kinds, sides, sides, st.integers(0, 2**32 - 1))


def raster(kind: str, height: int, width: int, seed: int) -> Raster:
    rng = np.random.default_rng(seed)
    shape = (height, width)
    if kind == "noise":
        return rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    if kind == "ramp":
        y, x = np.indices(shape)
        return np.stack([y * 5, x * 7, y + x], -1).astype(np.uint8)
    if kind == "grey":
        return np.repeat(rng.integers(0, 256, (*shape, 1), dtype=np.uint8), 3, axis=2)
    if kind == "two":
        return np.repeat(rng.integers(0, 2, (*shape, 1), dtype=np.uint8) * 255, 3, axis=2)
    colours = rng.integers(0, 256, (1 if kind == "flat" else 5, 3), dtype=np.uint8)
    return colours[rng.integers(0, len(colours), shape)]


def png(
    samples: np.ndarray,
    colour: int,
    depth: int = 8,
    extra: Sequence[bytes] = (),
    interlaced: bool = False,
) -> bytes:
    """`samples` [H, W, channels] of `depth` bits; colour: 0 grey, 2 RGB, 3 palette, 6 RGBA."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2)]
        passes += [(0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(
        b"\0" + _row(line, depth)
        for y, x, down, right in passes
        if samples[y::down, x::right].size
        for line in samples[y::down, x::right]
    )
    data = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + data


def lay_picture(folder: Path, height: int, width: int, seed: int) -> None:
    """A picture a.png, and on it in marks.png scribbles of two colours."""
    (folder / "a.png").write_bytes(png(raster("noise", height, width, seed), 2))
    marks = np.zeros((height, width, 3), np.uint8)
    marks[2:6, 3:9], marks[15:19, 20 : 20 + 8 * seed] = (255, 0, 0), (0, 0, 255)
    (folder / "marks.png").write_bytes(png(marks, 2))


def _row(line: np.ndarray, depth: int) -> bytes:
    flat = line.reshape(-1)
    if depth == 16:
        return flat.astype(">u2").tobytes()
    if depth == 8:
        return flat.astype(np.uint8).tobytes()
    bits = (flat[:, None] >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8).reshape(-1)).tobytes()


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The file that Pillow makes of it."""
    content = io.BytesIO()
    image.save(content, format=kind, **options)
    return content.getvalue()


def _palette(rgb: Raster) -> tuple[np.ndarray, np.ndarray] | None:
    """(colours, index of each pixel), or None where there are too many."""
    colours, index = np.unique(rgb.reshape(-1, 3), axis=0, return_inverse=True)
    return None if len(colours) > 256 else (colours, index.reshape(rgb.shape[:2]).astype(np.uint8))


def _is_grey(rgb: Raster) -> bool:
    return bool((rgb == rgb[..., :1]).all())


def _png_palette(rgb: Raster) -> bytes | None:
    found = _palette(rgb)
    return found and png(found[1][..., None], 3, extra=[chunk(b"PLTE", found[0].tobytes())])


def _png_bits(rgb: Raster) -> bytes | None:
    two = _is_grey(rgb) and set(np.unique(rgb)) <= {0, 255}
    return png((rgb[..., :1] > 0).astype(np.uint8), 0, 1) if two else None


def _gif(rgb: Raster) -> bytes | None:
    found = _palette(rgb)
    if found is None:
        return None
    image = Image.fromarray(found[1])
    image.putpalette(found[0].tobytes())
    return saved(image, "GIF")


def _turned(rgb: Raster, orientation: int, kind: str, **options: Any) -> bytes:
    """Stored as a camera does: the pixels in another order, and a tag that says so."""
    turn = Image.Transpose
    inverse = {5: turn.TRANSPOSE, 6: turn.ROTATE_90, 8: turn.ROTATE_270}[orientation]
    stored = Image.fromarray(rgb).transpose(inverse)
    return saved(stored, kind, exif=turned(orientation), **options)


def _wide(samples: np.ndarray) -> np.ndarray:
    """The same levels of 16 bits."""
    return samples.astype(np.uint16) * 257


def _alpha(rgb: Raster, value: int) -> np.ndarray:
    return np.concatenate([rgb, np.full((*rgb.shape[:2], 1), value, np.uint8)], axis=2)


def _by_pillow(kind: str, **options: Any) -> Callable[[Raster], bytes]:
    return lambda rgb: saved(Image.fromarray(rgb), kind, **options)


# suffix, and what encodes: None where the form does not hold these pixels
LOSSLESS: dict[str, tuple[str, Callable[[Raster], bytes | None]]] = {
    "png": (".png", lambda rgb: png(rgb, 2)),
    "png by Pillow": (".png", _by_pillow("PNG")),
    "png interlaced": (".png", lambda rgb: png(rgb, 2, interlaced=True)),
    "png of 16 bits": (".png", lambda rgb: png(_wide(rgb), 2, 16)),
    "png opaque": (".png", lambda rgb: png(_alpha(rgb, 255), 6)),
    "png palette": (".png", _png_palette),
    "png grey": (".png", lambda rgb: png(rgb[..., :1], 0) if _is_grey(rgb) else None),
    "png grey of 16 bits": (
        ".png",
        lambda rgb: png(_wide(rgb[..., :1]), 0, 16) if _is_grey(rgb) else None,
    ),
    "png of 1 bit": (".png", _png_bits),
    "png turned 6": (".png", lambda rgb: _turned(rgb, 6, "PNG")),
    "tiff turned 5": (".tif", lambda rgb: _turned(rgb, 5, "TIFF")),
    "webp turned 8": (".webp", lambda rgb: _turned(rgb, 8, "WEBP", lossless=True)),
    "bmp": (".bmp", _by_pillow("BMP")),
    "tiff": (".tiff", _by_pillow("TIFF")),
    "tiff lzw": (".tif", _by_pillow("TIFF", compression="tiff_lzw")),
    "tiff deflate": (".tif", _by_pillow("TIFF", compression="tiff_adobe_deflate")),
    "webp": (".webp", _by_pillow("WEBP", lossless=True)),
    "ppm": (".ppm", _by_pillow("PPM")),
    "gif": (".gif", _gif),
    "tga": (".tga", _by_pillow("TGA")),
    "png under another name": (".jpg", lambda rgb: png(rgb, 2)),
}
LOSSY: dict[str, tuple[str, Callable[[Raster], bytes]]] = {
    "jpeg": (".jpg", _by_pillow("JPEG")),
    "jpeg progressive": (".jpg", _by_pillow("JPEG", progressive=True)),
    "jpeg grey": (".jpeg", lambda rgb: saved(Image.fromarray(rgb).convert("L"), "JPEG")),
    "webp lossy": (".webp", _by_pillow("WEBP")),
}


def encoded(rgb: Raster, kind: str) -> tuple[str, bytes]:
    """(suffix, content); a PNG where a lossless form does not hold these pixels."""
    suffix, encode = (LOSSLESS | LOSSY)[kind]
    content = encode(rgb)
    return (".png", png(rgb, 2)) if content is None else (suffix, content)


def decoded(content: bytes) -> Raster:
    """Pillow's own answer, without this package."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))
