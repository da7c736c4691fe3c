"""The auxiliary classifier of DeepLab v3: scores from a map in the middle of the backbone.

    loss = sum over losses of main scores + auxiliary * the same of aux scores
    aux scores = classifier( drop( relu( bn( conv3x3(m) ) ) ) )

m is what layer3 of a ResNet gives, or a block at stride 8 of MobileNetV3, as in torchvision's
models. It teaches the first layers, and is for training alone: no weights file of this package has
it. Torchvision's files that have an `aux_classifier` start it; otherwise it starts from random
numbers. Sources: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, section 3.3; the training
script of torchvision, which weighs it 0.5.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from deeplab.errors import InputError
from deeplab.model import DeepLab, initialise
from deeplab.model.batch_norm import FrozenBatchNorm2d
from deeplab.model.heads import DeepLabV3Head
from deeplab.model.mobilenet import MobileNetV3
from deeplab.model.resnet import ResNet
from deeplab.weights import names
from deeplab.weights.file import StrPath, named_path
from deeplab.weights.sources import is_own, read_checkpoint

MOBILENET_BLOCKS = 5  # of MobileNetV3 in front of the tap


class AuxiliaryHead(nn.Module):
    """The classifier for a model; `scores(model, x)` are those of both.

    Raises InputError for a model that is not of v3, or has several scales or a CRF.
    """

    def __init__(self, model: DeepLab) -> None:
        super().__init__()
        _check(model)
        norm = FrozenBatchNorm2d if model.config["frozen_bn"] else nn.BatchNorm2d
        inputs = _channels(model)
        self.conv = nn.Conv2d(inputs, inputs // 4, 3, padding=1, bias=False)
        self.bn = norm(inputs // 4)
        self.drop = nn.Dropout(0.1)
        self.classifier = nn.Conv2d(inputs // 4, model.num_classes, 1)
        initialise.he(self.conv, "fan_in")
        initialise.classifier(self.classifier)

    def forward(self, features: Tensor) -> Tensor:
        """`[B, Cin, h, w]` -> scores `[B, classes, h, w]`."""
        return self.classifier(self.drop(F.relu(self.bn(self.conv(features)), inplace=True)))

    def scores(self, model: DeepLab, x: Tensor, upsample: bool) -> tuple[Tensor, Tensor]:
        """The model's logits for preprocessed `[B, 3, H, W]`, and the auxiliary ones.

        upsample: as of `DeepLab.forward`.
        """
        if isinstance(model.backbone, ResNet):
            middle, last = model.backbone.last_two(x)
        else:
            assert isinstance(model.backbone, MobileNetV3)
            middle = model.backbone.features[:MOBILENET_BLOCKS](x)
            last = model.backbone.features[MOBILENET_BLOCKS:](middle)
        assert type(model.head) is DeepLabV3Head
        scores = model.class_scores(model.head(last)), self(middle)
        if not upsample:
            return scores
        main, auxiliary = (model.upsample(one, x.shape[2:]) for one in scores)
        return main, auxiliary


def load_auxiliary(head: AuxiliaryHead, path: StrPath) -> tuple[str, ...]:
    """Copy the layers of torchvision's `aux_classifier` that fit; returns the tensors that stay.

    path: a file, or a name of `deeplab.weights.registry`; one of another kind has none of them.
    """
    path = named_path(path)
    given = {} if is_own(path) else read_checkpoint(path).translated.auxiliary
    stay = []
    for layer, theirs in (("conv", "0"), ("bn", "1"), ("classifier", "4")):
        state = getattr(head, layer).state_dict()
        found = {f"{theirs}.{kind}": t for kind, t in state.items() if kind != names.COUNTER}
        if all(name in given and given[name].shape == t.shape for name, t in found.items()):
            for name, tensor in found.items():
                tensor.copy_(given[name])
        else:
            stay += [f"{layer}.{kind}" for kind in state if kind != names.COUNTER]
    return tuple(stay)


def _check(model: DeepLab) -> None:
    name = model.config["model"]
    of_v3 = type(model.head) is DeepLabV3Head
    if not of_v3 or not isinstance(model.backbone, ResNet | MobileNetV3):
        raise InputError(f"auxiliary must be 0 to train {name}: only DeepLab v3 has such a head")
    if model.scales is not None or model.crf is not None:
        what = "several scales" if model.scales is not None else "a CRF"
        raise InputError(f"auxiliary must be 0 for a model with {what}; leave one of them out")


def _channels(model: DeepLab) -> int:
    """Of the map in the middle."""
    if isinstance(model.backbone, ResNet):
        return model.backbone.out_channels // 2
    return 40
