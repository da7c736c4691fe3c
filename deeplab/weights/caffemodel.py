"""Reading a `.caffemodel`: the blobs of each layer, and how it moves, by the layer's name.

A file is one NetParameter message of caffe.proto. Only what is needed of it is declared here, with
the field numbers of the original; `layers` is the form of files before September 2014:

    NetParameter          layers = 2, layer = 100
    V1LayerParameter      layer = 1 (of 2013), name = 4, blobs = 6, convolution_param = 10,
                          pooling_param = 19
    LayerParameter        name = 1, blobs = 7, convolution_param = 106, pooling_param = 121
    ConvolutionParameter  pad = 3, kernel_size = 4, stride = 6, hole = 17, dilation = 18
    PoolingParameter      kernel_size = 2, stride = 3, pad = 4
    BlobProto             num, channels, height, width = 1, 2, 3, 4 (files before December 2014);
                          data = 5; diff = 6; shape = 7 { dim = 1 }; double_data = 8;
                          double_diff = 9

`hole` is the rate in DeepLab v1's own Caffe. Today's Caffe has a switch under that number: 1 at
most, so that what is more can only be a rate.

The few fields are decoded here, from the mapped file: the blobs' numbers are looked at where they
lie, and no size is believed before it is compared with the file's. A network that protobuf parses
whole lies in memory three times, and a file of empty messages in sixty times its size.

Sources: src/caffe/proto/caffe.proto of BVLC/caffe; "Encoding" in the documentation of Protocol
Buffers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deeplab.errors import InputError

MOST_FIELDS = 100_000  # of one message; a network has a field for each of its few hundred layers
MOST_AXES = 32  # of a blob, in Caffe too
VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5  # wire types


class Form(NamedTuple):
    """The numbers of a layer's fields."""

    name: int
    blobs: int
    convolution: int
    pooling: int


FORMS = {2: Form(4, 6, 10, 19), 100: Form(1, 7, 106, 121)}  # of `layers` and `layer`
Fields = Mapping[int, list[int | memoryview]]


@dataclass(frozen=True)
class Window:
    """How a convolution or a pooling moves over its input; in pixels of that input."""

    kernel: int
    stride: int
    padding: int
    rate: int = 1


@dataclass(frozen=True)
class Layer:
    """A layer and its blobs as they lie in the file.

    window: None where it is neither convolution nor pooling, or does not say its kernel.
    """

    name: str
    blobs: list[memoryview]
    window: Window | None


def read(path: Path) -> dict[str, list[Tensor]]:
    """The float32 blobs of every layer that has some; a layer that comes twice keeps its first.

    Raises InputError where the file is no NetParameter, is cut off or contradicts itself.
    """
    found: dict[str, list[Tensor]] = {}
    with _damage_named(path):
        for layer in _layers(path):
            if layer.blobs and layer.name not in found:
                found[layer.name] = [_blob(blob, layer.name) for blob in layer.blobs]
    if not found:
        raise InputError(
            f"{path}: not a .caffemodel with weights: no layer in it has any; a .prototxt or a "
            ".solverstate has none either"
        )
    return found


def windows(path: Path) -> dict[str, Window]:
    """Those of all convolutions and poolings whose kernel is said; raises as `read` does."""
    found: dict[str, Window] = {}
    with _damage_named(path):
        for layer in _layers(path):
            if layer.window is not None:
                found.setdefault(layer.name, layer.window)
    return found


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path}: not a readable .caffemodel ({error}); it may be cut off or of another "
            "format: fetch it again"
        ) from error


def _layers(path: Path) -> Iterator[Layer]:
    # An empty file cannot be mapped. Nor does it hold a layer.
    mapped = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    net = _fields(mapped.data)
    for number, form in FORMS.items():
        for message in _messages(net, number):
            yield _layer(_fields(message), form)


def _layer(fields: Fields, form: Form) -> Layer:
    if form.name != 1 and _messages(fields, 1):
        raise ValueError("its layers are of 2013: run Caffe's upgrade_net_proto_binary on it")
    name = bytes((_messages(fields, form.name) or [memoryview(b"")])[-1])
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise ValueError(f"a layer's name is no text: {name[:40]!r}") from None
    return Layer(text, _messages(fields, form.blobs), _window(fields, form))


def _window(fields: Fields, form: Form) -> Window | None:
    for message in _messages(fields, form.pooling):
        pool = _fields(message)
        kernel, stride, padding = (_first(pool, number) for number in (2, 3, 4))
        return Window(kernel, stride or 1, padding) if kernel else None
    for message in _messages(fields, form.convolution):
        said = _fields(message)
        padding, kernel, stride, hole, rate = (_first(said, n) for n in (3, 4, 6, 17, 18))
        return Window(kernel, stride or 1, padding, rate or hole or 1) if kernel else None
    return None


def _blob(blob: memoryview, layer: str) -> Tensor:
    """A blob as float32 in its shape."""
    fields = _fields(blob)
    shapes = _messages(fields, 7)
    dims = [_first(fields, number) for number in (1, 2, 3, 4)]  # 0 where they are not said
    shape = _integers(_fields(shapes[-1]), 1) if shapes else [n for n in dims if n]
    runs, doubles = _messages(fields, 5), _messages(fields, 8)
    dtype = np.dtype("<f8" if doubles else "<f4")
    runs = doubles or runs
    size = sum(len(run) for run in runs) / dtype.itemsize
    if len(shape) > MOST_AXES or math.prod(shape) != size:
        what = f"{int(size)} numbers do not fill the shape {shape[:8]}"
        raise ValueError(f"layer {layer[:120]}: {what}")
    if any(len(run) % dtype.itemsize for run in runs):
        raise ValueError(f"layer {layer[:120]}: half a number")
    parts = [np.empty(0, dtype), *(np.frombuffer(run, dtype) for run in runs)]
    values = np.concatenate(parts, dtype=np.float32, casting="same_kind")
    return torch.from_numpy(values.reshape(shape))


def _fields(message: memoryview) -> Fields:
    """The integers, and the strings and messages, of each number in a message, in order."""
    found: dict[int, list[int | memoryview]] = {}
    at = count = 0
    while at < len(message):
        start = at
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        content: int | memoryview
        if wire == VARINT:
            content, at = _varint(message, at)
        elif wire in (BYTES, FIXED_64, FIXED_32):
            size = {FIXED_64: 8, FIXED_32: 4}.get(wire, 0)
            if wire == BYTES:
                size, at = _varint(message, at)
            content = message[at : at + size]
            at += size
        else:
            raise ValueError(f"byte {start} begins no field of a message")
        if number == 0 or at > len(message):
            what = "a field reaches beyond its end" if number else "a field without number"
            raise ValueError(what)
        if wire in (VARINT, BYTES):
            found.setdefault(number, []).append(content)
        count += 1
        if count > MOST_FIELDS:
            raise ValueError(f"more than {MOST_FIELDS} fields in one message")
    return found


def _messages(fields: Fields, number: int) -> list[memoryview]:
    """The fields of a number that are strings, messages or packed numbers."""
    return [content for content in fields.get(number, ()) if isinstance(content, memoryview)]


def _first(fields: Fields, number: int) -> int:
    """The first integer of a number, 0 where there is none."""
    return next(iter(_integers(fields, number)), 0)


def _integers(fields: Fields, number: int) -> list[int]:
    """The integers of a number, one by one or packed; at most one more than `MOST_AXES`."""
    found: list[int] = []
    for content in fields.get(number, ()):
        at = 0
        if isinstance(content, int):
            found.append(content)
            continue
        while at < len(content) and len(found) <= MOST_AXES:
            integer, at = _varint(content, at)
            found.append(integer)
    return found[: MOST_AXES + 1]


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that begins there, seven bits a byte, and where it ends."""
    value = 0
    for i in range(10):
        if at + i >= len(message):
            raise ValueError("it ends within a field")
        byte = message[at + i]
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, at + i + 1
    raise ValueError("a number of more than ten bytes")
