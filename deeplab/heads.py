"""Segmentation heads: features `[B, Cin, h, w]` -> class scores `[B, classes, h, w]`.

Atrous spatial pyramid pooling looks at the same features with several rates r at once:

    ASPP                  y = sum_r ( w_r *_r x + b_r )                      DeepLab v2, ResNet-101
    FullyConnectedASPP    y = sum_r fc8_r( fc7_r( fc6_r(x) ) )               DeepLab v2, VGG-16

where *_r is a 3x3 convolution at rate r; fc6 is such a convolution too, fc7 and fc8 are 1x1. With
one rate, 12, the second is the LargeFOV head of DeepLab v1.

Sources: Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected
CRFs", ICLR 2015, section 3, and "DeepLab", TPAMI 2018, section 3.2 and figure 7.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from deeplab import initialise
from kernels import multi_rate_atrous_conv2d


class ASPP(nn.Module):
    """One 3x3 classifier per rate, summed: the head of DeepLab v2 on ResNet-101.

    Weights start as N(0, 0.01), biases at 0. `classifier` is the part that the papers train at ten
    times the learning rate: here, all of it.
    """

    def __init__(self, in_channels: int, num_classes: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.classifier = MultiRateConv2d(in_channels, num_classes, rates, fuse="sum")
        initialise.classifier(self.classifier)

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(features)


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
        self.fc6 = MultiRateConv2d(in_channels, channels, rates, fuse="concat", activation="relu")
        self.drop6 = nn.Dropout(dropout)
        self.fc7 = nn.Conv2d(branches * channels, branches * channels, 1, groups=branches)
        self.relu7 = nn.ReLU(inplace=True)
        self.drop7 = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(branches * channels, branches * num_classes, 1, groups=branches)
        initialise.he(self.fc7, "fan_in")
        initialise.classifier(self.classifier)

    def forward(self, features: Tensor) -> Tensor:
        x = self.drop6(self.fc6(features))
        x = self.drop7(self.relu7(self.fc7(x)))
        return self.classifier(x).unflatten(1, (-1, self.num_classes)).sum(1)


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
        activation: Literal["relu"] | None = None,
    ) -> None:
        super().__init__()
        self.rates = tuple(rates)
        self.fuse = fuse
        self.activation = activation
        rows = len(self.rates) * out_channels
        self.weight = nn.Parameter(torch.empty(rows, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.empty(rows))
        initialise.he(self, "fan_in")

    def forward(self, x: Tensor) -> Tensor:
        branches = len(self.rates)
        return multi_rate_atrous_conv2d(
            x,
            self.weight.unflatten(0, (branches, -1)),
            self.bias.unflatten(0, (branches, -1)),
            rates=self.rates,
            fuse=self.fuse,
            activation=self.activation,
        )

    def extra_repr(self) -> str:
        rows, in_channels = self.weight.shape[:2]
        out_channels = rows // len(self.rates)
        return f"{in_channels}, {out_channels}, rates={self.rates}, fuse={self.fuse!r}"
