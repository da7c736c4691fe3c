"""ResNet with bottleneck blocks at output stride 8, as in the Caffe network of DeepLab v2.

              rate  stride  size for 321   channels (width 64)
    conv1       1      2        161             64    7x7
    pool1       -      2         81             64    3x3 max, padding 1, rounding up
    layer1      1      1         81            256    res2
    layer2      1      2         41            512    res3
    layer3      2      1         41           1024    res4
    layer4      4      1         41           2048    res5

It differs from torchvision's ResNet in meaning, though all shapes of weights agree: the stride is
on the first 1x1 convolution (and on the projection), pooling rounds up, and every 3x3 of a stage
has that stage's rate, the first included.

Sources: He et al., "Deep Residual Learning for Image Recognition", 2015; Chen et al., "DeepLab",
TPAMI 2018, and its released prototxt.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from deeplab import initialise
from deeplab.backbones.batch_norm import FrozenBatchNorm2d

Norm = Callable[[int], nn.Module]


class ResNet(nn.Module):
    """ResNet with output stride 8: `[B, 3, H, W]` -> `[B, 32 * width, ~H/8, ~W/8]`.

    blocks: bottleneck blocks in each of the four stages; (3, 4, 23, 3) is ResNet-101.
    width: channels of the stem; 64 in the paper.
    frozen_bn: statistics and affine of every batch normalisation are constants.
    """

    def __init__(
        self, blocks: tuple[int, int, int, int], *, width: int = 64, frozen_bn: bool
    ) -> None:
        super().__init__()
        norm: Norm = FrozenBatchNorm2d if frozen_bn else nn.BatchNorm2d
        self.out_channels = 32 * width
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.pool1 = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.layer1 = _stage(blocks[0], width, width, stride=1, rate=1, norm=norm)
        self.layer2 = _stage(blocks[1], 4 * width, 2 * width, stride=2, rate=1, norm=norm)
        self.layer3 = _stage(blocks[2], 8 * width, 4 * width, stride=1, rate=2, norm=norm)
        self.layer4 = _stage(blocks[3], 16 * width, 8 * width, stride=1, rate=4, norm=norm)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                initialise.he(module, "fan_out")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.pool1(x)
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        return self.layer4(x)


class Bottleneck(nn.Module):
    """1x1 (stride) - 3x3 (rate) - 1x1, added to the input or to its projection."""

    def __init__(
        self, in_channels: int, width: int, *, stride: int, rate: int, project: bool, norm: Norm
    ) -> None:
        super().__init__()
        out_channels = 4 * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride=stride, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=rate, dilation=rate, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                norm(out_channels),
            )
            if project
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = self.bn3(self.conv3(x))
        return F.relu(x + shortcut, inplace=True)


def _stage(
    blocks: int, in_channels: int, width: int, *, stride: int, rate: int, norm: Norm
) -> nn.Sequential:
    """The first block strides and projects; the others keep size and channels."""
    first = Bottleneck(in_channels, width, stride=stride, rate=rate, project=True, norm=norm)
    rest = [
        Bottleneck(4 * width, width, stride=1, rate=rate, project=False, norm=norm)
        for _ in range(blocks - 1)
    ]
    return nn.Sequential(first, *rest)
