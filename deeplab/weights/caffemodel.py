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

Layers, blobs and their numbers are cut out of the mapped file where they lie, and protobuf parses
what is left of a message, some hundred bytes. A network parsed whole would lie in memory three
times, and a file of empty messages in sixty times its size. So memory is bounded: what is returned
is at most as large as the file (twice that where it has doubles), whatever sizes it claims.

Nothing in such a file is executed. Source: src/caffe/proto/caffe.proto of BVLC/caffe.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deeplab.errors import InputError

MOST_FIELDS = 100_000  # of one message; a network has a field for each of its few hundred layers
MOST_REST = 2**16  # bytes of a layer or blob without its numbers; real ones have hundreds
MOST_AXES = 32  # of a blob, in Caffe too
VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5  # wire types
NET = {"layers": 2, "layer": 100}
V1_LAYER = {"of_2013": 1, "blobs": 6}
LAYER = {"blobs": 7}
BLOB = {"data": 5, "diff": 6, "double_data": 8, "double_diff": 9}


class _Damaged(ValueError):
    """What is wrong with the file, in a phrase."""


def read(path: Path) -> dict[str, list[Tensor]]:
    """The float32 blobs of every layer that has some; a layer that comes twice keeps its first.

    Raises InputError where the file is no NetParameter, is cut off or contradicts itself.
    """
    found: dict[str, list[Tensor]] = {}
    with _damage_named(path):
        for layer, blobs in _layers(path):
            if blobs and layer.name not in found:
                found[layer.name] = [_blob(blob, layer.name) for blob in blobs]
    if not found:
        raise InputError(
            f"{path}: not a .caffemodel with weights: no layer in it has any; a .prototxt or a "
            ".solverstate has none either"
        )
    return found


@dataclass(frozen=True)
class Window:
    """How a convolution or a pooling moves over its input; in pixels of that input."""

    kernel: int
    stride: int
    padding: int
    rate: int = 1


def windows(path: Path) -> dict[str, Window]:
    """Those of all convolutions and poolings whose kernel is said; raises as `read` does."""
    found: dict[str, Window] = {}
    with _damage_named(path):
        for layer, _blobs in _layers(path):
            window = _window(layer)
            if window.kernel:
                found.setdefault(layer.name, window)
    return found


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (_Damaged, OSError) as error:
        raise InputError(
            f"{path}: not a readable .caffemodel ({error}); it may be cut off or of another "
            "format: fetch it again"
        ) from error


def _layers(path: Path) -> Iterator[tuple[Any, list[memoryview]]]:
    """Every layer, parsed without its blobs, and the blobs."""
    # An empty file cannot be mapped. Nor does it hold a layer.
    mapped = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    _rest, parts = _cut(mapped.data, NET)
    for form, numbers, message in (
        ("layers", V1_LAYER, "V1LayerParameter"),
        ("layer", LAYER, "LayerParameter"),
    ):
        for layer in parts[form]:
            rest, members = _cut(layer, numbers)
            if members.get("of_2013"):
                raise _Damaged(
                    "its layers are in the form of 2013, which Caffe's upgrade_net_proto_binary "
                    "turns into today's"
                )
            said = _parse(message, rest)
            if not isinstance(said.name, str):  # proto2 gives what is no UTF-8 as bytes
                raise _Damaged(f"a layer's name is no text: {said.name[:40]!r}")
            yield said, members["blobs"]


def _window(layer: Any) -> Window:
    """Kernel 0 where the layer is neither convolution nor pooling, or does not say."""
    if layer.HasField("pooling_param"):
        pool = layer.pooling_param
        return Window(pool.kernel_size, pool.stride or 1, pool.pad)
    said = layer.convolution_param  # empty in other layers
    kernel, stride, padding, rate = (
        values[0] if values else 0
        for values in (said.kernel_size, said.stride, said.pad, said.dilation)
    )
    return Window(kernel, stride or 1, padding, rate or said.hole or 1)


def _blob(blob: memoryview, layer: str) -> Tensor:
    """A blob as float32 in its shape."""
    rest, numbers = _cut(blob, BLOB)
    said = _parse("BlobProto", rest)
    dims = [said.num, said.channels, said.height, said.width]  # 0 where they are not said
    shape = list(said.shape.dim) if said.HasField("shape") else [n for n in dims if n]
    dtype = np.dtype("<f8" if numbers["double_data"] else "<f4")
    runs = numbers["double_data"] or numbers["data"]
    size = sum(len(run) for run in runs)
    of_shape = math.prod(shape[:MOST_AXES]) * dtype.itemsize
    if len(shape) > MOST_AXES or any(n < 0 for n in shape) or of_shape != size:
        raise _Damaged(
            f"layer {layer[:120]}: {size // dtype.itemsize} numbers do not fill the shape "
            f"{shape[:8]}"
        )
    if any(len(run) % dtype.itemsize for run in runs):
        raise _Damaged(f"layer {layer[:120]}: half a number")
    values = np.empty(size // dtype.itemsize, np.float32)
    filled = 0
    for run in runs:
        part = np.frombuffer(run, dtype)
        values[filled : filled + len(part)] = part
        filled += len(part)
    return torch.from_numpy(values.reshape(shape))


def _cut(message: memoryview, numbers: dict[str, int]) -> tuple[bytes, dict[str, list[memoryview]]]:
    """The fields of these numbers as they lie in the message, and the bytes of all others."""
    names = {number: name for name, number in numbers.items()}
    cut: dict[str, list[memoryview]] = {name: [] for name in numbers}
    rest, size = [], 0
    for count, (number, wire, field, content) in enumerate(_fields(message)):
        if count == MOST_FIELDS:
            raise _Damaged(f"more than {MOST_FIELDS} fields in one message")
        if number in names and wire == BYTES:
            cut[names[number]].append(content)
        elif numbers is not NET:  # of the network itself nothing else is wanted
            size += len(field)
            if size > MOST_REST:
                raise _Damaged(f"a layer with more than {MOST_REST} bytes that are no weights")
            rest.append(field)
    return b"".join(rest), cut


def _fields(message: memoryview) -> Iterator[tuple[int, int, memoryview, memoryview]]:
    """(number, wire type, whole field, its content) of each field of a message, in order."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            end = _varint(message, at)[1]
        elif wire == BYTES:
            size, at = _varint(message, at)
            end = at + size
        elif wire in (FIXED_64, FIXED_32):
            end = at + (8 if wire == FIXED_64 else 4)
        else:
            raise _Damaged(f"byte {start} begins no field of a message")
        if number == 0 or end > len(message):
            raise _Damaged("a field reaches beyond its end" if number else "a field without number")
        yield number, wire, message[start:end], message[at:end]
        at = end


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that begins there, seven bits a byte, and where it ends."""
    value = 0
    for i in range(10):
        if at + i >= len(message):
            raise _Damaged("it ends within a field")
        byte = message[at + i]
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, at + i + 1
    raise _Damaged("a number of more than ten bytes")


def _parse(name: str, content: bytes) -> Any:
    messages = _messages()
    message = messages[name]()
    try:
        message.ParseFromString(content)
    except (messages["DecodeError"], UnicodeDecodeError) as error:
        raise _Damaged(str(error)) from error
    return message


@cache
def _messages() -> dict[str, Any]:
    """The message classes for what is left after cutting, and protobuf's DecodeError."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from google.protobuf.message import DecodeError

    kinds = descriptor_pb2.FieldDescriptorProto
    one, many = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
    declared: dict[str, list[tuple[str, int, int, int]]] = {
        "BlobShape": [("dim", 1, kinds.TYPE_INT64, many)],
        "BlobProto": [
            ("num", 1, kinds.TYPE_INT32, one),
            ("channels", 2, kinds.TYPE_INT32, one),
            ("height", 3, kinds.TYPE_INT32, one),
            ("width", 4, kinds.TYPE_INT32, one),
            ("shape", 7, kinds.TYPE_MESSAGE, one),
        ],
        "ConvolutionParameter": [
            ("pad", 3, kinds.TYPE_UINT32, many),
            ("kernel_size", 4, kinds.TYPE_UINT32, many),
            ("stride", 6, kinds.TYPE_UINT32, many),
            ("hole", 17, kinds.TYPE_UINT32, one),
            ("dilation", 18, kinds.TYPE_UINT32, many),
        ],
        "PoolingParameter": [
            ("kernel_size", 2, kinds.TYPE_UINT32, one),
            ("stride", 3, kinds.TYPE_UINT32, one),
            ("pad", 4, kinds.TYPE_UINT32, one),
        ],
        "V1LayerParameter": [
            ("name", 4, kinds.TYPE_STRING, one),
            ("convolution_param", 10, kinds.TYPE_MESSAGE, one),
            ("pooling_param", 19, kinds.TYPE_MESSAGE, one),
        ],
        "LayerParameter": [
            ("name", 1, kinds.TYPE_STRING, one),
            ("convolution_param", 106, kinds.TYPE_MESSAGE, one),
            ("pooling_param", 121, kinds.TYPE_MESSAGE, one),
        ],
    }
    of_message = {
        "shape": "BlobShape",
        "convolution_param": "ConvolutionParameter",
        "pooling_param": "PoolingParameter",
    }
    file = descriptor_pb2.FileDescriptorProto(name="deeplab_caffe.proto", package="deeplab.caffe")
    for message_name, fields in declared.items():
        message = file.message_type.add(name=message_name)
        for name, number, kind, label in fields:
            field = message.field.add(name=name, number=number, type=kind, label=label)
            if name in of_message:
                field.type_name = f".deeplab.caffe.{of_message[name]}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found: dict[str, Any] = {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"deeplab.caffe.{name}"))
        for name in declared
    }
    return found | {"DecodeError": DecodeError}
