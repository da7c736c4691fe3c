"""Any encoder of timm that gives maps: `features_only`, at an output stride that it supports.

    encoder = timm.create_model(NAME, features_only=True, output_stride=s, out_indices=(low, last))

Its own code says how it dilates; the low map is the first of output stride 4. Weights of timm fit
`backbone.encoder` under the names that timm gives them there:

    pretrained = timm.create_model(NAME, features_only=True, out_indices=..., pretrained=True)
    model.backbone.encoder.load_state_dict(pretrained.state_dict())

where out_indices are `model.backbone.out_indices`. Which sizes of pictures an encoder takes is its
own, too: most convolutional ones take any, others multiples of 32, or one size. timm is an optional
package: pip install 'deeplab-triton[timm]'.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from deeplab.model.batch_norm import FrozenBatchNorm2d
from deeplab.model.styles import OUTPUT_STRIDES, OutputStride

# How encoders say that they have no maps, or not at a stride: there is no one way.
REFUSALS = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
)


class TimmEncoder(nn.Module):
    """An encoder of output stride s: `[B, in_channels, H, W]` -> `[B, out_channels, ~H/s, ~W/s]`.

    name: as `timm.create_model` takes it, such as "efficientnet_lite0" or "resnet50.a1_in1k"; a
        tag chooses the normalisation of those weights.
    frozen_bn: statistics and affine of every BatchNorm2d are constants.

    Attributes: `out_channels`, `low_channels`, `output_stride`; `out_indices`, the two maps among
    timm's.

    Raises ImportError without timm; ValueError for a name that it does not have, and for an encoder
    that gives no maps of output stride 4 and s, with the strides that it does give.
    """

    def __init__(
        self,
        name: str,
        *,
        frozen_bn: bool,
        output_stride: OutputStride = 32,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        timm = _timm(name)
        maps = _maps(timm, name, output_stride)
        if maps is None:
            given = [str(s) for s in OUTPUT_STRIDES if _maps(timm, name, s) is not None]
            if given:
                strides = " or ".join(given)
                raise ValueError(
                    f"output_stride must be {strides} for timm:{name}, not {output_stride}"
                )
            raise ValueError(
                "backbone must be an encoder that gives maps of output stride 4 and of 8, 16 or "
                f"32, not timm:{name}"
            )
        self.output_stride = output_stride
        self.out_indices = maps
        encoder: Any = _create(timm, name, output_stride, out_indices=maps, in_chans=in_channels)
        self.low_channels, self.out_channels = encoder.feature_info.channels()
        if frozen_bn:
            _freeze(encoder)
        self.encoder: nn.Module = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.low_and_high(x)[1]

    def low_and_high(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The first map of output stride 4 and the last map."""
        low, high = self.encoder(x)
        return low, high


def normalisation(name: str) -> tuple[list[float], list[float]]:
    """Mean and deviation that the weights of this name expect, of RGB in 0-255.

    Raises as `TimmEncoder` for want of timm or of the name.
    """
    facts = _timm(name).get_pretrained_cfg(name)
    return [255 * value for value in facts.mean], [255 * value for value in facts.std]


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """The constants of a BatchNorm2d; behind it what timm's own, BatchNormAct2d, ends in."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps)
        self.load_state_dict(norm.state_dict(), strict=False)  # without an affine part 1 and 0 stay
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.drop(super().forward(x)))
        return y


def _freeze(encoder: nn.Module) -> None:
    """Every BatchNorm2d becomes one of constants, under the same name."""
    norms = [(n, m) for n, m in encoder.named_modules() if isinstance(m, nn.BatchNorm2d)]
    for name, norm in norms:
        parent, _, last = name.rpartition(".")
        setattr(encoder.get_submodule(parent), last, FrozenBatchNormAct2d(norm))


def _timm(name: str) -> Any:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ImportError(
            f"backbone timm:{name} needs timm: pip install 'deeplab-triton[timm]' ({error})"
        ) from error
    except RuntimeError as error:  # of torchvision, which timm imports
        raise ImportError(
            f"backbone timm:{name} needs timm, which does not import ({error}); install the build "
            "of torchvision that goes with this torch"
        ) from error
    # create_model also takes names that it downloads, or reads from a folder.
    if not name or set(name) & set(":/\\") or not timm.is_model(name):
        raise ValueError(
            f"backbone must be timm: and a name of timm.list_models(), not timm:{name:.80}"
        )
    return timm


def _maps(timm: Any, name: str, output_stride: OutputStride) -> tuple[int, int] | None:
    """The indices of the low map and the last, where the encoder gives both."""
    try:
        with torch.device("meta"):
            encoder = _create(timm, name, output_stride)
    except REFUSALS:
        return None
    strides = encoder.feature_info.reduction()
    layout = getattr(encoder, "output_fmt", "NCHW")
    if 4 not in strides[:-1] or strides[-1] != output_stride or layout != "NCHW":
        return None
    indices = list(encoder.feature_info.out_indices)
    return indices[strides.index(4)], indices[-1]


def _create(timm: Any, name: str, output_stride: OutputStride, **options: Any) -> Any:
    if output_stride != 32:  # some have no such argument, and this stride
        options["output_stride"] = output_stride
    return timm.create_model(name, features_only=True, pretrained=False, **options)
