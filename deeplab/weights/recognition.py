"""Which model a file of weights is of, where the file does not say: what its tensors tell.

Depth, width and kind of the body, kernels and branches of the head and the number of classes follow
from names and shapes; a .caffemodel tells rates and poolings too. What is left, the style, rates,
scales and how pictures are resized, is that of the models that the source has published, and is
told in one line. Where several models of this package fit all the same, none is chosen.

A classifier of one score tells two classes apart by its sigmoid: a softmax of one is always 1.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deeplab.errors import InputError
from deeplab.model import FAMILIES, MODELS, DeepLab, build
from deeplab.model.backbones import (
    BACKBONES,
    Backbone,
    Body,
    MobileNetV3Body,
    ResNetBody,
    VGG16Body,
)
from deeplab.model.table import V3, Line
from deeplab.weights import file, registry
from deeplab.weights.loading import Loaded, copy_checkpoint
from deeplab.weights.names import COUNTER, caffe_window
from deeplab.weights.sources import Checkpoint, Source, check_source, is_own, read_checkpoint

PUBLISHED = ("deeplab_v2_resnet101", "deeplab_v2_vgg16")  # of all with several branches
FROM = {
    "caffemodel": "of Caffe",
    "kazuto1011": "of kazuto1011/deeplab-pytorch",
    "isht7": "of isht7/pytorch-deeplab-resnet",
    "torchvision": "of torchvision",
    "smp": "of segmentation_models_pytorch",
    "efficientnet": "of EfficientNet-Lite0",
    "state_dict": "a state dict of this package",
    "safetensors": "without metadata",
}


@dataclass(frozen=True)
class Opened:
    """A model with the weights of a file.

    Attributes:
        model: on the CPU, in evaluation mode.
        loaded: what was taken from the file.
        metadata: what the file says about itself; of another project's, class names, palette and
            CRF settings that go with the name, if the weights were named.
    """

    path: Path
    model: DeepLab
    loaded: Loaded
    metadata: dict[str, Any]

    def check_label_maps(self) -> None:
        """Raise InputError unless 8 bits hold the labels, and class names and palette are sound."""
        classes = self.model.num_classes
        if classes > 256:
            raise InputError(
                f"{self.path}: {classes} classes do not fit 8-bit label maps (256 at most); use "
                "deeplab.predict from Python"
            )
        if problem := file.metadata_problem(self.metadata | {"num_classes": classes}):
            raise InputError(f"{self.path}: {problem}; write the file anew with save_weights")

    def taken_for(self) -> str:
        """The model that the file was taken for, in one line; empty where its metadata name it."""
        if "model" in self.metadata:
            return ""
        config = self.model.config
        name = config["model"] + (f" on {config['backbone']}" if "backbone" in config else "")
        facts = [f"rates {_listed(config['rates'])}"] if config["rates"] else []
        facts.append(f"style {config['style']}")
        facts.append(f"MSC at {_listed(config['scales'])}" if config["scales"] else "one scale")
        facts.append(f"resize {config['resize']}")
        by_one = " by the sigmoid of one score" if config.get("sigmoid") else ""
        return (
            f"{self.path}: {FROM[self.loaded.source]}, taken for {name} with "
            f"{self.model.num_classes} classes{by_one}, {', '.join(facts)}"
        )


@dataclass(frozen=True)
class Fit:
    """A model that the tensors of a file have the names and shapes of.

    backbone: of a family's model; empty where the name tells it. num_classes: how many scores the
    classifier gives. separable: the pyramid of v3+.
    """

    name: str
    backbone: str
    line: Line
    num_classes: int
    rates: tuple[int, ...]
    separable: bool


def load_checkpoint(
    path: file.StrPath | None = None,
    model: str | None = None,
    num_classes: int | None = None,
    source: Source = "auto",
    output_stride: int | None = None,
) -> Opened:
    """The model that a file of any source holds the weights of, all of them.

    path: a file, or a name of `deeplab.weights.registry`; None for the weights shipped with this
        package.
    model, num_classes: what the file must be of; left out, what it says or what its tensors tell.
        Of a family they tell the backbone.
    output_stride: of the model, which no tensor tells; left out, what the file says, or that of the
        published models.

    Raises InputError as `load_weights` and `load_model` do, and where the tensors fit none or
    several of the models, or not the one that was named.
    """
    known = registry.table().get("" if path is None else os.fspath(path))
    if model is not None and model not in (*MODELS, *FAMILIES):
        names = ", ".join((*MODELS, *FAMILIES))
        raise InputError(f"--model {model}: unknown; expected one of {names}")
    path = file.named_path(path)
    metadata = file.read_metadata(path) if is_own(path) else {}
    if "model" in metadata:
        check_source(path, "safetensors", source)
        network = file.load_model(path)
        if model not in (None, network.config["model"]):
            raise InputError(
                f"{path}: weights of {network.config['model']}, not of --model {model}; leave out "
                "--model, the file knows its own"
            )
        _check_classes(path, network.num_classes, num_classes)
        if output_stride not in (None, network.config["output_stride"]):
            raise InputError(
                f"{path}: weights of output stride {network.config['output_stride']}, not "
                f"{output_stride}; leave out --output-stride, the file knows its own"
            )
        loaded = Loaded("safetensors", tuple(file.network_state(network)), (), {})
        return Opened(path, network, loaded, metadata)
    checkpoint = read_checkpoint(path, source)
    fit = _fit(checkpoint, model)
    network = _built(checkpoint, fit, output_stride)
    _check_classes(path, network.num_classes, num_classes)
    if checkpoint.source == "safetensors":
        initialised, skipped, _ = file.load_own(network, path)
        loaded = Loaded("safetensors", initialised, skipped, {})
    else:
        loaded = copy_checkpoint(network, checkpoint)
    if loaded.skipped:
        raise InputError(f"{path}: has no weights for {', '.join(loaded.skipped)} of {fit.name}")
    if known is not None and path == known.path:
        metadata = known.metadata() | metadata
    return Opened(path, network.eval(), loaded, metadata)


@dataclass(frozen=True)
class Start:
    """The model that a training from a file has: `build(model, num_classes, **options)`.

    whole: the file is of that model, and not of its body alone.
    """

    model: str
    options: dict[str, Any]
    whole: bool


def model_to_train(path: file.StrPath) -> Start:
    """The model that a training from this file has, where nothing else is said.

    Of a segmentation network's file it is that network, as `load_checkpoint` finds it; a body, such
    as a classifier of ImageNet, gets the head of DeepLab v3+ at output stride 16. path: a file, or
    a name of `deeplab.weights.registry`.

    Raises InputError where the file cannot be read, and where no model or several have its tensors.
    """
    path = file.named_path(path)
    metadata = file.read_metadata(path) if is_own(path) else {}
    if "model" in metadata:
        network = file.load_model(path)
    else:
        checkpoint = read_checkpoint(path)
        if (backbone := _body_alone(checkpoint)) is not None:
            options: dict[str, Any] = {"backbone": backbone, "output_stride": 16}
            # Without rates, as for pictures, bodies of the other two styles are one.
            if checkpoint.style == "caffe" or not checkpoint.translated.of_pictures:
                options |= {} if checkpoint.style is None else {"style": checkpoint.style}
            return Start("deeplab_v3plus", options, whole=False)
        network = _built(checkpoint, _fit(checkpoint, None))
    options = dict(network.config)
    del options["num_classes"]
    return Start(options.pop("model"), options, whole=True)


def _body_alone(checkpoint: Checkpoint) -> str | None:
    """The backbone of a file without a head for pixels; None where it has one."""
    translated = checkpoint.translated
    if not translated.of_pictures and any(n.startswith("head.") for n in translated.tensors):
        return None
    if checkpoint.source == "efficientnet":
        return "timm:tf_efficientnet_lite0"
    for name, body in BACKBONES.items():
        if _is_body(body, checkpoint):
            return name
    raise InputError(
        f"{checkpoint.path}: its body is none that a model of this package has"
        f"{_unknown(checkpoint)}; known are {_listed(BACKBONES)} and EfficientNet-Lite0"
    )


def _check_classes(path: Path, found: int, asked: int | None) -> None:
    if asked not in (None, found):
        raise InputError(
            f"{path}: weights for {found} classes, not for {asked}; leave the number (--classes) "
            "out, the file knows its own"
        )


def _built(checkpoint: Checkpoint, fit: Fit, output_stride: int | None = None) -> DeepLab:
    translated = checkpoint.translated
    options: dict[str, Any] = {"scales": translated.scales, "resize": translated.resize}
    if checkpoint.style is not None:
        options["style"] = checkpoint.style
    if fit.line.head == "v3plus":
        options["separable"] = fit.separable
    if fit.backbone:
        options["backbone"] = fit.backbone
    if output_stride is not None:
        options["output_stride"] = output_stride
    classes = fit.num_classes
    if classes == 1:
        classes, options["sigmoid"] = 2, True
    try:
        with torch.device("meta"):  # random weights would cost a second, to be written over
            network = build(fit.name, classes, rates=fit.rates, **options)
    except ValueError as error:
        raise InputError(f"{checkpoint.path}: makes no {fit.name}: {error}") from error
    network.to_empty(device="cpu")
    for name, buffer in network.named_buffers():
        if name.endswith(COUNTER):  # all else is in the file
            buffer.zero_()
    return network


def _fit(checkpoint: Checkpoint, model: str | None) -> Fit:
    """The model of that name, or the only one that fits; InputError where there is none."""
    path, translated = checkpoint.path, checkpoint.translated
    train = f"deeplab train --weights {path}"
    if translated.of_pictures:
        raise InputError(
            f"{path}: has a classifier of whole pictures, such as ImageNet's, and so no weights "
            f"for the head of a segmentation network; train one from it: {train}"
        )
    if not any(name.startswith("head.") for name in translated.tensors):
        raise InputError(
            f"{path}: has no weights for the head of a segmentation network{_unknown(checkpoint)}; "
            f"train one from it: {train}"
        )
    fits = _fits(checkpoint)
    if model is not None:
        for line, name in _lines(model).items():
            if (fit := _fit_of(line, name, line.rates, checkpoint)) is not None:
                return fit
        instead = f"it fits {_listed(f.name for f in fits)}" if fits else "name another model"
        raise InputError(
            f"{path}: has no weights for {model}: it holds {_seen(checkpoint)}; {instead}, or "
            f"train from it: {train}"
        )
    if not fits:
        raise InputError(
            f"{path}: fits no model of this package: it holds {_seen(checkpoint)}"
            f"{_unknown(checkpoint)}; name the model (--model) to see what differs, or train from "
            f"it: {train}"
        )
    if len(fits) > 1:
        raise InputError(
            f"{path}: fits {_listed(f.name for f in fits)}, which shapes do not tell apart; name "
            "the one that it was trained as (--model)"
        )
    return fits[0]


def _lines(model: str | None = None) -> dict[Line, tuple[str, str]]:
    """The lines of the table under their names, of those of a family with the backbone's.

    Of names for one network the last, and that of a family only for one without another.
    """
    lines: dict[Line, tuple[str, str]] = {}
    for name, line in MODELS.items():
        if model in (None, name):
            lines[line] = (name, "")
    for name, family in FAMILIES.items():
        for backbone, body in BACKBONES.items():
            if model in (None, name):
                lines.setdefault(family.on(body), (name, backbone))
    return lines


def _fits(checkpoint: Checkpoint) -> list[Fit]:
    """All models that fit; of a published file those that its source has published."""
    told = _told_rates(checkpoint)
    fits = [
        fit
        for line, name in _lines().items()
        if (fit := _fit_of(line, name, told if told and line.rates else line.rates, checkpoint))
    ]
    if exact := [fit for fit in fits if told and fit.line.rates == told]:
        return exact
    if checkpoint.style is not None and len(fits) > 1:
        return [fit for fit in fits if fit.name in PUBLISHED] or fits
    return fits


def _fit_of(
    line: Line, name: tuple[str, str], rates: tuple[int, ...], checkpoint: Checkpoint
) -> Fit | None:
    """The model of that line with these rates, if the file's tensors are its own."""
    tensors, branches = checkpoint.translated.tensors, checkpoint.translated.branches
    classifier = tensors.get("head.classifier.weight")
    if classifier is None or classifier.ndim != 4:
        return None
    if line.backbone is None or not _is_body(line.backbone, checkpoint):
        return None
    pyramid = line.head != "v2"
    first = "fc6" if line.fully_connected else "pyramid" if pyramid else "classifier"
    count = len(rates) or 1
    if branches.get(f"head.{first}.weight", count) != count:
        return None
    classes, rest = divmod(len(classifier), 1 if pyramid else count)  # rows of all branches
    if rest or not classes:
        return None
    theirs = {
        name: tensor.shape for name, tensor in tensors.items() if not name.startswith("backbone.")
    }
    separable = "head.pyramid.depthwise.weight" in tensors
    if theirs != _head_shapes(line, classes, rates, separable):
        return None
    return Fit(*name, line, classes, rates, separable)


def _head_shapes(
    line: Line, classes: int, rates: Sequence[int], separable: bool
) -> dict[str, torch.Size]:
    """The tensors of the head, and of the taps of MSc, by their names in the model."""
    assert line.backbone is not None
    config = line.defaults() | {"num_classes": classes, "rates": rates, "separable": separable}
    backbone = _without_memory(line.backbone)
    with torch.device("meta"):
        head = line.make_head(backbone, config)
        parts = {"head": head, "taps": line.make_taps(config)}
    return {
        f"{part}.{name}": tensor.shape
        for part, module in parts.items()
        if module is not None
        for name, tensor in module.state_dict().items()
        if not name.endswith(COUNTER)
    }


@functools.cache  # a deep one takes a tenth of a second
def _without_memory(body: Body) -> Backbone:
    with torch.device("meta"):
        return body.make(V3.on(body).defaults())


def _is_body(body: Body, checkpoint: Checkpoint) -> bool:
    tensors, windows = checkpoint.translated.tensors, checkpoint.windows
    if isinstance(body, VGG16Body):
        told = any(name.startswith("pool") for name in windows)
        return "backbone.conv1_1.weight" in tensors and (
            not told or body.pool5a == ("pool5a" in windows)
        )
    if isinstance(body, MobileNetV3Body):
        return "backbone.features.16.0.weight" in tensors
    return isinstance(body, ResNetBody) and body == _resnet(tensors)


def _resnet(tensors: dict[str, Tensor]) -> ResNetBody | None:
    """The ResNet that the body is; None where it is none."""
    first = tensors.get("backbone.conv1.weight")
    found = {m[0]: m[1] for name in tensors if (m := re.match(r"backbone\.layer(\d)\.\d+", name))}
    stages = list(found.values())
    if not stages:
        return None
    one, two, three, four = (stages.count(str(stage)) for stage in range(1, 5))
    basic = "backbone.layer1.0.conv3.weight" not in tensors
    width = 0 if first is None else len(first)
    return ResNetBody((one, two, three, four), "basic" if basic else "bottleneck", width)


def _told_rates(checkpoint: Checkpoint) -> tuple[int, ...]:
    """The rates of the head's branches, where the file says them: in a .caffemodel whose body has
    some. A network for whole pictures has none there, and they are the model's to choose."""
    if not any(window.rate > 1 for window in checkpoint.windows.values()):
        return ()
    rates: dict[str, dict[int, int]] = {}  # by layer and branch
    for name, window in checkpoint.windows.items():
        if place := caffe_window(name):
            rates.setdefault(place[0], {})[place[1]] = window.rate
    of_head = rates.get("head.fc6") or rates.get("head.classifier") or {}
    return tuple(of_head[branch] for branch in sorted(of_head))


def _seen(checkpoint: Checkpoint) -> str:
    """Body and head as the file has them, in a phrase."""
    tensors = checkpoint.translated.tensors
    if "backbone.conv1_1.weight" in tensors:
        body = "a VGG-16"
    elif "backbone.features.16.0.weight" in tensors:
        body = "a MobileNetV3"
    elif (resnet := _resnet(tensors)) is not None:
        blocks, kind, width = _listed(resnet.blocks), resnet.block, resnet.width
        body = f"a ResNet of {blocks} {kind} blocks and width {width}"
    else:
        body = "no body that is known"
    layers = [
        f"{name.removesuffix('.weight')} {list(tensor.shape)}"
        for name, tensor in tensors.items()
        if name.endswith(".weight") and tensor.ndim == 4 and not name.startswith("backbone.")
    ]
    return f"{body} with {file.some(layers)}"


def _unknown(checkpoint: Checkpoint) -> str:
    unknown = checkpoint.translated.unknown
    return f", and {len(unknown)} of no known place: {file.some(unknown, 3)}" if unknown else ""


def _listed(values: Iterable[object]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
