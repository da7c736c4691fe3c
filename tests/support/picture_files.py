"""Picture files of kinds that Pillow does not write, and drawings with soft edges."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def turned(orientation: int) -> Image.Exif:
    """What a camera writes that was held so."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG, with its checksum."""
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png(width: int, height: int, depth: int, colour_type: int, raw: bytes) -> bytes:
    """A PNG: Pillow cannot write 16 bits a channel or an empty picture."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def deep_png(path: Path, values: np.ndarray) -> Path:
    """A PNG of 16 bits a channel: `[H, W, C]`, grey and alpha, RGB or RGBA."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path.write_bytes(png(width, height, 16, {2: 4, 3: 2, 4: 6}[channels], rows))
    return path


def tiff(
    path: Path,
    bands: np.ndarray,
    photometric: int = 2,
    extra: Sequence[int] | None = None,
    raw: bytes | None = None,
    bits: int = 8,
) -> Path:
    """A TIFF of `[H, W, bands]`: photometric 1 is grey, 2 RGB, 5 CMYK; `extra` is what it says of
    the bands beside the colours (0 nothing, 1 and 2 alpha), None not even that there are any.

    raw: its pixels as they are stored, where they are not the bytes of `bands`.
    """
    height, width, count = bands.shape
    data = bands.tobytes() if raw is None else raw
    data += b"\0" * (len(data) % 2)
    numbers = {256: [width], 257: [height], 258: [bits] * count, 259: [1], 262: [photometric]}
    numbers |= {273: [8], 277: [count], 278: [height], 279: [len(data)]}
    numbers |= {} if extra is None else {338: list(extra)}
    entries, beyond = b"", b""
    end = 8 + len(data) + 2 + 12 * len(numbers) + 4
    for tag, values in numbers.items():
        stored = struct.pack(f"<{len(values)}H", *values)
        if len(stored) > 4:
            where, beyond = end + len(beyond), beyond + stored
            stored = struct.pack("<L", where)
        entries += struct.pack("<HHL", tag, 3, len(values)) + stored.ljust(4, b"\0")
    directory = struct.pack("<H", len(numbers)) + entries + b"\0" * 4
    path.write_bytes(b"II*\0" + struct.pack("<L", 8 + len(data)) + data + directory + beyond)
    return path


def soft_drawing(
    colours: Sequence[tuple[int, int, int]], width: int = 3, times: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Strokes on black, 90 x 120 x 3, drawn `times` as large and averaged; and where each pixel is
    inside one stroke alone, `[90, 120]` (0: not, k + 1: of colour k)."""
    page = Image.new("RGB", (120 * times, 90 * times))
    index = Image.new("L", page.size)
    for number, colour in enumerate(colours):
        top = (15 + 60 * number / len(colours)) * times
        line = [(10 * times, top), (110 * times, top + 11 * times)]
        for one, ink in ((page, colour), (index, number + 1)):
            ImageDraw.Draw(one).line(line, fill=ink, width=width * times)
    blocks = np.asarray(index).reshape(90, times, 120, times).swapaxes(1, 2).reshape(90, 120, -1)
    inside = np.where((blocks == blocks[..., :1]).all(-1), blocks[..., 0], 0)
    return np.asarray(page.resize((120, 90), Image.Resampling.BOX)), inside
