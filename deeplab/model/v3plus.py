"""The head of DeepLab v3+: the pyramid of v3, and a decoder that looks at finer features again.

    x = conv( project([1x1, *_r1, *_r2, *_r3, mean]) )       of the backbone's last map
    y = classify( decode([ upsample(x), low(layer1) ]) )     at output stride 4

`conv` and `decode` are separable: 3x3 in each channel, then 1x1 across them. So are the
convolutions of the pyramid, unless separable is False, which makes them those of v3.

Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation", ECCV 2018, figure 2; layers and their order as in segmentation_models_pytorch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplab.model import initialise
from deeplab.model.batch_norm import FrozenBatchNorm2d
from deeplab.model.heads import DeepLabV3Head, SeparableMultiRateConv2d

LOW = 48  # channels that the decoder takes of the finer features


class DeepLabV3PlusHead(DeepLabV3Head):
    """`[B, low_channels, h, w]` and `[B, in_channels, h', w']` -> scores `[B, classes, h, w]`.

    aligned: upsampling keeps the corners on the corners, as the style has it.
    """

    def __init__(
        self,
        in_channels: int,
        low_channels: int,
        num_classes: int,
        rates: Sequence[int],
        *,
        frozen_bn: bool,
        separable: bool,
        aligned: bool,
        channels: int = 256,
    ) -> None:
        super().__init__(in_channels, num_classes, rates, frozen_bn=frozen_bn, channels=channels)
        norm = FrozenBatchNorm2d if frozen_bn else nn.BatchNorm2d
        self.aligned = aligned
        if separable:
            self.pyramid = SeparableMultiRateConv2d(in_channels, channels, rates)
        self.conv = SeparableConv2d(channels, channels)
        self.low = nn.Conv2d(low_channels, LOW, 1, bias=False)
        self.low_bn = norm(LOW)
        self.decode = SeparableConv2d(channels + LOW, channels)
        self.decode_bn = norm(channels)
        initialise.he(self.low, "fan_in")

    def forward(self, low: Tensor, features: Tensor) -> Tensor:  # type: ignore[override]
        x = F.relu(self.conv_bn(self.conv(self.context(features))), inplace=True)
        size = low.shape[2:]
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=self.aligned)
        low = F.relu(self.low_bn(self.low(low)), inplace=True)
        x = self.decode(torch.cat([x, low], dim=1))
        return self.classifier(F.relu(self.decode_bn(x), inplace=True))


class SeparableConv2d(nn.Sequential):
    """3x3 in each channel, then 1x1 across them."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        depthwise = nn.Conv2d(
            in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False
        )
        pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        super().__init__(depthwise, pointwise)
        initialise.he(depthwise, "fan_in")
        initialise.he(pointwise, "fan_in")
