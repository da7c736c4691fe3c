"""The networks of this package for `torch.hub`, which also takes the folder of a clone:

    model = torch.hub.load("path/to/clone", "deeplab_v3_resnet101", source="local", num_classes=21)
    model = torch.hub.load("path/to/clone", "load_model", source="local", path="scenes").eval()

`load_model` takes a name of `deeplab weights list` or a file; the others are without weights.
`torch.hub.help` shows what each takes. What is imported here is what it offers.
"""

# ruff: noqa: F401

from deeplab.model import (
    build,
    deeplab_v1_4x4,
    deeplab_v1_7x7,
    deeplab_v1_largefov,
    deeplab_v1_msc,
    deeplab_v1_msc_largefov,
    deeplab_v2_resnet18,
    deeplab_v2_resnet50,
    deeplab_v2_resnet101,
    deeplab_v2_resnet101_aspp_l,
    deeplab_v2_resnet101_aspp_s,
    deeplab_v2_resnet101_base,
    deeplab_v2_resnet101_largefov,
    deeplab_v2_small,
    deeplab_v2_vgg16,
    deeplab_v2_vgg16_aspp_l,
    deeplab_v2_vgg16_aspp_s,
    deeplab_v2_vgg16_largefov,
    deeplab_v3_mobilenet,
    deeplab_v3_resnet50,
    deeplab_v3_resnet101,
    deeplab_v3plus_resnet18,
    deeplab_v3plus_resnet50,
    deeplab_v3plus_resnet101,
)
from deeplab.weights import load_model

dependencies = ["torch", "numpy", "PIL", "safetensors"]
