"""DeepLab models: a backbone at output stride 8, a head, and a dense CRF where one is wanted.

    logits = upsample( head( backbone( preprocess(image) ) ) )        and, with a CRF layer,
    field  = crf.field(logits, image),  softmax(field) = the marginals

    name                    backbone      head                              parameters, 21 classes
    deeplab_v1_largefov     VGG-16        fc6-fc7-fc8 at rate 12                        20,505,429
    deeplab_v2_vgg16        VGG-16        fc6-fc7-fc8 at rates 6, 12, 18, 24            37,877,652
    deeplab_v2_resnet101    ResNet-101    3x3 at rates 6, 12, 18, 24                    44,048,532
    deeplab_v2_small        ResNet, 1/4 of the width, 6 blocks; the same head              915,876

    model = deeplab_v2_resnet101(num_classes=21).eval()
    labels = model(model.preprocess(image)).argmax(1)

Sources: Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected
CRFs", ICLR 2015 (v1); "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous
Convolution, and Fully Connected CRFs", TPAMI 2018 (v2), and their released Caffe networks.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from crf import DenseCRF
from deeplab.backbones import VGG16, ResNet
from deeplab.heads import ASPP, FullyConnectedASPP
from deeplab.preprocess import preprocess

ASPP_L = (6, 12, 18, 24)  # the papers' ASPP-L; ASPP-S is (2, 4, 8, 12)


class DeepLab(nn.Module):
    """Backbone, head and, if given, a dense CRF. Build one with the functions below.

    Attributes: `backbone`, `head`, `crf` (a DenseCRF or None; it may be set at any time),
    `num_classes`, and `config`: the model's name and options as JSON-able values, so that
    `build(config["model"], ...)` makes the same model again.
    """

    in_channels = 3

    def __init__(
        self,
        backbone: ResNet | VGG16,
        head: ASPP | FullyConnectedASPP,
        *,
        config: dict[str, Any],
        crf: DenseCRF | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_classes: int = config["num_classes"]
        self.backbone = backbone
        self.head = head
        self.crf = crf

    def preprocess(self, image: np.ndarray | Tensor) -> Tensor:
        """RGB in 0-255 -> the input that the weights expect: BGR, mean subtracted.

        image: NumPy `[H, W, 3]`, or tensor `[3, H, W]` or `[B, 3, H, W]`; uint8 or floating point.
        Returns `[B, 3, H, W]` float32 on the model's device; raises as
        `deeplab.preprocess.preprocess` does.
        """
        return preprocess(image).to(next(self.parameters()).device)

    def forward(self, x: Tensor, *, image: Tensor | None = None, upsample: bool = True) -> Tensor:
        """Class scores, one tensor in training and in evaluation.

        x: `[B, 3, H, W]`, preprocessed, any size from 1x1 up.
        image: `[B, 3, H, W]`, the same pictures as RGB 0-255: what a CRF layer looks at.
        upsample: to the input's size, bilinear with align_corners as in Caffe; False leaves the
            backbone's size, about H/8 x W/8.

        Returns logits `[B, num_classes, H, W]`, whose softmax is the class probabilities. With a
        CRF layer they are the CRF's last field before the softmax, so their softmax is its
        marginals and a cross entropy on them trains through it.

        Raises ValueError for a wrong shape; for a CRF without `image` or with upsample=False (it
        works on pixels); for `image` without a CRF, which would be left unused.
        """
        self._check(x, image, upsample)
        logits = self.head(self.backbone(x))
        if upsample:
            logits = F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=True)
        if self.crf is None:
            return logits
        assert image is not None  # _check has seen to it
        return self.crf.field(logits, image)

    def param_groups(self, lr: float, weight_decay: float = 5e-4) -> list[dict[str, Any]]:
        """The papers' groups for an optimiser; every trainable parameter is in exactly one.

            name           lr times   weight decay
            body_weight        1          yes
            body_bias          2          no
            body_norm          1          no          BatchNorm, where it is trained
            head_weight       10          yes         the classifier: last layer of the head
            head_bias         20          no
            crf                1          no

        Each is a dict with "params", "lr" (multiplied already), "weight_decay", "name" and
        "lr_scale" (the factor, for schedules). Empty groups are left out.
        """
        groups = {
            "body_weight": (1.0, weight_decay),
            "body_bias": (2.0, 0.0),
            "body_norm": (1.0, 0.0),
            "head_weight": (10.0, weight_decay),
            "head_bias": (20.0, 0.0),
            "crf": (1.0, 0.0),
        }
        params: dict[str, list[nn.Parameter]] = {name: [] for name in groups}
        for group, parameter in self._trainable_parameters():
            params[group].append(parameter)
        return [
            {
                "params": params[name],
                "lr": lr * lr_scale,
                "weight_decay": decay,
                "name": name,
                "lr_scale": lr_scale,
            }
            for name, (lr_scale, decay) in groups.items()
            if params[name]
        ]

    def _trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """(group, parameter) for each parameter that takes gradients, in the model's order."""
        found = []
        for module_name, module in self.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if not parameter.requires_grad:
                    continue
                if module_name.split(".")[0] == "crf":
                    group = "crf"
                elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                    group = "body_norm"
                else:
                    part = "head" if module is self.head.classifier else "body"
                    group = f"{part}_{name}"
                found.append((group, parameter))
        return found

    def _check(self, x: Tensor, image: Tensor | None, upsample: bool) -> None:
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] == 0 or x.shape[3] == 0:
            raise ValueError(
                f"x: expected a preprocessed batch [B, 3, H, W], got shape {list(x.shape)}; "
                "model.preprocess(image) makes one"
            )
        if not x.is_floating_point():
            raise TypeError(
                f"x: expected floating point, got {x.dtype}; pass model.preprocess(image)"
            )
        if self.crf is None:
            if image is not None:
                raise ValueError(
                    "image: only a CRF layer looks at it and this model has none; leave it out, "
                    "or build the model with crf=crf.DenseCRF(...)"
                )
            return
        if image is None:
            raise ValueError(
                "image: this model ends in a CRF, which needs the pictures as RGB 0-255 "
                "[B, 3, H, W]; pass image=..., or set model.crf = None for the network alone"
            )
        if not upsample:
            raise ValueError(
                "upsample: the CRF works on pixels, so upsample=False is not possible with it; "
                "set model.crf = None for the network's own scores"
            )
        if image.shape != x.shape:
            raise ValueError(
                f"image: expected the shape of x, {list(x.shape)}, got {list(image.shape)}"
            )


def deeplab_v2_resnet101(
    num_classes: int = 21,
    rates: Sequence[int] = ASPP_L,
    *,
    frozen_bn: bool = True,
    crf: DenseCRF | None = None,
) -> DeepLab:
    """DeepLab v2 on ResNet-101: the 3x3 classifiers at `rates`, summed.

    With rates=(12,) it is the paper's LargeFOV variant.
    frozen_bn: keep statistics and affine of BatchNorm as they are, in training too, as the paper
        does with its small batches; False trains both.
    """
    config = _config("deeplab_v2_resnet101", num_classes, rates, frozen_bn=frozen_bn)
    backbone = ResNet((3, 4, 23, 3), frozen_bn=frozen_bn)
    head = ASPP(backbone.out_channels, num_classes, rates)
    return DeepLab(backbone, head, config=config, crf=crf)


def deeplab_v2_small(
    num_classes: int = 21,
    rates: Sequence[int] = ASPP_L,
    *,
    frozen_bn: bool = False,
    crf: DenseCRF | None = None,
) -> DeepLab:
    """The layout of `deeplab_v2_resnet101` in small, for CPUs and tests: about 0.7 M parameters.

    Base width 16 instead of 64 and (2, 2, 1, 1) blocks instead of (3, 4, 23, 3): 0.53 M parameters
    in the backbone and 18,436 a class in the head. It is trained from scratch, so BatchNorm is
    trained too unless frozen_bn says otherwise.
    """
    config = _config("deeplab_v2_small", num_classes, rates, frozen_bn=frozen_bn)
    backbone = ResNet((2, 2, 1, 1), width=16, frozen_bn=frozen_bn)
    head = ASPP(backbone.out_channels, num_classes, rates)
    return DeepLab(backbone, head, config=config, crf=crf)


def deeplab_v2_vgg16(
    num_classes: int = 21, rates: Sequence[int] = ASPP_L, *, crf: DenseCRF | None = None
) -> DeepLab:
    """DeepLab v2 on VGG-16: a branch fc6 - fc7 - fc8 for each of `rates`, summed (ASPP-L)."""
    config = _config("deeplab_v2_vgg16", num_classes, rates)
    backbone = VGG16(pool5a=False)
    head = FullyConnectedASPP(backbone.out_channels, num_classes, rates)
    return DeepLab(backbone, head, config=config, crf=crf)


def deeplab_v1_largefov(
    num_classes: int = 21, rates: Sequence[int] = (12,), *, crf: DenseCRF | None = None
) -> DeepLab:
    """DeepLab v1 LargeFOV: VGG-16, average pooling (pool5a), fc6 - fc7 - fc8 at rate 12."""
    config = _config("deeplab_v1_largefov", num_classes, rates)
    backbone = VGG16(pool5a=True)
    head = FullyConnectedASPP(backbone.out_channels, num_classes, rates)
    return DeepLab(backbone, head, config=config, crf=crf)


MODELS: dict[str, Callable[..., DeepLab]] = {
    "deeplab_v1_largefov": deeplab_v1_largefov,
    "deeplab_v2_resnet101": deeplab_v2_resnet101,
    "deeplab_v2_small": deeplab_v2_small,
    "deeplab_v2_vgg16": deeplab_v2_vgg16,
}


def build(name: str, **kwargs: Any) -> DeepLab:
    """The model of that name, `MODELS[name](**kwargs)`; ValueError lists the names if unknown."""
    if name not in MODELS:
        raise ValueError(f"model: unknown name {name!r}; expected one of {', '.join(MODELS)}")
    return MODELS[name](**kwargs)


def _config(name: str, num_classes: int, rates: Sequence[int], **options: Any) -> dict[str, Any]:
    """The model's name and options as JSON-able values; ValueError where they make no model."""
    if not _is_positive(num_classes):
        raise ValueError(f"num_classes: expected an integer from 1 up, got {num_classes!r}")
    listed = list(rates) if isinstance(rates, Iterable) else []
    if not listed or not all(_is_positive(rate) for rate in listed):
        raise ValueError(
            "rates: expected at least one integer, each from 1 up, such as (6, 12, 18, 24), got "
            f"{listed or rates}"
        )
    return {"model": name, "num_classes": num_classes, "rates": listed, **options}


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
