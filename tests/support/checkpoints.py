"""Checkpoints as other projects write them, made from a model by rules that the tests spell out.

The protobuf encoder here is written by hand from caffe.proto's field numbers, and the names of the
other ports from their module classes, so that a slip in deeplab.weights is not repeated.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deeplab.errors import InputError
from deeplab.model import DeepLab
from deeplab.model.heads import ASPP, Pointwise
from deeplab.model.resnet import ResNet
from deeplab.model.styles import Style
from deeplab.weights import Loaded, Source, load_weights

State = Mapping[str, Tensor]
Windows = dict[str, tuple[int, int, int, int]]
BLOCKS = (2, 1, 3, 1)
CLASSES = 3


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
    data = field(5, tensor.detach().contiguous().numpy().astype("<f4").tobytes())
    if not old:
        return data + field(7, field(1, b"".join(varint(n) for n in tensor.shape)))
    sizes = [1] * (4 - tensor.ndim) + list(tensor.shape)
    return data + b"".join(varint(i << 3) + varint(n) for i, n in enumerate(sizes, 1))


def caffemodel(
    layers: Mapping[str, Sequence[Tensor]], old: bool = False, windows: Windows | None = None
) -> bytes:
    """NetParameter with `layer` (new) or `layers` (old), and a layer without weights in front.

    windows: (kernel, stride, padding, rate) by name; poolings are layers without weights.
    """
    windows = windows or {}
    out = field(1, b"a network")
    for name in {"data": None, **windows, **layers}:
        content = field(4 if old else 1, name.encode())
        content += b"" if old else field(2, b"Convolution")
        content += b"".join(field(6 if old else 7, blob(b, old)) for b in layers.get(name, ()))
        if name in windows:
            content += window(name, windows[name], old)
        out += field(2 if old else 100, content)
    return out


def window(name: str, lengths: Sequence[int], old: bool) -> bytes:
    """ConvolutionParameter, whose rate was `hole` (17) in the old form, or PoolingParameter."""
    kernel, stride, padding, rate = lengths
    if name.startswith("pool"):
        numbers = {2: kernel, 3: stride, 4: padding}
        return field(19 if old else 121, _varints(numbers))
    numbers = {3: padding, 4: kernel, 6: stride} | ({17 if old else 18: rate} if rate > 1 else {})
    return field(10 if old else 106, _varints(numbers))


def _varints(numbers: Mapping[int, int]) -> bytes:
    return b"".join(varint(key << 3) + varint(number) for key, number in numbers.items())


def vgg_windows(fc6: Mapping[str, tuple[int, int]], pool5a: bool) -> Windows:
    """As in the released prototxts on VGG-16; fc6: kernel and rate of each branch, by its name."""
    counts = enumerate((2, 2, 3, 3), 1)
    found = {f"conv{i}_{j}": (3, 1, 1, 1) for i, count in counts for j in range(1, count + 1)}
    found |= {f"conv5_{j}": (3, 1, 2, 2) for j in (1, 2, 3)}
    found |= {f"pool{i}": (3, 2 if i < 4 else 1, 1, 1) for i in range(1, 6)}
    for name, (kernel, rate) in fc6.items():
        found[name] = (kernel, 1, rate * (kernel - 1) // 2, rate)
        found[name.replace("6", "7", 1)] = (1, 1, 0, 1)
        found[name.replace("fc6", "fc8_voc12")] = (1, 1, 0, 1)
    return found | ({"pool5a": (3, 1, 1, 1)} if pool5a else {})


def resnet_windows(blocks: Sequence[int], head: Mapping[str, int]) -> Windows:
    """As in the released prototxt on ResNet-101; head: the rate of each branch, by its name."""
    found = {"conv1": (7, 2, 3, 1), "pool1": (3, 2, 1, 1)}
    stages = zip(blocks, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)
    for stage, (count, stride, rate) in enumerate(stages, 2):
        for i in range(count):
            name = f"res{stage}{chr(ord('a') + i)}"
            first = stride if i == 0 else 1
            if i == 0:
                found[f"{name}_branch1"] = (1, first, 0, 1)
            found[f"{name}_branch2a"] = (1, first, 0, 1)
            found[f"{name}_branch2b"] = (3, 1, rate, rate)
            found[f"{name}_branch2c"] = (1, 1, 0, 1)
    return found | {name: (3, 1, rate, rate) for name, rate in head.items()}


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


def with_statistics(model: Any) -> Any:
    """With random norms and biases."""
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_var", "weight")) and tensor.ndim == 1:
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif tensor.ndim == 1:
            nn.init.normal_(tensor)
    return model


def small_network(
    seed: int, *, classes: int = CLASSES, head: str = "aspp", style: Style = "caffe"
) -> DeepLab:
    """A ResNet in small, with statistics that matter."""
    torch.manual_seed(seed)
    backbone = ResNet(BLOCKS, width=4, frozen_bn=True, style=style)
    rows = (backbone.out_channels, classes)
    made = ASPP(*rows, (1, 2, 3, 4)) if head == "aspp" else Pointwise(*rows)
    config = {"model": "small", "num_classes": classes, "style": style}
    return with_statistics(DeepLab(backbone, made, config=config).eval())


def output(model: DeepLab, size: tuple[int, int] = (37, 50)) -> Tensor:
    """On one picture of noise, the same for all."""
    torch.manual_seed(9)
    with torch.no_grad():
        return model(torch.randn(1, 3, *size))


def caffe_v2(model: DeepLab, letters: bool = True) -> dict[str, list[Tensor]]:
    """The layers of the authors' network on ResNet."""
    state = model.state_dict()
    layers = caffe_resnet(state, BLOCKS, letters=letters)
    for i, pair in enumerate(branches(state, "head.classifier", 4)):
        layers[f"fc1_voc12_c{i}"] = pair
    return layers


def kazuto1011(
    model: DeepLab, prefix: str = "base.", aspp: str = "aspp.c"
) -> OrderedDict[str, Tensor]:
    state = renamed(model.state_dict(), lambda name: prefix + kazuto1011_name(name))
    for i, (weight, bias) in enumerate(branches(model.state_dict(), "head.classifier", 4)):
        state |= {f"{prefix}{aspp}{i}.weight": weight, f"{prefix}{aspp}{i}.bias": bias}
    return OrderedDict(state)


def isht7(model: DeepLab) -> OrderedDict[str, Tensor]:
    state = renamed(model.state_dict(), lambda name: f"Scale.{name}")
    for i, (weight, bias) in enumerate(branches(model.state_dict(), "head.classifier", 4)):
        layer = f"Scale.layer5.conv2d_list.{i}"
        state |= {f"{layer}.weight": weight, f"{layer}.bias": bias}
    return OrderedDict(state)


def filled(
    path: Path, content: bytes | Mapping[str, Any], **options: Any
) -> tuple[DeepLab, Loaded]:
    """Another small network with the weights of a file of that content, and what was taken."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    model = small_network(2, **options)
    return model, load_weights(model, path)


def refused(path: Path, model: DeepLab | None = None, source: Source = "auto") -> str:
    """The message of the InputError, one line, after which the model is as it was."""
    model = small_network(2) if model is None else model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_weights(model, path, source)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert str(caught.value).startswith((f"{path}: ", f"{path} must be "))
    assert str(caught.value).isprintable()
    return str(caught.value)
