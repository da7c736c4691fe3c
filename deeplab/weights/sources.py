"""The source of a file of weights, and its tensors by the names of this package.

    source         what                                                    style of the model
    safetensors    files of `save_weights`                                 as the file says
    caffemodel     DeepLab v1 and v2, VGG-16 and ResNet of Caffe           caffe
    kazuto1011     .pth of kazuto1011/deeplab-pytorch                      caffe
    isht7          .pth of isht7/pytorch-deeplab-resnet                    caffe
    torchvision    .pth of resnet*, vgg16 and deeplabv3_*                  torchvision
    smp            .pth of segmentation_models_pytorch's DeepLabV3Plus     smp
    efficientnet   .pth of EfficientNet-Lite0 as EfficientNet-PyTorch      not told
                   names it, for timm's encoder of that name
    state_dict     .pth of a model of this package                         not told

The source is recognised by the contents, not by the file's name. Wrappers put their names in front
of every tensor's: "module." of DataParallel, "_orig_mod." of torch.compile, "model." and "net." of
trainers, several of them in any order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from deeplab.errors import InputError
from deeplab.model.styles import Style
from deeplab.weights import caffemodel, file, foreign, pickled
from deeplab.weights.caffemodel import Window
from deeplab.weights.names import TRANSLATIONS, Translated

Source = Literal[
    "auto",
    "safetensors",
    "caffemodel",
    "kazuto1011",
    "isht7",
    "torchvision",
    "smp",
    "efficientnet",
    "state_dict",
]
SOURCES: tuple[Source, ...] = get_args(Source)
PTH = "kazuto1011, isht7, torchvision, smp, EfficientNet-Lite0 and of models of this package"
STYLE: dict[str, Style] = {
    "caffemodel": "caffe",
    "kazuto1011": "caffe",
    "isht7": "caffe",
    "torchvision": "torchvision",
    "smp": "smp",
}
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.")
DEEPEST = 4  # wrappers within each other


@dataclass(frozen=True)
class Checkpoint:
    """A file that has been read.

    Attributes:
        windows: how the layers of a .caffemodel move, by their names there.
        style: of the model that the weights are for; None where the source does not tell.
    """

    path: Path
    source: Source
    translated: Translated
    windows: Mapping[str, Window]

    @property
    def style(self) -> Style | None:
        return STYLE.get(self.source)


def read_checkpoint(path: Path, source: Source = "auto") -> Checkpoint:
    """The tensors of a file of any source, in memory; nothing in it is executed.

    source: what it must be; "auto" takes what it is. Raises InputError where it is unreadable, of
    no known source, or of another than `source`.
    """
    form, prefix = _form(path), ""
    content: Mapping[str, Any]
    windows: Mapping[str, Window] = {}
    found: Source
    if form == "pickle":
        content = pickled.read(path)
        found, prefix = _layout(content, path)
    else:
        found, content = form, {}
    check_source(path, found, source)
    if form == "safetensors":
        content = file.read_tensors(path)
    elif form == "caffemodel":
        content, windows = caffemodel.read(path), caffemodel.windows(path)
    inside = {n.removeprefix(prefix): v for n, v in content.items() if n.startswith(prefix)}
    translated = TRANSLATIONS[found](inside)
    translated.dropped |= {n: "beside the model" for n in content if not n.startswith(prefix)}
    return Checkpoint(path, found, translated, windows)


def check_source(path: Path, found: Source, wanted: str) -> None:
    """Raise InputError where a file of source `found` is not what was asked for."""
    if wanted not in SOURCES:
        raise InputError(f"source must be one of {', '.join(SOURCES)}, not {wanted!r}")
    if wanted not in ("auto", found):
        raise InputError(
            f"{path} must be a file of source {wanted}, but it is one of {found}; leave out the "
            "source, or name that one"
        )


def is_own(path: file.StrPath) -> bool:
    """Whether it claims to be a file of `save_weights`; raises InputError where it is no file."""
    path = file.named_path(path)
    return _claims_safetensors(path, _first_bytes(path))


def _form(path: Path) -> Literal["safetensors", "pickle", "caffemodel"]:
    """The form of a file; one that matches no other form is read as a .caffemodel."""
    first = _first_bytes(path)
    if _claims_safetensors(path, first):
        return "safetensors"
    if what := foreign.kind(path):
        raise InputError(
            f"{path} must be weights, not {what}; known are .safetensors of this package, "
            f".caffemodel, and .pth of {PTH}"
        )
    if first[:2] == b"PK" or first[:1] == b"\x80":  # zipped, or a pickle as before PyTorch 1.6
        return "pickle"
    return "caffemodel"


def _claims_safetensors(path: Path, first: bytes) -> bool:
    return first[8:9] == b"{" or path.suffix == ".safetensors"  # behind the length of its header


def _first_bytes(path: Path) -> bytes:
    try:
        file.check_is_file(path)
        with path.open("rb") as opened:
            return opened.read(9)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _layout(names: Iterable[str], path: Path) -> tuple[Source, str]:
    """Whose names these are, and what wrappers have put in front of them: as few as can be."""
    within = {"": list(names)}  # prefix: the names behind it
    for _ in range(DEEPEST + 1):
        found = {prefix: source for prefix, some in within.items() if (source := _source_of(some))}
        if len(found) > 1:
            raise InputError(
                f"{path}: holds several models, under {' and '.join(found)}; save one of them alone"
            )
        if found:
            [(prefix, source)] = found.items()
            return source, prefix
        within = {
            prefix + wrapper: inside
            for prefix, some in within.items()
            for wrapper in WRAPPERS
            if (inside := [n.removeprefix(wrapper) for n in some if n.startswith(wrapper)])
        }
    raise InputError(
        f"{path}: a PyTorch checkpoint of unknown origin, with tensors such as "
        f"{file.some(list(names), 3)}; known are those of {PTH}"
    )


def _source_of(names: list[str]) -> Source | None:
    if any(name.startswith("Scale.") for name in names):
        return "isht7"
    if any(re.match(r"(base\.|scale\.)?layer[2-5]\.block\d", name) for name in names):
        return "kazuto1011"
    if "segmentation_head.0.weight" in names:
        return "smp"
    if "_conv_stem.weight" in names:
        return "efficientnet"
    if "head.classifier.weight" in names:
        return "state_dict"
    first = ("features.0", "layer1.0.conv1", "backbone.conv1", "features.0.0", "backbone.0.0")
    if not {f"{layer}.weight" for layer in first}.isdisjoint(names):
        return "torchvision"
    return None
