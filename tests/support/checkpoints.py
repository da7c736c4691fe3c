"""Checkpoints as other projects write them, made from a model by rules that the tests spell out.

The protobuf encoder here is written by hand from caffe.proto's field numbers, and the names of the
other ports from their module classes, so that a slip in deeplab.weights is not repeated.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, content: bytes) -> bytes:
    """A field of wire type 2: a string, a message, or packed numbers."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob(tensor: Tensor, old: bool) -> bytes:
    """BlobProto: with a BlobShape, or with the four sizes of files before 2014-12."""
    values = tensor.flatten().tolist()
    data = field(5, struct.pack(f"<{len(values)}f", *values))
    if not old:
        return data + field(7, field(1, b"".join(varint(n) for n in tensor.shape)))
    sizes = [1] * (4 - tensor.ndim) + list(tensor.shape)
    return data + b"".join(varint(i << 3) + varint(n) for i, n in enumerate(sizes, 1))


def caffemodel(layers: Mapping[str, Sequence[Tensor]], old: bool = False) -> bytes:
    """NetParameter with `layer` (new) or `layers` (old), and a layer without weights in front."""
    out = field(1, b"a network")
    for name, blobs in {"data": [], **layers}.items():
        content = field(4 if old else 1, name.encode())
        content += b"" if old else field(2, b"Convolution")
        content += b"".join(field(6 if old else 7, blob(b, old)) for b in blobs)
        out += field(2 if old else 100, content)
    return out


def caffe_resnet(
    state: State, blocks: Sequence[int], factor: float = 999.98, letters: bool = True
) -> dict[str, list[Tensor]]:
    """Layers of a ResNet in Caffe; res4a, res4b, ... or (not `letters`) res4a, res4b1, ..."""
    layers: dict[str, list[Tensor]] = {}

    def normalised(conv: str, bn: str, name: str, tail: str) -> None:
        layers[name] = [state[f"{conv}.weight"]]
        mean, var = state[f"{bn}.running_mean"], state[f"{bn}.running_var"]
        layers[f"bn{tail}"] = [mean * factor, var * factor, torch.tensor([factor])]
        layers[f"scale{tail}"] = [state[f"{bn}.weight"], state[f"{bn}.bias"]]

    normalised("backbone.conv1", "backbone.bn1", "conv1", "_conv1")
    for stage, count in enumerate(blocks, 1):
        for i in range(count):
            here = f"backbone.layer{stage}.{i}"
            block = "a" if i == 0 else chr(ord("a") + i) if letters else f"b{i}"
            name = f"{stage + 1}{block}"
            if i == 0:
                path = f"{here}.downsample"
                normalised(f"{path}.0", f"{path}.1", f"res{name}_branch1", f"{name}_branch1")
            for k, part in enumerate("abc", 1):
                tail = f"{name}_branch2{part}"
                normalised(f"{here}.conv{k}", f"{here}.bn{k}", f"res{tail}", tail)
    return layers


def branches(state: State, layer: str, count: int) -> list[list[Tensor]]:
    """[weight, bias] of each branch that the model keeps stacked."""
    weights, biases = (state[f"{layer}.{kind}"].chunk(count) for kind in ("weight", "bias"))
    return [list(pair) for pair in zip(weights, biases, strict=True)]


def renamed(state: State, rename: Callable[[str], str]) -> dict[str, Tensor]:
    """The backbone's tensors under other names; the head is added by the caller."""
    return {
        rename(name.removeprefix("backbone.")): tensor.clone()
        for name, tensor in state.items()
        if name.startswith("backbone.")
    }


def kazuto1011_name(name: str) -> str:
    """base.layer1.conv1.{conv,bn}, base.layer3.block2.{reduce,conv3x3,increase,shortcut}...."""
    parts = name.split(".")
    if parts[0] in ("conv1", "bn1"):
        return f"layer1.conv1.{parts[0][:-1]}.{parts[1]}"
    stage, block = int(parts[0].removeprefix("layer")) + 1, int(parts[1]) + 1
    if parts[2] == "downsample":
        inner = f"shortcut.{('conv', 'bn')[int(parts[3])]}"
    else:
        inner = f"{('reduce', 'conv3x3', 'increase')[int(parts[2][-1]) - 1]}.{parts[2][:-1]}"
    return f"layer{stage}.block{block}.{inner}.{parts[-1]}"
