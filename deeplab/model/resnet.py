"""ResNet at output stride 8, 16 or 32, as Caffe's DeepLab v2, torchvision or smp dilate it.

              rate  stride  size for 321   channels of bottlenecks (width 64), of basic blocks
    conv1       1      2        161             64      64    7x7
    pool1       -      2         81             64      64    3x3 max, padding 1
    layer1      1      1         81            256      64    res2
    layer2      1      2         41            512     128    res3
    layer3      2      1         41           1024     256    res4
    layer4      4      1         41           2048     512    res5

At output stride 16 layer3 has rate 1 and stride 2, and layer4 rate 2; at 32 there are no rates.

All shapes of weights agree between the styles; what they mean does not:

                            caffe                         torchvision
    pool1                   rounds up                     rounds down
    stride of a bottleneck  on the first 1x1              on the 3x3
    rates                   every 3x3 has its stage's     the 3x3 that had the stride keeps the
                                                          rate of the stage before
    320 pixels              160, 81, 41                   160, 80, 40

The second is what removing a stride asks for: what lies behind it is spread, what had it is not.
Style "smp" is that but for the rates, which are as in the first. In basic blocks the stride is on
the first 3x3 in all styles.

Sources: He et al., "Deep Residual Learning for Image Recognition", 2015; Chen et al., "DeepLab",
TPAMI 2018, and its released prototxt; torchvision's `models.resnet` with
replace_stride_with_dilation=[False, True, True].
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from deeplab.model import initialise
from deeplab.model.batch_norm import FrozenBatchNorm2d
from deeplab.model.styles import OutputStride, Style

Norm = Callable[[int], nn.Module]
# By output stride, for each stage: the rates before and of it, and its stride.
STAGES: dict[OutputStride, tuple[tuple[tuple[int, int], int], ...]] = {
    8: (((1, 1), 1), ((1, 1), 2), ((1, 2), 1), ((2, 4), 1)),
    16: (((1, 1), 1), ((1, 1), 2), ((1, 1), 2), ((1, 2), 1)),
    32: (((1, 1), 1), ((1, 1), 2), ((1, 1), 2), ((1, 1), 2)),
}


class ResNet(nn.Module):
    """ResNet of output stride s: `[B, in_channels, H, W]` -> `[B, out_channels, ~H/s, ~W/s]`.

    blocks: residual blocks in each of the four stages; bottlenecks in (3, 4, 23, 3) are ResNet-101.
    width: channels of the stem; 64 in the paper. out_channels is 32 * width, 8 * width for basic
        blocks.
    frozen_bn: statistics and affine of every batch normalisation are constants.
    block: "bottleneck" (1x1, 3x3, 1x1) or "basic" (3x3, 3x3: ResNet-18 and -34).
    low_channels: those of layer1, at output stride 4.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        *,
        width: int = 64,
        frozen_bn: bool,
        style: Style = "caffe",
        block: Literal["bottleneck", "basic"] = "bottleneck",
        output_stride: OutputStride = 8,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.output_stride = output_stride
        norm: Norm = FrozenBatchNorm2d if frozen_bn else nn.BatchNorm2d
        kind = Bottleneck if block == "bottleneck" else BasicBlock
        self.out_channels = 8 * width * kind.expansion
        self.low_channels = width * kind.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.pool1 = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=style == "caffe")
        inputs = [width, *(width * 2**i * kind.expansion for i in range(3))]
        stages = [
            _stage(kind, blocks[i], inputs[i], width * 2**i, rates, norm, style, stride)
            for i, (rates, stride) in enumerate(STAGES[output_stride])
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                initialise.he(module, "fan_out")

    def forward(self, x: Tensor) -> Tensor:
        return self.low_and_high(x)[1]

    def low_and_high(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What layer1 gives, at output stride 4, and layer4."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.pool1(x)
        low = self.layer1(x)
        x = self.layer2(low)
        x = self.layer3(x)
        return low, self.layer4(x)

    def last_two(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What layer3 gives, of half as many channels, and layer4."""
        x = self.pool1(self.relu(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return x, self.layer4(x)


class Bottleneck(nn.Module):
    """1x1 - 3x3 - 1x1, added to the input or to its projection; the 3x3 is at rates[0]."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int,
        rates: tuple[int, int],
        style: Style,
        norm: Norm,
    ) -> None:
        super().__init__()
        out_channels = self.expansion * width
        strides = (stride, 1) if style == "caffe" else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride=strides[0], bias=False)
        self.bn1 = norm(width)
        self.conv2 = _conv3x3(width, width, strides[1], rates[0])
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.downsample = _projection(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = self.bn3(self.conv3(x))
        return F.relu(x + shortcut, inplace=True)


class BasicBlock(nn.Module):
    """3x3 (stride) - 3x3 at the two rates, added to the input or to its projection."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int,
        rates: tuple[int, int],
        style: Style,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, width, stride, rates[0])
        self.bn1 = norm(width)
        self.conv2 = _conv3x3(width, width, 1, rates[1])
        self.bn2 = norm(width)
        self.downsample = _projection(in_channels, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.bn2(self.conv2(x))
        return F.relu(x + shortcut, inplace=True)


def _stage(
    kind: type[Bottleneck] | type[BasicBlock],
    blocks: int,
    in_channels: int,
    width: int,
    rates: tuple[int, int],
    norm: Norm,
    style: Style,
    stride: int,
) -> nn.Sequential:
    """The first block strides; `rates` are those of the stage before and of this one."""
    before, rate = rates
    strided = (before if style == "torchvision" else rate, rate)
    first = kind(in_channels, width, stride=stride, rates=strided, style=style, norm=norm)
    channels = kind.expansion * width
    rest = [
        kind(channels, width, stride=1, rates=(rate, rate), style=style, norm=norm)
        for _ in range(blocks - 1)
    ]
    return nn.Sequential(first, *rest)


def _conv3x3(in_channels: int, out_channels: int, stride: int, rate: int) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels, out_channels, 3, stride=stride, padding=rate, dilation=rate, bias=False
    )


def _projection(
    in_channels: int, out_channels: int, stride: int, norm: Norm
) -> nn.Sequential | None:
    """A 1x1 convolution where the block changes size or channels; None where it changes neither."""
    if stride == 1 and in_channels == out_channels:
        return None
    conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(conv, norm(out_channels))
