"""Image classification networks turned into dense feature extractors of output stride 8."""

from deeplab.backbones.resnet import ResNet
from deeplab.backbones.vgg import VGG16

__all__ = ["VGG16", "ResNet"]
