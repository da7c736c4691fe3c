"""Names of the layers of other projects' checkpoints, translated to those of this package.

Each translation takes the tensors of one source of `deeplab.weights.sources` by their names there
and gives them by the names of this package; the first part of a name is `backbone`, `head` or
`taps`. Tensors with another use are dropped with a reason, so that every tensor of a file is
accounted for. Branches of a head are stacked in the order of their numbers, that of their rates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deeplab.model.multiscale import MSC, Resize

VGG_FEATURES = {  # torchvision's index in `features`
    0: "conv1_1", 2: "conv1_2", 5: "conv2_1", 7: "conv2_2",
    10: "conv3_1", 12: "conv3_2", 14: "conv3_3",
    17: "conv4_1", 19: "conv4_2", 21: "conv4_3",
    24: "conv5_1", 26: "conv5_2", 28: "conv5_3",
}  # fmt: skip
VGG_CLASSIFIER = {0: "head.fc6", 3: "head.fc7", 6: "head.classifier"}
BRANCHES = {"branch1": ("downsample.0", "downsample.1")} | {
    f"branch2{letter}": (f"conv{i}", f"bn{i}") for i, letter in enumerate("abc", 1)
}
TAP_LAYERS = {"conv": "conv1", "fc": "conv2", "ms": "classifier"}  # of MSc in Caffe
COUNTER = "num_batches_tracked"
COPIES = {"res075": 0.75, "res05": 0.5}  # in the names of Caffe's layers for other scales


@dataclass
class Translated:
    """`tensors` by the names of this package; `dropped`: names there, and why they are not used.

    `branches`: of how many each tensor was put together that has some. `scales`, `resize`: at which
    scales the network was trained to see pictures (MSC), and how it resizes them, where the names
    tell. `of_pictures`: the classifier is fully connected, one for whole pictures. `auxiliary`: of
    torchvision's auxiliary classifier, by the names there: "0.weight"; training may start from it.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    branches: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    scales: tuple[float, ...] | None = None
    resize: Resize = "caffe"
    of_pictures: bool = False
    auxiliary: dict[str, Tensor] = field(default_factory=dict)

    def stack(self, name: str, branches: Mapping[int, Tensor]) -> None:
        """Put the branches of a head together in the order of their numbers, from 0 or 1 on."""
        shapes = {tuple(tensor.shape) for tensor in branches.values()}
        numbers = sorted(branches)
        if numbers and numbers != list(range(min(numbers[0], 1), numbers[-1] + 1)):
            self.unknown.append(f"{name} (only the branches {', '.join(map(str, numbers[:9]))})")
        elif len(shapes) == 1 and () not in shapes:
            self.tensors[name] = torch.cat([branches[i] for i in numbers])
            self.branches[name] = len(numbers)
        elif shapes:
            self.unknown.append(f"{name} (branches of the shapes {sorted(shapes)[:4]})")


# PyTorch


def from_kazuto1011(state: Mapping[str, Tensor]) -> Translated:
    """`base.` or `scale.` in front, or nothing: the COCO weights, whose 1x1 classifier is `fc`.

    What has them in front is his MSC: scales 1, 0.75 and 0.5, resized without align_corners.
    Files with `scale.` are older: `proj` for `shortcut`, `aspp.stages.c0` for `aspp.c0`.
    """
    found = Translated()
    if any(name.startswith(("base.", "scale.")) for name in state):
        found.scales, found.resize = MSC, "torch"
    branches: dict[str, dict[int, Tensor]] = {"weight": {}, "bias": {}}
    for name, tensor in state.items():
        short = re.sub(r"^(base|scale)\.", "", name)
        if m := re.fullmatch(r"aspp\.(?:stages\.)?c(\d{1,4})\.(weight|bias)", short):
            branches[m[2]][int(m[1])] = tensor
        elif m := re.fullmatch(r"fc\.(weight|bias)", short):
            found.of_pictures |= tensor.ndim == 2
            _keep(found, name, f"head.classifier.{m[1]}", tensor)
        elif (ours := _kazuto1011_body(short)) is not None:
            _keep(found, name, ours, tensor)
        else:
            found.unknown.append(name)
    for kind, tensors in branches.items():
        found.stack(f"head.classifier.{kind}", tensors)
    return found


def _kazuto1011_body(name: str) -> str | None:
    if m := re.fullmatch(r"layer1\.conv1\.(conv|bn)\.(\w+)", name):
        return f"backbone.{m[1]}1.{m[2]}"
    part = "(reduce|conv3x3|increase|shortcut|proj)"
    m = re.fullmatch(rf"layer([2-5])\.block(\d{{1,4}})\.{part}\.(conv|bn)\.(\w+)", name)
    if m is None:
        return None
    number = {"reduce": 1, "conv3x3": 2, "increase": 3}.get(m[3])
    layer = f"{m[4]}{number}" if number else f"downsample.{int(m[4] == 'bn')}"
    return f"backbone.layer{int(m[1]) - 1}.{int(m[2]) - 1}.{layer}.{m[5]}"


def from_isht7(state: Mapping[str, Tensor]) -> Translated:
    """`Scale.` in front of Caffe-style ResNet names; the head is `layer5`.

    It is MSC. His sides are int(n * s) + 1: Caffe's at 4k + 1, as the 513 of his evaluation.
    """
    found = Translated(scales=MSC)
    branches: dict[str, dict[int, Tensor]] = {"weight": {}, "bias": {}}
    for name, tensor in state.items():
        short = name.removeprefix("Scale.")
        if m := re.fullmatch(r"layer5\.conv2d_list\.(\d{1,4})\.(weight|bias)", short):
            branches[m[2]][int(m[1])] = tensor
        elif _is_resnet(short):
            _keep(found, name, f"backbone.{short}", tensor)
        else:
            found.unknown.append(name)
    for kind, tensors in branches.items():
        found.stack(f"head.classifier.{kind}", tensors)
    return found


def from_torchvision(state: Mapping[str, Tensor]) -> Translated:
    """ResNets and VGG-16 for ImageNet, and DeepLabV3; auxiliary classifiers are dropped."""
    found = Translated()
    rates: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        if name.startswith("aux_classifier."):
            found.dropped[name] = "auxiliary classifier"
            found.auxiliary[name.removeprefix("aux_classifier.")] = tensor
        elif m := re.fullmatch(r"classifier\.0\.convs\.([1-3])\.([01])\.(\w+)", name):
            if m[3] == COUNTER:
                found.dropped[name] = "counter"
            else:
                layer = ("head.pyramid", "head.pyramid_bn")[int(m[2])]
                rates.setdefault(f"{layer}.{m[3]}", {})[int(m[1])] = tensor
        elif (ours := _torchvision_name(name)) is not None:
            found.of_pictures |= ours == "head.classifier.weight" and tensor.ndim == 2
            _keep(found, name, ours, _as_convolution(ours, tensor))
        else:
            found.unknown.append(name)
    for ours, tensors in rates.items():
        found.stack(ours, tensors)
    return found


def _torchvision_name(name: str) -> str | None:
    body = name.removeprefix("backbone.")
    if _is_resnet(body):
        return f"backbone.{body}"
    if m := re.fullmatch(r"(?:backbone|features)\.(\d{1,2}\.(?:\d|block)\..*)", name):
        return f"backbone.features.{m[1]}"  # of MobileNetV3
    if m := re.fullmatch(r"features\.(\d{1,4})\.(weight|bias)", name):
        layer = VGG_FEATURES.get(int(m[1]))
        return layer and f"backbone.{layer}.{m[2]}"
    if m := re.fullmatch(r"fc\.(weight|bias)", name):
        return f"head.classifier.{m[1]}"
    if m := re.fullmatch(r"classifier\.(0\.convs\.0|0\.convs\.4|0\.project)\.([0-2])\.(\w+)", name):
        layer = {"0.convs.0": "pointwise", "0.convs.4": "pooled", "0.project": "project"}[m[1]]
        first = 1 if m[1] == "0.convs.4" else 0  # behind the pooling
        if int(m[2]) - first not in (0, 1):
            return None
        return f"head.{layer}{'_bn' * (int(m[2]) - first)}.{m[3]}"
    if m := re.fullmatch(r"classifier\.(\d)\.(\w+)", name):
        of_v3 = {1: "head.conv", 2: "head.conv_bn", 4: "head.classifier"}
        ours = {**VGG_CLASSIFIER, **of_v3}.get(int(m[1]))
        return ours and f"{ours}.{m[2]}"
    return None


SMP = {  # layers of segmentation_models_pytorch's DeepLabV3Plus
    r"decoder\.aspp\.1\.([01])": "head.conv.{0}",
    r"decoder\.block2\.0\.([01])": "head.decode.{0}",
    r"decoder\.aspp\.0\.convs\.0\.([01])": "head.pointwise{bn}",
    r"decoder\.aspp\.0\.convs\.4\.([12])": "head.pooled{bn}",
    r"decoder\.aspp\.0\.project\.([01])": "head.project{bn}",
    r"decoder\.aspp\.(2)": "head.conv_bn",
    r"decoder\.block1\.([01])": "head.low{bn}",
    r"decoder\.block2\.(1)": "head.decode_bn",
    r"segmentation_head\.(0)": "head.classifier",
}


def from_smp(state: Mapping[str, Tensor]) -> Translated:
    """DeepLabV3Plus of segmentation_models_pytorch on a ResNet."""
    found = Translated()
    rates: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        layer, _, part = name.rpartition(".")
        if part == COUNTER:
            found.dropped[name] = "counter"
        elif name.startswith("encoder.") and _is_resnet(name.removeprefix("encoder.")):
            found.tensors[f"backbone.{name.removeprefix('encoder.')}"] = tensor
        elif m := re.fullmatch(r"decoder\.aspp\.0\.convs\.([1-3])\.(0\.0|0\.1|0|1)", layer):
            parts = {"0.0": "depthwise.weight", "0.1": "pointwise.weight", "0": "weight"}
            ours = f"head.pyramid.{parts[m[2]]}" if m[2] in parts else f"head.pyramid_bn.{part}"
            rates.setdefault(ours, {})[int(m[1])] = tensor
        elif (known := _smp_layer(layer)) is not None:
            found.tensors[f"{known}.{part}"] = tensor
        else:
            found.unknown.append(name)
    for ours, tensors in rates.items():
        found.stack(ours, tensors)
    return found


def _smp_layer(layer: str) -> str | None:
    for pattern, ours in SMP.items():
        if m := re.fullmatch(pattern, layer):
            first = "1" if "pooled" in ours else "0"  # behind the pooling
            return ours.format(m[1], bn="" if m[1] == first else "_bn")
    return None


EFFICIENTNET_LITE0 = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage
EFFICIENTNET = {  # layers of EfficientNet-PyTorch: timm's
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
SEPARABLE = {  # of the blocks of the first stage, which do not expand
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def efficientnet_in_timm(name: str) -> str | None:
    """timm's name of a tensor that EfficientNet-PyTorch names so in EfficientNet-Lite0, if it does.

    There the blocks are numbered through, in timm within each stage.
    """
    layer, _, part = name.rpartition(".")
    if layer in EFFICIENTNET:
        return f"{EFFICIENTNET[layer]}.{part}"
    m = re.fullmatch(r"_blocks\.(\d{1,2})\.(\w+)", layer)
    if m is None:
        return None
    block = int(m[1])
    for stage, count in enumerate(EFFICIENTNET_LITE0):
        if block < count:
            known = (INVERTED if stage else SEPARABLE).get(m[2])
            return known and f"blocks.{stage}.{block}.{known}.{part}"
        block -= count
    return None


def from_efficientnet(state: Mapping[str, Tensor]) -> Translated:
    """EfficientNet-Lite0 as EfficientNet-PyTorch names it: the body, an encoder of timm."""
    found = Translated()
    for name, tensor in state.items():
        theirs = efficientnet_in_timm(name)
        if theirs is None:
            found.unknown.append(name)
        elif theirs.startswith(("conv_head.", "bn2.", "classifier.")):
            found.dropped[name] = "classifier of whole pictures"
            found.of_pictures = True
        else:
            _keep(found, name, f"backbone.encoder.{theirs}", tensor)
    return found


def from_state_dict(state: Mapping[str, Tensor]) -> Translated:
    """The names of this package. A CRF layer's settings are chosen where the layer is built."""
    found = Translated()
    for name, tensor in state.items():
        if name.startswith("crf."):
            found.dropped[name] = "CRF layer"
        elif name.startswith(("backbone.", "head.", "taps.")):
            _keep(found, name, name, tensor)
        else:
            found.unknown.append(name)
    return found


def _is_resnet(name: str) -> bool:
    part = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
    block = rf"layer[1-4]\.\d{{1,4}}\.(conv[1-3]|bn[1-3]|downsample\.[01])\.{part}"
    return re.fullmatch(rf"((conv1|bn1)\.{part}|{block})", name) is not None


def _keep(found: Translated, name: str, ours: str, tensor: Tensor) -> None:
    """Counters of batches are left to the model: nothing reads them."""
    if ours.endswith(COUNTER):
        found.dropped[name] = "counter"
    else:
        found.tensors[ours] = tensor


def _as_convolution(ours: str, weight: Tensor) -> Tensor:
    """A fully connected weight as the convolution that does the same on a map; others as they are.

    fc6 of VGG-16 sees 7x7 pixels of 512 channels, the others one pixel.
    """
    if weight.ndim != 2:
        return weight
    rows, columns = weight.shape
    if ours == "head.fc6.weight" and columns == 512 * 49:
        return weight.reshape(rows, 512, 7, 7)
    return weight.reshape(rows, columns, 1, 1)


# Caffe


def from_caffe(layers: Mapping[str, list[Tensor]]) -> Translated:
    """Layers by their names in the DeepLab v1 and v2 prototxts and in VGG-16's and ResNet's own.

    A BatchNorm layer holds mean * f, variance * f and f; the Scale layer after it has the affine
    part. A bias in front of a batch normalisation (ResNet-50's conv1) goes into its mean. Copies of
    the layers for other scales say that the network is MSC.
    """
    found = Translated()
    biases: dict[str, Tensor] = {}
    branches: dict[str, dict[int, Tensor]] = {}
    copied: set[float] = set()
    for name, blobs in layers.items():
        if scale := _caffe_copy(name):
            found.dropped[name] = "the same weights for another scale"
            copied.add(scale)
        elif (norm := _caffe_norm(name)) is not None:
            _keep_norm(found, name, norm, blobs)
        elif (layer := _caffe_resnet(name)) is not None:
            found.tensors[f"{layer[0]}.weight"] = blobs[0]
            if len(blobs) > 1:
                biases[layer[1]] = blobs[1].flatten()
        elif re.fullmatch(r"conv[1-5]_[1-3]", name):
            _keep_convolution(found, name, f"backbone.{name}", blobs)
        elif m := re.fullmatch(r"(data|pool[1-4])_(conv|fc|ms)", name):
            tap = "image" if m[1] == "data" else m[1]
            _keep_convolution(found, name, f"taps.{tap}.{TAP_LAYERS[m[2]]}", blobs)
        elif (place := _caffe_head(name)) is not None:
            found.of_pictures |= place[0] == "head.classifier" and _is_flat(blobs[0])
            _keep_branch(found, branches, name, place, blobs)
        else:
            found.unknown.append(name)
    if copied:
        found.scales = (1.0, *sorted(copied, reverse=True))
    for ours, tensors in branches.items():
        found.stack(ours, tensors)
    for layer_norm, bias in biases.items():
        mean = found.tensors.get(f"{layer_norm}.running_mean")
        if mean is not None and mean.shape == bias.shape:
            mean -= bias
        else:
            found.unknown.append(f"{layer_norm} (a bias without a batch normalisation of its size)")
    return found


def _caffe_copy(name: str) -> float | None:
    """The scale that Caffe sees with this layer, a copy of another (MSC); None where it is none."""
    return next((scale for part, scale in COPIES.items() if part in name), None)


def _is_flat(weight: Tensor) -> bool:
    """Whether it is that of a fully connected layer: 1 x 1 x rows x columns before 2014-12."""
    return weight.ndim == 2 or (weight.ndim == 4 and weight.shape[:2] == (1, 1))


def _caffe_norm(name: str) -> str | None:
    """The batch normalisation here that a BatchNorm or Scale layer of a ResNet belongs to."""
    if name in ("bn_conv1", "scale_conv1"):
        return "backbone.bn1"
    if m := re.fullmatch(r"(?:bn|scale)(\w+)", name):
        layer = _caffe_resnet(f"res{m[1]}")
        return layer and layer[1]
    return None


def _caffe_resnet(name: str) -> tuple[str, str] | None:
    """Convolution and batch normalisation here of a convolution in a ResNet: res4b22_branch2a."""
    if name == "conv1":
        return "backbone.conv1", "backbone.bn1"
    m = re.fullmatch(r"res([2-5])([a-z])(\d{0,4})_(branch1|branch2[abc])", name)
    if m is None or (m[3] and m[2] != "b"):
        return None
    index = int(m[3]) if m[3] else ord(m[2]) - ord("a")
    block = f"backbone.layer{int(m[1]) - 1}.{index}"
    conv, norm = BRANCHES[m[4]]
    return f"{block}.{conv}", f"{block}.{norm}"


def _caffe_head(name: str) -> tuple[str, int] | None:
    """Layer here and number of the branch of fc6, fc7, fc8 (VGG-16) and fc1 (ResNet)."""
    if m := re.fullmatch(r"(fc6|fc7)(?:_(\d{1,4}))?", name):
        return f"head.{m[1]}", int(m[2] or 0)
    if m := re.fullmatch(r"fc8(?:_[a-zA-Z]\w*?)??(?:_(\d{1,4}))?", name):
        return "head.classifier", int(m[1] or 0)
    if m := re.fullmatch(r"fc1_\w+?(?:_c(\d{1,4}))?", name):
        return "head.classifier", int(m[1] or 0)
    return ("head.classifier", 0) if name == "fc1000" else None


def caffe_window(name: str) -> tuple[str, int] | None:
    """Module here, and number of the branch, of a convolution or pooling of body or head there.

    None for the others, the taps of MSc among them: their strides are 8 and 4 in Caffe's training
    network and 1 in its test network, for the same weights.
    """
    if _caffe_copy(name) is not None:
        return None
    if (layer := _caffe_resnet(name)) is not None:
        return layer[0], 0
    if re.fullmatch(r"conv[1-5]_[1-3]|pool[1-5]|pool5a", name):
        return f"backbone.{name}", 0
    return _caffe_head(name)


def _keep_norm(found: Translated, name: str, layer: str, blobs: list[Tensor]) -> None:
    if name.startswith("scale") and len(blobs) == 2:
        found.tensors |= {
            f"{layer}.weight": blobs[0].flatten(),
            f"{layer}.bias": blobs[1].flatten(),
        }
    elif name.startswith("bn") and len(blobs) == 3 and blobs[2].numel() == 1:
        factor = blobs[2].item() or 1.0  # 0: nothing was summed, and the sums are 0
        found.tensors |= {
            f"{layer}.running_mean": blobs[0].flatten() / factor,
            f"{layer}.running_var": blobs[1].flatten() / factor,
        }
    else:
        found.unknown.append(f"{name} ({len(blobs)} blobs)")


def _keep_convolution(found: Translated, name: str, layer: str, blobs: list[Tensor]) -> None:
    if len(blobs) != 2:
        found.unknown.append(f"{name} ({len(blobs)} blobs)")
        return
    found.tensors |= {f"{layer}.weight": blobs[0], f"{layer}.bias": blobs[1].flatten()}


def _keep_branch(
    found: Translated,
    branches: dict[str, dict[int, Tensor]],
    name: str,
    place: tuple[str, int],
    blobs: list[Tensor],
) -> None:
    layer, branch = place
    if len(blobs) != 2:
        found.unknown.append(f"{name} ({len(blobs)} blobs)")
        return
    weight, bias = blobs
    if weight.ndim == 4 and _is_flat(weight):
        weight = weight[0, 0]
    branches.setdefault(f"{layer}.weight", {})[branch] = _as_convolution(f"{layer}.weight", weight)
    branches.setdefault(f"{layer}.bias", {})[branch] = bias.flatten()


TRANSLATIONS: dict[str, Callable[..., Translated]] = {
    "caffemodel": from_caffe,
    "kazuto1011": from_kazuto1011,
    "isht7": from_isht7,
    "torchvision": from_torchvision,
    "smp": from_smp,
    "efficientnet": from_efficientnet,
    "state_dict": from_state_dict,
    "safetensors": from_state_dict,
}
