"""VGG-16 at output stride 8, as in the Caffe networks of DeepLab v1 and v2.

                rate  stride of the pool   size for 321   channels
    conv1, pool1   1          2                 161          64
    conv2, pool2   1          2                  81         128
    conv3, pool3   1          2                  41         256
    conv4, pool4   1          1                  41         512
    conv5, pool5   2          1                  41         512
    pool5a         -          1                  41         512    v1 LargeFOV only: average

Every pool is 3x3 with padding 1 and rounds up; the average counts the padding, as Caffe does. In
style "torchvision" the pools round down, as torchvision's do, but keep their windows of 3x3.

Sources: Simonyan and Zisserman, "Very Deep Convolutional Networks", 2015; Chen et al., "Semantic
Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs", ICLR 2015 (v1), and
"DeepLab", TPAMI 2018 (v2), and their released prototxts.
"""

from torch import Tensor, nn

from deeplab.model import initialise
from deeplab.model.styles import Style


class VGG16(nn.Module):
    """VGG-16 less its fully connected layers: `[B, in_channels, H, W]` -> `[B, 512, ~H/8, ~W/8]`.

    pool5a: average the result over 3x3, as LargeFOV of DeepLab v1 does.
    """

    out_channels = 512

    def __init__(self, *, pool5a: bool, style: Style = "caffe", in_channels: int = 3) -> None:
        super().__init__()
        self.conv1_1 = _conv3x3(in_channels, 64)
        self.conv1_2 = _conv3x3(64, 64)
        self.conv2_1 = _conv3x3(64, 128)
        self.conv2_2 = _conv3x3(128, 128)
        self.conv3_1 = _conv3x3(128, 256)
        self.conv3_2 = _conv3x3(256, 256)
        self.conv3_3 = _conv3x3(256, 256)
        self.conv4_1 = _conv3x3(256, 512)
        self.conv4_2 = _conv3x3(512, 512)
        self.conv4_3 = _conv3x3(512, 512)
        self.conv5_1 = _conv3x3(512, 512, rate=2)
        self.conv5_2 = _conv3x3(512, 512, rate=2)
        self.conv5_3 = _conv3x3(512, 512, rate=2)
        self.relu = nn.ReLU(inplace=True)
        ceil = style == "caffe"
        self.pool1, self.pool2, self.pool3 = (_max_pool3x3(2, ceil) for _ in range(3))
        self.pool4, self.pool5 = (_max_pool3x3(1, ceil) for _ in range(2))
        self.pool5a = nn.AvgPool2d(3, stride=1, padding=1) if pool5a else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                initialise.he(module, "fan_out")

    def forward(self, x: Tensor, pools: list[Tensor] | None = None) -> Tensor:
        """pools: a list that gets what pool1 to pool4 give, for a caller who wants them too."""
        relu = self.relu
        x = relu(self.conv1_2(relu(self.conv1_1(x))))
        x = _kept(self.pool1(x), pools)
        x = relu(self.conv2_2(relu(self.conv2_1(x))))
        x = _kept(self.pool2(x), pools)
        x = relu(self.conv3_3(relu(self.conv3_2(relu(self.conv3_1(x))))))
        x = _kept(self.pool3(x), pools)
        x = relu(self.conv4_3(relu(self.conv4_2(relu(self.conv4_1(x))))))
        x = _kept(self.pool4(x), pools)
        x = relu(self.conv5_3(relu(self.conv5_2(relu(self.conv5_1(x))))))
        x = self.pool5(x)
        return x if self.pool5a is None else self.pool5a(x)


def _kept(x: Tensor, pools: list[Tensor] | None) -> Tensor:
    if pools is not None:
        pools.append(x)
    return x


def _conv3x3(in_channels: int, out_channels: int, rate: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=rate, dilation=rate)


def _max_pool3x3(stride: int, ceil_mode: bool) -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=stride, padding=1, ceil_mode=ceil_mode)
