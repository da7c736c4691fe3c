"""Reading a `.caffemodel`: the blobs of each layer, by the layer's name.

A file is one NetParameter message of caffe.proto. Only what is needed of it is declared here, with
the field numbers of the original:

    NetParameter      layers = 2 (files before 2014-09), layer = 100
    V1LayerParameter  name = 4, blobs = 6              LayerParameter   name = 1, blobs = 7
    BlobProto         num, channels, height, width = 1, 2, 3, 4 (files before 2014-12); data = 5;
                      shape = 7; double_data = 8       BlobShape        dim = 1

`data` is a packed list of floats, which is the same on the wire as a run of bytes: declared as
bytes it is taken as it lies, instead of as a Python object for each of a hundred million numbers.

Nothing in such a file is executed, and no size that it claims is allocated: what is returned is as
large as what the file holds. Source: src/caffe/proto/caffe.proto of BVLC/caffe.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deeplab.errors import InputError

MOST_BYTES = 2**31 - 1  # of a protobuf message


def read(path: Path) -> dict[str, list[Tensor]]:
    """The float32 blobs of every layer that has some; a layer that comes twice keeps its first.

    Takes about twice the size of the file in memory.

    Raises InputError where the file is no NetParameter, is cut off or contradicts itself.
    """
    if path.stat().st_size > MOST_BYTES:
        raise InputError(
            f"{path}: {path.stat().st_size} bytes, and a .caffemodel has at most {MOST_BYTES}; "
            "check the path"
        )
    messages = _messages()
    net = messages["NetParameter"]()
    try:
        net.ParseFromString(path.read_bytes())
        layers = [*net.layer, *net.layers]
        blobs = {layer.name: layer.blobs for layer in reversed(layers) if layer.blobs}
    except (messages["DecodeError"], UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: not a readable .caffemodel ({error}); it may be cut off or of another "
            "format: fetch it again"
        ) from error
    if not blobs:
        raise InputError(
            f"{path}: not a .caffemodel with weights: no layer in it has any; a .prototxt or a "
            ".solverstate has none either"
        )
    return {
        name: [_tensor(path, name, blob) for blob in blobs[name]] for name in reversed(list(blobs))
    }


def _tensor(path: Path, layer: str, blob: Any) -> Tensor:
    """A blob as float32 in its shape."""
    double = bool(blob.double_data)
    raw = b"".join(blob.double_data if double else blob.data)
    dtype: np.dtype[np.floating] = np.dtype("<f8" if double else "<f4")
    dims = [blob.num, blob.channels, blob.height, blob.width]  # 0 where they are not said
    shape = list(blob.shape.dim) if blob.HasField("shape") else [n for n in dims if n]
    if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(raw):
        raise InputError(
            f"{path}: layer {layer[:120]}: {len(raw) // dtype.itemsize} numbers do not fill the "
            f"shape {shape[:8]}; the file is damaged: fetch it again"
        )
    return torch.from_numpy(np.frombuffer(raw, dtype).astype(np.float32).reshape(shape))


@cache
def _messages() -> dict[str, Any]:
    """The message classes, and protobuf's DecodeError."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from google.protobuf.message import DecodeError

    file = descriptor_pb2.FileDescriptorProto(name="deeplab_caffe.proto", package="deeplab.caffe")
    kinds = descriptor_pb2.FieldDescriptorProto
    declared: dict[str, list[tuple[str, int, int, bool, str]]] = {
        "BlobShape": [("dim", 1, kinds.TYPE_INT64, True, "")],
        "BlobProto": [
            *(
                (name, number, kinds.TYPE_INT32, False, "")
                for number, name in enumerate(("num", "channels", "height", "width"), 1)
            ),
            ("data", 5, kinds.TYPE_BYTES, True, ""),
            ("shape", 7, kinds.TYPE_MESSAGE, False, "BlobShape"),
            ("double_data", 8, kinds.TYPE_BYTES, True, ""),
        ],
        "V1LayerParameter": [
            ("name", 4, kinds.TYPE_STRING, False, ""),
            ("blobs", 6, kinds.TYPE_MESSAGE, True, "BlobProto"),
        ],
        "LayerParameter": [
            ("name", 1, kinds.TYPE_STRING, False, ""),
            ("blobs", 7, kinds.TYPE_MESSAGE, True, "BlobProto"),
        ],
        "NetParameter": [
            ("layers", 2, kinds.TYPE_MESSAGE, True, "V1LayerParameter"),
            ("layer", 100, kinds.TYPE_MESSAGE, True, "LayerParameter"),
        ],
    }
    for message_name, fields in declared.items():
        message = file.message_type.add(name=message_name)
        for name, number, kind, repeated, of in fields:
            field = message.field.add(name=name, number=number, type=kind)
            field.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if of:
                field.type_name = f".deeplab.caffe.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found: dict[str, Any] = {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"deeplab.caffe.{name}"))
        for name in declared
    }
    return found | {"DecodeError": DecodeError}
