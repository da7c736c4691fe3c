"""The backbones by name, and what the table of networks needs to know of each.

    resnet18, resnet34                 ResNets of basic blocks
    resnet50, resnet101, resnet152     ResNets of bottlenecks
    vgg16                              VGG-16 with the poolings of DeepLab
    mobilenet_v3_large                 MobileNetV3-Large
    timm:NAME                          an encoder of timm, the package: see `timm_encoder.py`

All have output stride 8, 16 or 32 with the same weights; of timm's, those that it gives.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from deeplab.model.mobilenet import MobileNetV3
from deeplab.model.resnet import ResNet
from deeplab.model.styles import OutputStride, Style
from deeplab.model.timm_encoder import TimmEncoder, normalisation
from deeplab.model.vgg import VGG16

TIMM = "timm:"


class Backbone(Protocol):
    """An nn.Module from a preprocessed batch `[B, C, H, W]` to the maps that heads look at.

    The last map is `[B, out_channels, ~H/s, ~W/s]`, where s is the output_stride; the low one, of
    which the decoder of v3+ takes fine edges, `[B, low_channels, ~H/4, ~W/4]`.
    """

    out_channels: int
    low_channels: int
    output_stride: OutputStride

    def __call__(self, x: Tensor) -> Tensor:
        """The last map."""
        ...

    def low_and_high(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The low map and the last."""
        ...


@dataclass(frozen=True)
class ResNetBody:
    blocks: tuple[int, int, int, int]
    block: Literal["bottleneck", "basic"] = "bottleneck"
    width: int = 64
    defaults: ClassVar[Mapping[str, Any]] = {}

    def make(self, config: Mapping[str, Any]) -> ResNet:
        return ResNet(
            self.blocks,
            width=self.width,
            frozen_bn=config["frozen_bn"],
            style=config["style"],
            block=self.block,
            output_stride=config["output_stride"],
            in_channels=config["in_channels"],
        )


@dataclass(frozen=True)
class VGG16Body:
    """pool5a: v1's LargeFOV averages after pool5, the others do not."""

    pool5a: bool = False
    defaults: ClassVar[Mapping[str, Any]] = {}

    def make(self, config: Mapping[str, Any]) -> VGG16:
        return VGG16(
            pool5a=self.pool5a,
            style=config["style"],
            output_stride=config["output_stride"],
            in_channels=config["in_channels"],
        )


@dataclass(frozen=True)
class MobileNetV3Body:
    defaults: ClassVar[Mapping[str, Any]] = {"style": "torchvision", "output_stride": 16}

    def make(self, config: Mapping[str, Any]) -> MobileNetV3:
        _check_style("a MobileNetV3", config["style"])
        return MobileNetV3(
            frozen_bn=config["frozen_bn"],
            output_stride=config["output_stride"],
            in_channels=config["in_channels"],
        )


@dataclass(frozen=True)
class TimmBody:
    name: str

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Pictures are whitened as the encoder's own weights have it."""
        mean, deviation = normalisation(self.name)
        of_timm = {"style": "torchvision", "frozen_bn": False}
        return of_timm | {"mean": mean, "deviation": deviation}

    def make(self, config: Mapping[str, Any]) -> TimmEncoder:
        _check_style(f"{TIMM}{self.name}", config["style"])
        return TimmEncoder(
            self.name,
            frozen_bn=config["frozen_bn"],
            output_stride=config["output_stride"],
            in_channels=config["in_channels"],
        )


# How a backbone is made: make(config), of `DeepLab.config`. Its defaults are those options that are
# the backbone's and not the head's.
Body = ResNetBody | VGG16Body | MobileNetV3Body | TimmBody

BACKBONES: dict[str, Body] = {
    "resnet18": ResNetBody((2, 2, 2, 2), "basic"),
    "resnet34": ResNetBody((3, 4, 6, 3), "basic"),
    "resnet50": ResNetBody((3, 4, 6, 3)),
    "resnet101": ResNetBody((3, 4, 23, 3)),
    "resnet152": ResNetBody((3, 8, 36, 3)),
    "vgg16": VGG16Body(),
    "mobilenet_v3_large": MobileNetV3Body(),
}


def named(name: object) -> Body:
    """The backbone of that name; ValueError with the names where there is none."""
    if isinstance(name, str) and name.startswith(TIMM):
        return TimmBody(name.removeprefix(TIMM))
    if not isinstance(name, str) or name not in BACKBONES:
        raise ValueError(
            f"backbone must be one of {', '.join(BACKBONES)} or {TIMM}NAME, an encoder of timm, "
            f"not {name!r:.80}"
        )
    return BACKBONES[name]


def _check_style(name: str, style: Style) -> None:
    if style != "torchvision":
        raise ValueError(f"style must be torchvision for {name}, not {style}")
