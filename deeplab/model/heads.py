"""Segmentation heads: features `[B, Cin, h, w]` -> class scores `[B, classes, h, w]`.

Atrous spatial pyramid pooling looks at the same features with several rates r at once:

    Pointwise            y = w x + b                                     v2, ResNet-101, the base
    ASPP                 y = sum_r ( w_r *_r x + b_r )                   v2, ResNet-101
    FullyConnected       y = fc8( fc7( fc6(x) ) )                        v1, fc6 4x4 or 7x7
    FullyConnectedASPP   y = sum_r fc8_r( fc7_r( fc6_r(x) ) )            v1 and v2, VGG-16
    DeepLabV3Head        y = classify( conv( project([1x1, *_r1, *_r2, *_r3, mean]) ) )     v3
    MultiScaleTaps       y = sum of scores from the image and pool1 to pool4                v1, MSc

where *_r is a 3x3 convolution at rate r; fc6 is such a convolution too, fc7 and fc8 are 1x1. With
one rate, 12, ASPP and FullyConnectedASPP are the LargeFOV heads.

Sources: Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected
CRFs", ICLR 2015, section 3; "DeepLab", TPAMI 2018, section 3.2 and figure 7; "Rethinking Atrous
Convolution for Semantic Image Segmentation", 2017, figure 5.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplab.model import initialise
from deeplab.model.batch_norm import FrozenBatchNorm2d
from deeplab.model.styles import OutputStride
from kernels import multi_rate_atrous_conv2d


class Pointwise(nn.Module):
    """One 1x1 classifier: the ResNet as it is, without a wider field of view."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(in_channels, num_classes, 1)
        initialise.classifier(self.classifier)

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(features)


class ASPP(nn.Module):
    """One 3x3 classifier per rate, summed: the head of DeepLab v2 on ResNet-101."""

    def __init__(self, in_channels: int, num_classes: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.classifier = MultiRateConv2d(in_channels, num_classes, rates, fuse="sum")
        initialise.classifier(self.classifier)

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(features)


class FullyConnected(nn.Module):
    """fc6 - fc7 - fc8 with fc6 of another size than 3x3: the heads of v1 before LargeFOV.

    fc6 is kernel x kernel at `rate`, padded by rate * (kernel - 1) / 2 on all sides so that the map
    keeps its size; fc7 and fc8 (`classifier`) are 1x1. ReLU and dropout follow fc6 and fc7.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        rate: int,
        *,
        kernel: int,
        channels: int = 4096,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        padding = rate * (kernel - 1)
        if padding % 2:
            raise ValueError(
                f"rates: fc6 is {kernel}x{kernel}, whose padding rate * {kernel - 1} / 2 must be "
                f"whole: the rate must be even, such as 4, not {rate}"
            )
        self.fc6 = nn.Conv2d(in_channels, channels, kernel, padding=padding // 2, dilation=rate)
        self.drop6 = nn.Dropout(dropout)
        self.fc7 = nn.Conv2d(channels, channels, 1)
        self.drop7 = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        initialise.he(self.fc6, "fan_in")
        initialise.he(self.fc7, "fan_in")
        initialise.classifier(self.classifier)

    def forward(self, features: Tensor) -> Tensor:
        x = self.drop6(F.relu(self.fc6(features), inplace=True))
        x = self.drop7(F.relu(self.fc7(x), inplace=True))
        return self.classifier(x)


class FullyConnectedASPP(nn.Module):
    """A branch fc6 - fc7 - fc8 per rate, summed: the heads of DeepLab on VGG-16.

    fc6 is 3x3 at the branch's rate, fc7 and fc8 are 1x1; fc6 and fc7 have `channels` outputs, ReLU
    and dropout. The branches lie side by side in the channels, so fc7 and fc8 (`classifier`) are
    grouped convolutions: row k * outputs + i of a weight is output i of branch k.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        rates: Sequence[int],
        *,
        channels: int = 1024,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        branches = len(rates)
        self.num_classes = num_classes
        self.fc6 = MultiRateConv2d(in_channels, channels, rates, fuse="concat")
        self.drop6 = nn.Dropout(dropout)
        self.fc7 = nn.Conv2d(branches * channels, branches * channels, 1, groups=branches)
        self.relu7 = nn.ReLU(inplace=True)
        self.drop7 = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(branches * channels, branches * num_classes, 1, groups=branches)
        initialise.he(self.fc7, "fan_in")
        initialise.classifier(self.classifier)

    def forward(self, features: Tensor) -> Tensor:
        x = self.drop6(self.fc6(features, activation="relu"))
        x = self.drop7(self.relu7(self.fc7(x)))
        return self.classifier(x).unflatten(1, (-1, self.num_classes)).sum(1)


class DeepLabV3Head(nn.Module):
    """The pyramid of DeepLab v3: a 1x1, a 3x3 for each rate and the mean of the map side by side.

    The layers and their order are those of torchvision's head. `pyramid` holds the 3x3 branches
    stacked: rows k * channels to (k + 1) * channels of its weight and of `pyramid_bn` are rates[k].
    Where the normalisation is constant (frozen, or evaluation) it is part of that one convolution,
    and so is the ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        rates: Sequence[int],
        *,
        frozen_bn: bool,
        channels: int = 256,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        norm = FrozenBatchNorm2d if frozen_bn else nn.BatchNorm2d
        joined = (len(rates) + 2) * channels
        self.pointwise = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.pointwise_bn = norm(channels)
        self.pyramid: MultiRateConv2d | SeparableMultiRateConv2d = MultiRateConv2d(
            in_channels, channels, rates, fuse="concat", bias=False
        )
        self.pyramid_bn = norm(len(rates) * channels)
        self.pooled = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.pooled_bn = norm(channels)
        self.project = nn.Conv2d(joined, channels, 1, bias=False)
        self.project_bn = norm(channels)
        self.drop = nn.Dropout(dropout)
        self.conv: nn.Module = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv_bn = norm(channels)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        for layer in (self.pointwise, self.pooled, self.project, self.conv):
            initialise.he(layer, "fan_in")
        initialise.classifier(self.classifier)

    def forward(self, features: Tensor) -> Tensor:
        x = self.context(features)
        x = F.relu(self.conv_bn(self.conv(x)), inplace=True)
        return self.classifier(x)

    def context(self, features: Tensor) -> Tensor:
        """All branches, projected."""
        self._check_batch(features)
        pointwise = F.relu(self.pointwise_bn(self.pointwise(features)), inplace=True)
        mean = F.adaptive_avg_pool2d(features, 1)
        pooled = F.relu(self.pooled_bn(self.pooled(mean)), inplace=True)
        # Half precision folds no constants where gradients are recorded: rounding them makes other
        # pixels negative, and ReLU passes those no gradient.
        exact = pointwise.dtype.itemsize >= 4 or not torch.is_grad_enabled()
        if exact and not _uses_batch_statistics(self.pyramid_bn):
            scale, shift = _affine(self.pyramid_bn, self.pyramid.weight.dtype)
            pyramid = self.pyramid(features, scale, shift, activation="relu")
        else:
            pyramid = F.relu(self.pyramid_bn(self.pyramid(features)), inplace=True)
        everywhere = pooled.expand(-1, -1, *pointwise.shape[2:])
        x = self.project(torch.cat([pointwise, pyramid, everywhere], dim=1))
        return self.drop(F.relu(self.project_bn(x), inplace=True))

    @property
    def least_batch(self) -> int:
        """Pictures that a forward pass in training needs: each is one value behind the pooling."""
        return 1 if isinstance(self.pooled_bn, FrozenBatchNorm2d) else 2

    def _check_batch(self, features: Tensor) -> None:
        alone = type(self.pooled_bn) is nn.BatchNorm2d and _uses_batch_statistics(self.pooled_bn)
        if alone and features.shape[0] == 1:
            raise ValueError(
                "x: a batch of one picture has no statistics after image pooling; train with two "
                "or more, or build the model with frozen_bn=True"
            )


class MultiScaleTaps(nn.Module):
    """The multi-scale features of DeepLab v1 (MSc): scores from the image and pool1 to pool4.

    Each tap is 3x3 with 128 outputs, which strides to the output stride, 8 in the paper, 1x1 with
    128 outputs, both with ReLU and dropout, and a 1x1 `classifier`; the scores of all are summed.

    Where pools round up, and the picture is not 8k + 1 wide and high, the deepest map reaches
    beyond what a stride of 8 on the image gives: a tap's input is padded with zeros at the bottom
    and right to the extent of the map, as DeepLab pads its pictures to 8k + 1.
    """

    def __init__(
        self, num_classes: int, in_channels: int = 3, output_stride: OutputStride = 8
    ) -> None:
        super().__init__()
        self.image = Tap(in_channels, num_classes, stride=output_stride)
        self.pool1 = Tap(64, num_classes, stride=output_stride // 2)
        self.pool2 = Tap(128, num_classes, stride=output_stride // 4)
        self.pool3 = Tap(256, num_classes, stride=output_stride // 8)
        self.pool4 = Tap(512, num_classes, stride=output_stride // min(output_stride, 16))

    def forward(self, image: Tensor, pools: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """image: preprocessed; pools: what pool1 to pool4 give; size: of the last map."""
        taps = (self.image, self.pool1, self.pool2, self.pool3, self.pool4)
        scores = [tap(x, size) for tap, x in zip(taps, (image, *pools), strict=True)]
        return torch.stack(scores).sum(0)


class Tap(nn.Module):
    """One tap of MultiScaleTaps: `[B, Cin, H, W]` -> scores `[B, classes, *size]`."""

    def __init__(
        self, in_channels: int, num_classes: int, stride: int, channels: int = 128
    ) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1)
        self.drop1 = nn.Dropout(0.5)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.drop2 = nn.Dropout(0.5)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        initialise.he(self.conv1, "fan_in")
        initialise.he(self.conv2, "fan_in")
        initialise.classifier(self.classifier)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        beyond = self.stride - 1
        x = self.conv1(F.pad(x, (0, beyond, 0, beyond)))
        x = x[:, :, : size[0], : size[1]]  # where pools round down, the padding was not needed
        x = self.drop1(F.relu(x))
        x = self.drop2(F.relu(self.conv2(x), inplace=True))
        return self.classifier(x)


class MultiRateConv2d(nn.Module):
    """3x3 convolutions of one input at several rates, summed or side by side in the channels.

    weight: `[len(rates) * out_channels, in_channels, 3, 3]`, bias: `[len(rates) * out_channels]`;
    row k * out_channels + i is output i at rates[k]. (Four dimensions rather than five, so that
    `module.to(memory_format=torch.channels_last)` applies to it as to any convolution.)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rates: Sequence[int],
        *,
        fuse: Literal["sum", "concat"],
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.rates = tuple(rates)
        self.fuse = fuse
        rows = len(self.rates) * out_channels
        self.weight = nn.Parameter(torch.empty(rows, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.empty(rows)) if bias else None
        initialise.he(self, "fan_in")

    def forward(
        self,
        x: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        *,
        activation: Literal["relu"] | None = None,
    ) -> Tensor:
        """scale, shift `[len(rates) * out_channels]` and activation apply to "concat"."""
        branches = len(self.rates)
        return multi_rate_atrous_conv2d(
            x,
            self.weight.unflatten(0, (branches, -1)),
            None if self.bias is None else self.bias.unflatten(0, (branches, -1)),
            rates=self.rates,
            fuse=self.fuse,
            scale=scale,
            shift=shift,
            activation=activation,
        )

    def extra_repr(self) -> str:
        rows, in_channels = self.weight.shape[:2]
        out_channels = rows // len(self.rates)
        return f"{in_channels}, {out_channels}, rates={self.rates}, fuse={self.fuse!r}"


class SeparableMultiRateConv2d(nn.Module):
    """Separable convolutions of one input at several rates, side by side in the channels.

    The weights of rates[k] come k-th, as in `MultiRateConv2d`: in `depthwise` `[len(rates) *
    in_channels, 1, 3, 3]`, in `pointwise` `[len(rates) * out_channels, in_channels, 1, 1]`.
    """

    def __init__(self, in_channels: int, out_channels: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.rates = tuple(rates)
        branches = len(self.rates)
        inputs, outputs = branches * in_channels, branches * out_channels
        self.depthwise = nn.Conv2d(inputs, inputs, 3, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, groups=branches, bias=False)
        initialise.he(self.depthwise, "fan_in")
        initialise.he(self.pointwise, "fan_in")

    def forward(
        self,
        x: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        *,
        activation: Literal["relu"] | None = None,
    ) -> Tensor:
        """scale, shift `[len(rates) * out_channels]` and activation as in `MultiRateConv2d`."""
        weights = self.depthwise.weight.unflatten(0, (len(self.rates), -1)).unbind()
        branches = [
            F.conv2d(x, weight, padding=rate, dilation=rate, groups=x.shape[1])
            for rate, weight in zip(self.rates, weights, strict=True)
        ]
        y: Tensor = self.pointwise(torch.cat(branches, dim=1))
        if scale is not None:
            y = y * scale[:, None, None]
        if shift is not None:
            y = y + shift[:, None, None]
        return F.relu(y, inplace=True) if activation == "relu" else y

    @property
    def weight(self) -> Tensor:
        """What tells the dtype of the layer, as `MultiRateConv2d.weight` does."""
        return self.pointwise.weight

    def extra_repr(self) -> str:
        return f"rates={self.rates}"


def _uses_batch_statistics(norm: nn.Module) -> bool:
    return isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training


def _affine(norm: FrozenBatchNorm2d | nn.BatchNorm2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """scale and shift in `dtype`: a constant norm(x) is scale * x + shift. Computed wide."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    wide = torch.promote_types(norm.running_var.dtype, torch.float32)
    scale = torch.rsqrt(norm.running_var.to(wide) + norm.eps) * norm.weight.to(wide)
    shift = norm.bias.to(wide) - norm.running_mean.to(wide) * scale
    return scale.to(dtype), shift.to(dtype)
