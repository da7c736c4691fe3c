"""The networks of DeepLab v1, v2 and v3, and one builder function for each.

    model = deeplab.model.deeplab_v2_resnet101(num_classes=21).eval()
    labels = model(model.preprocess(image)).argmax(1)

Heads on backbones that have no name of their own together: `build` with a name of `FAMILIES`,

    model = deeplab.model.build("deeplab_v3plus", num_classes=21, backbone="resnet34")

`table.py` has the table of networks, `MODELS`, and the builders: start there.
"""

from deeplab.model.network import DeepLab
from deeplab.model.table import (
    FAMILIES,
    MODELS,
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

__all__ = [
    "FAMILIES",
    "MODELS",
    "DeepLab",
    "build",
    "deeplab_v1_4x4",
    "deeplab_v1_7x7",
    "deeplab_v1_largefov",
    "deeplab_v1_msc",
    "deeplab_v1_msc_largefov",
    "deeplab_v2_resnet18",
    "deeplab_v2_resnet50",
    "deeplab_v2_resnet101",
    "deeplab_v2_resnet101_aspp_l",
    "deeplab_v2_resnet101_aspp_s",
    "deeplab_v2_resnet101_base",
    "deeplab_v2_resnet101_largefov",
    "deeplab_v2_small",
    "deeplab_v2_vgg16",
    "deeplab_v2_vgg16_aspp_l",
    "deeplab_v2_vgg16_aspp_s",
    "deeplab_v2_vgg16_largefov",
    "deeplab_v3_mobilenet",
    "deeplab_v3_resnet50",
    "deeplab_v3_resnet101",
    "deeplab_v3plus_resnet18",
    "deeplab_v3plus_resnet50",
    "deeplab_v3plus_resnet101",
]
