"""VGG-16, at output stride 8 as in the Caffe networks of DeepLab v1 and v2, or at 16 or 32.

                rate  stride of the pool   size for 321   channels
    conv1, pool1   1          2                 161          64
    conv2, pool2   1          2                  81         128
    conv3, pool3   1          2                  41         256
    conv4, pool4   1          1                  41         512
    conv5, pool5   2          1                  41         512
    pool5a         -          1                  41         512    v1 LargeFOV only: average

At output stride 16 pool4 has stride 2, and conv5 rate 1; at 32 pool5 strides too, and there are no
rates: the network for whole pictures.

Every pool is 3x3 with padding 1 and rounds up; the average counts the padding, as Caffe does. In
style "torchvision" the pools round down, as torchvision's do, but keep their windows of 3x3.

Sources: Simonyan and Zisserman, "Very Deep Convolutional Networks", 2015; Chen et al., "Semantic
Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs", ICLR 2015 (v1), and
"DeepLab", TPAMI 2018 (v2), and their released prototxts.
"""

from torch import Tensor, nn

from deeplab.model import initialise
from deeplab.model.styles import OutputStride, Style


class VGG16(nn.Module):
    """VGG-16 of output stride s without its fully connected layers.

    `[B, in_channels, H, W]` -> `[B, 512, ~H/s, ~W/s]`.

    pool5a: average the result over 3x3, as LargeFOV of DeepLab v1 does.
    low_channels: those of conv3_3, the last map of output stride 4.
    """

    out_channels = 512
    low_channels = 256

    def __init__(
        self,
        *,
        pool5a: bool,
        style: Style = "caffe",
        output_stride: OutputStride = 8,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.output_stride = output_stride
        rate = 2 if output_stride == 8 else 1
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
        self.conv5_1 = _conv3x3(512, 512, rate)
        self.conv5_2 = _conv3x3(512, 512, rate)
        self.conv5_3 = _conv3x3(512, 512, rate)
        self.relu = nn.ReLU(inplace=True)
        ceil = style == "caffe"
        self.pool1, self.pool2, self.pool3 = (_max_pool3x3(2, ceil) for _ in range(3))
        self.pool4 = _max_pool3x3(2 if output_stride >= 16 else 1, ceil)
        self.pool5 = _max_pool3x3(2 if output_stride == 32 else 1, ceil)
        self.pool5a = nn.AvgPool2d(3, stride=1, padding=1) if pool5a else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                initialise.he(module, "fan_out")

    def forward(self, x: Tensor) -> Tensor:
        return self.low_and_high(x)[1]

    def low_and_high(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What conv3_3 gives, at output stride 4, and the last map."""
        _, low, high = self.all_maps(x)
        return low, high

    def all_maps(self, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """What pool1 to pool4 give, conv3_3, and the last map."""
        relu = self.relu
        x = relu(self.conv1_2(relu(self.conv1_1(x))))
        pool1 = self.pool1(x)
        x = relu(self.conv2_2(relu(self.conv2_1(pool1))))
        pool2 = self.pool2(x)
        low = relu(self.conv3_3(relu(self.conv3_2(relu(self.conv3_1(pool2))))))
        pool3 = self.pool3(low)
        x = relu(self.conv4_3(relu(self.conv4_2(relu(self.conv4_1(pool3))))))
        pool4 = self.pool4(x)
        x = relu(self.conv5_3(relu(self.conv5_2(relu(self.conv5_1(pool4))))))
        x = self.pool5(x)
        high = x if self.pool5a is None else self.pool5a(x)
        return [pool1, pool2, pool3, pool4], low, high


def _conv3x3(in_channels: int, out_channels: int, rate: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=rate, dilation=rate)


def _max_pool3x3(stride: int, ceil_mode: bool) -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=stride, padding=1, ceil_mode=ceil_mode)
