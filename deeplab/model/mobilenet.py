"""MobileNetV3-Large at output stride 16, as torchvision dilates it for segmentation, or 8 or 32.

    feature   kernel  expanded  channels  squeeze  activation  stride  rate   size for 321
    0           3        -         16                h-swish      2       1       161
    1           3       16         16                ReLU         1       1       161
    2, 3        3       64, 72     24                ReLU         2, 1    1        81
    4 to 6      5       72, 120    40       yes      ReLU         2, 1    1        41
    7 to 10     3      240 to 184  80                h-swish      2, 1    1        21
    11, 12      3      480, 672   112       yes      h-swish      1       1        21
    13 to 15    5      672, 960   160       yes      h-swish      1       2        21
    16          1        -        960                h-swish      1       1        21

At 32 block 13 has stride 2, and no rates; at 8 block 7 has stride 1, and from it on the rate is 2,
from 13 on 4. A block that would stride and does not has the rate of those behind it, as
torchvision has it.

The names are torchvision's. Sources: Howard et al., "Searching for MobileNetV3", ICCV 2019, table
1; torchvision's `models.mobilenetv3` with dilated=True.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from deeplab.model import initialise
from deeplab.model.batch_norm import FrozenBatchNorm2d
from deeplab.model.styles import OutputStride

EPS, MOMENTUM = 1e-3, 0.01  # of its batch normalisation, as torchvision has them

# kernel, expanded, channels, squeeze and excitation, h-swish, stride of the network for pictures
BLOCKS = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)


class MobileNetV3(nn.Module):
    """MobileNetV3-Large of output stride s: `[B, in_channels, H, W]` -> `[B, 960, ~H/s, ~W/s]`.

    frozen_bn: statistics and affine of every batch normalisation are constants.
    low_channels: those of block 3, the last of output stride 4.
    """

    out_channels = 960
    low_channels = 24

    def __init__(
        self, *, frozen_bn: bool, output_stride: OutputStride = 16, in_channels: int = 3
    ) -> None:
        super().__init__()
        self.output_stride = output_stride
        stem = _conv(in_channels, 16, 3, frozen_bn, stride=2, activation=nn.Hardswish)
        layers: list[nn.Module] = [stem]
        inputs = 16
        reached, rate = 2, 1
        for kernel, expanded, outputs, squeeze, hard, stride in BLOCKS:
            if reached == output_stride:
                rate *= stride
                stride = 1
            reached *= stride
            activation = nn.Hardswish if hard else nn.ReLU
            layers.append(
                InvertedResidual(
                    inputs, expanded, outputs, kernel, frozen_bn,
                    squeeze=squeeze, activation=activation, stride=stride, rate=rate,
                )
            )  # fmt: skip
            inputs = outputs
        layers.append(_conv(inputs, self.out_channels, 1, frozen_bn, activation=nn.Hardswish))
        self.features = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                initialise.he(module, "fan_out")

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)

    def low_and_high(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What block 3 gives, at output stride 4, and the last map."""
        low = self.features[:4](x)
        return low, self.features[4:](low)


class InvertedResidual(nn.Module):
    """1x1 to `expanded` channels, a depthwise convolution, squeeze and excitation, 1x1 back.

    The first 1x1 is left out where it would change no channels; the input is added where the block
    keeps size and channels.
    """

    def __init__(
        self,
        in_channels: int,
        expanded: int,
        out_channels: int,
        kernel: int,
        frozen_bn: bool,
        *,
        squeeze: bool,
        activation: type[nn.Module],
        stride: int,
        rate: int,
    ) -> None:
        super().__init__()
        self.residual = stride == 1 and in_channels == out_channels
        layers: list[nn.Module] = []
        if expanded != in_channels:
            layers.append(_conv(in_channels, expanded, 1, frozen_bn, activation=activation))
        layers.append(
            _conv(
                expanded, expanded, kernel, frozen_bn,
                stride=stride, rate=rate, groups=expanded, activation=activation,
            )
        )  # fmt: skip
        if squeeze:
            layers.append(SqueezeExcitation(expanded, _eighths(expanded // 4)))
        layers.append(_conv(expanded, out_channels, 1, frozen_bn))
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return x + y if self.residual else y


class SqueezeExcitation(nn.Module):
    """Each channel times a number from 0 to 1, which the means of all channels tell."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = F.adaptive_avg_pool2d(x, 1)
        return x * F.hardsigmoid(self.fc2(F.relu(self.fc1(mean))))


def _conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    frozen_bn: bool,
    *,
    stride: int = 1,
    rate: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = None,
) -> nn.Sequential:
    """Convolution, batch normalisation, activation."""
    conv = nn.Conv2d(
        in_channels, out_channels, kernel, stride=stride, padding=rate * (kernel // 2),
        dilation=rate, groups=groups, bias=False,
    )  # fmt: skip
    norm = (
        FrozenBatchNorm2d(out_channels, EPS)
        if frozen_bn
        else nn.BatchNorm2d(out_channels, EPS, MOMENTUM)
    )
    return nn.Sequential(conv, norm, *(() if activation is None else (activation(),)))


def _eighths(channels: int) -> int:
    """The nearest multiple of 8, at least 8 and no less than nine tenths of `channels`."""
    rounded = max(8, (channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
