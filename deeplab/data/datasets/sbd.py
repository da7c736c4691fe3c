"""SBD's label maps, which come as MATLAB files (level 5): what is needed of that format.

    benchmark_RELEASE/dataset/cls/2008_000002.mat     struct GTcls, field Segmentation, [H, W]

A file is a header of 128 bytes and then elements: type and number of bytes, the bytes, zeros up to
a multiple of 8. Up to four bytes can stand in a tag of eight itself. A compressed element holds
another one. An array is an element of elements: flags, dimensions, name; then its values column by
column, or, for a struct, the length of a field's name, the names, and an array for each.
Sources: Hariharan et al., ICCV 2011; The MathWorks, MAT-File Format, level 5.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deeplab.errors import InputError

_ARRAY, _COMPRESSED, _STRUCT = 14, 15, 2
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}
_MAX_BYTES = 1 << 26  # SBD's own have some thousands; a small file may claim to unpack to anything

Element = tuple[int, memoryview]


def read_segmentation(path: Path) -> npt.NDArray[np.uint8]:
    """The values of a label map, uint8 `[H, W]`; InputError where it is missing or damaged."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror})") from error
    try:
        return _segmentation(data)
    except (ValueError, OverflowError, IndexError, struct.error, zlib.error) as error:
        raise InputError(
            f"{path}: not one of SBD's label maps, or damaged ({error}); unpack SBD again"
        ) from error


def _segmentation(data: bytes) -> npt.NDArray[np.uint8]:
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None or struct.unpack(f"{order}H", data[124:126])[0] != 0x0100:
        raise ValueError("no MATLAB file of level 5")
    for kind, content in _elements(memoryview(data)[128:], order):
        if kind == _COMPRESSED:
            kind, content = next(_elements(_unpacked(content), order), (0, content))
        if kind == _ARRAY:
            flags, _, name, *rest = _elements(content, order)
            if bytes(name[1]) == b"GTcls" and int(_numbers(flags, order)[0]) & 0xFF == _STRUCT:
                return _labels(_field("Segmentation", rest, order), order)
    raise ValueError("it holds no struct GTcls")


def _elements(data: memoryview, order: str) -> Iterator[Element]:
    """Type and content of the elements that lie behind one another in `data`."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        start, padding = at + 8, -size % 8
        if kind >> 16:  # a small one: the size is in the upper half, the bytes follow at once
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
            padding = 4 - size
        if start + size > len(data) or padding < 0:
            raise ValueError("it ends early")
        yield kind, data[start : start + size]
        at = start + size + (0 if kind == _COMPRESSED else padding)


def _unpacked(content: memoryview) -> memoryview:
    unpacking = zlib.decompressobj()
    unpacked = unpacking.decompress(content, _MAX_BYTES)
    if unpacking.unconsumed_tail:
        raise ValueError("it unpacks to more than a label map")
    return memoryview(unpacked)


def _field(name: str, parts: list[Element], order: str) -> memoryview:
    """The content of the array that is the field of a struct with one entry."""
    length = int(_numbers(parts[0], order)[0])
    names = bytes(parts[1][1])
    if length < 1:
        raise ValueError("a struct without names")
    fields = [names[i : i + length].split(b"\0")[0] for i in range(0, len(names), length)]
    if name.encode() not in fields:
        raise ValueError(f"no field {name}")
    return parts[2 + fields.index(name.encode())][1]


def _labels(array: memoryview, order: str) -> npt.NDArray[np.uint8]:
    _, dimensions, _, values = _elements(array, order)
    shape = [int(side) for side in _numbers(dimensions, order)[:3]]
    stored = _numbers(values, order)
    if len(shape) != 2 or min(shape) < 1 or shape[0] * shape[1] != len(stored):
        raise ValueError(f"an array of {shape} with {len(stored)} values")
    if not ((stored >= 0) & (stored <= 255)).all() or (stored % 1).any():
        raise ValueError("values that are no labels")
    return np.ascontiguousarray(stored.astype(np.uint8).reshape(shape, order="F"))


def _numbers(element: Element, order: str) -> npt.NDArray[Any]:
    kind, content = element
    if kind not in _NUMBERS:
        raise ValueError(f"an element of type {kind} where numbers are expected")
    return np.frombuffer(content, order + _NUMBERS[kind])
