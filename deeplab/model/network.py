"""The DeepLab module: backbone, head, what joins them, and a dense CRF where one is wanted.

    scores = head( backbone(x) )  [ + taps(x, pools) ]         MSc, DeepLab v1
    scores = max over scales of those                          MSC, DeepLab v2
    logits = upsample(scores)
    logits = crf.refine_logits(logits, image)                  with a CRF layer

`deeplab.model` builds the papers' networks from it.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crf import DenseCRF
from crf.checks import refuse_tracing
from deeplab.model import multiscale
from deeplab.model.backbones import Backbone
from deeplab.model.batch_norm import FrozenBatchNorm2d
from deeplab.model.heads import (
    ASPP,
    DeepLabV3Head,
    FullyConnected,
    FullyConnectedASPP,
    MultiScaleTaps,
    Pointwise,
)
from deeplab.model.multiscale import Resize
from deeplab.model.preprocess import Preprocessing
from deeplab.model.styles import Style
from deeplab.model.v3plus import DeepLabV3PlusHead
from deeplab.model.vgg import VGG16

NORMS = nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm
Head = Pointwise | ASPP | FullyConnected | FullyConnectedASPP | DeepLabV3Head | DeepLabV3PlusHead


class DeepLab(nn.Module):
    """Backbone, head and, if given, taps and a dense CRF. `deeplab.model` builds the papers' ones.

    Attributes: `backbone`, `head`, `taps` (MultiScaleTaps or None), `crf` (a DenseCRF or None; it
    may be set at any time), `num_classes`, `in_channels`, `preprocessing` (see `preprocess`),
    `style`, `scales` (a tuple, or None for one scale; `set_scales` sets it), `resize` and `config`:
    the model's name and options as JSON-able values, so that
    `deeplab.model.build(config["model"], ...)` makes the same model again.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        *,
        config: dict[str, Any],
        taps: MultiScaleTaps | None = None,
        crf: DenseCRF | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_classes: int = config["num_classes"]
        self.style: Style = config.get("style", "caffe")
        self.preprocessing = Preprocessing.of(config)
        self.in_channels = self.preprocessing.in_channels
        scales = config.get("scales")
        self.scales: tuple[float, ...] | None = None if scales is None else tuple(scales)
        self.resize: Resize = config.get("resize", "caffe")
        self.backbone = backbone
        self.head = head
        self.taps = taps
        self.crf = crf

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str]) -> "DeepLab":
        """The model of published or stored weights, on the CPU, to evaluate.

        source: a name of `deeplab weights list`, a file, a folder of `save_pretrained`, or a
            repository of the Hugging Face Hub, "owner/name".

        Raises InputError as `deeplab.weights.hub.load_pretrained` does, which also gives what is
        known of the weights: class names, palette and CRF settings.
        """
        from deeplab.weights import hub

        return hub.load_pretrained(source).model

    def save_pretrained(
        self, folder: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Write a folder that `from_pretrained` reads: see `deeplab.weights.hub`."""
        from deeplab.weights import hub

        hub.save_pretrained(self, folder, metadata)

    def push_to_hub(
        self, repository: str, metadata: Mapping[str, Any] | None = None, *, private: bool = False
    ) -> str:
        """Upload that folder to the Hugging Face Hub; returns its address."""
        from deeplab.weights import hub

        return hub.push_to_hub(self, repository, metadata, private=private)

    def preprocess(self, image: np.ndarray | Tensor) -> Tensor:
        """A picture -> the input that this model's weights expect.

        With `mean` and `deviation`: (image - mean) / deviation, band by band. Without them RGB in
        0-255; style "caffe": BGR, mean subtracted; "torchvision" and "smp": RGB, whitened.
        image: NumPy `[H, W, C]`, or tensor `[C, H, W]` or `[B, C, H, W]`, C = in_channels; uint8 or
            floating point, or uint16 with mean and deviation.
        Returns `[B, C, H, W]` on the model's device and in its dtype; raises as
        `deeplab.model.preprocess.preprocess` does.
        """
        return self.preprocessing(image).to(next(self.parameters()))

    def forward(self, x: Tensor, *, image: Tensor | None = None, upsample: bool = True) -> Tensor:
        """Class scores, one tensor in training and in evaluation.

        x: `[B, in_channels, H, W]`, preprocessed, any size from 1x1 up.
        image: `[B, 3, H, W]`, the same pictures as RGB 0-255: what a CRF layer looks at (of other
            bands `preprocessing.levels(pictures)`).
        upsample: to the input's size, as `upsample` does it; False leaves the backbone's size,
            about H/8 x W/8.

        Returns logits `[B, num_classes, H, W]`, which `probabilities` makes those of the classes
        (their softmax, unless the model is `multilabel`); with several scales they are the fused
        ones. With a CRF layer they are the CRF's last field before the softmax, so their softmax is
        its marginals and a cross entropy on them trains through it.

        Raises ValueError for a wrong shape; for a CRF without `image` or with upsample=False (it
        works on pixels); for `image` without a CRF, which would be left unused.
        """
        self._check(x)
        self._check_image(x, image, upsample)
        logits = self._scores(x) if self.scales is None else self._scores_of_scales(x)[0]
        if upsample:
            logits = self.upsample(logits, x.shape[2:])
        if self.crf is None:
            return logits
        assert image is not None  # _check_image has seen to it
        return self.crf.refine_logits(logits, image)

    def upsample(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Scores `[B, C, h, w]` of upsample=False at `size` (H, W) of their input, as `forward`.

        Bilinear; with align_corners where the model is `aligned`.
        """
        return F.interpolate(logits, size=list(size), mode="bilinear", align_corners=self.aligned)

    @property
    def aligned(self) -> bool:
        """Whether the corner scores lie on the corner pixels, as in the released Caffe networks.

        In style "torchvision", and with resize "torch", they lie on the middles of their shares.
        """
        return self.style != "torchvision" and self.resize == "caffe"

    @property
    def output_stride(self) -> int:
        """Pixels from one score to the next, before they are upsampled."""
        if isinstance(self.head, DeepLabV3PlusHead):
            return 4
        return getattr(self.backbone, "output_stride", 8)

    def set_scales(self, scales: Sequence[float] | None) -> None:
        """See pictures at other scales from now on (MSC), or at one with None.

        Raises ValueError as `deeplab.model.multiscale.checked_scales` does.
        """
        checked = multiscale.checked_scales(scales)
        self.scales = None if checked is None else tuple(checked)
        self.config = self.config | {"scales": checked}

    def forward_scales(self, x: Tensor) -> tuple[Tensor, ...]:
        """The scores that a model of several scales trains on, one loss each, none upsampled.

        x: `[B, in_channels, H, W]`, preprocessed. A CRF layer takes no part.

        Returns, with scales=(1.0, 0.75, 0.5), four tensors `[B, num_classes, h, w]`: the maximum
        over the scales, scale 1, scale 0.75 brought to the map of scale 1, and scale 0.5 as it is.
        With other scales: the maximum, scale 1, those between brought to its map, and the last.
        The maximum, upsampled, is what `forward` gives.

        Raises ValueError for a model of one scale, and for a wrong shape.
        """
        self._check(x)
        if self.scales is None:
            raise ValueError(
                "forward_scales: this model has one scale; build it with scales=(1.0, 0.75, 0.5), "
                "or train on model(x)"
            )
        return self._scores_of_scales(x)

    def param_groups(
        self, lr: float, weight_decay: float = 5e-4, head_lr_scale: float = 10.0
    ) -> list[dict[str, Any]]:
        """The papers' groups for an optimiser; every trainable parameter is in exactly one.

            name             lr times          weight decay
            body_weight          1                 yes
            body_bias            2                 no
            body_norm            1                 no          norms that are trained, scales
            head_weight    head_lr_scale           yes         layers called `classifier`
            head_bias    2 head_lr_scale           no
            crf                  1                 no

        The classifiers are the layers that give scores: the last of the head, as in the released
        prototxts, and the last of each tap of MSc. Each group is a dict with "params", "lr"
        (multiplied already), "weight_decay", "name" and "lr_scale" (the factor, for schedules).
        Empty groups are left out.
        """
        groups = {
            "body_weight": (1.0, weight_decay),
            "body_bias": (2.0, 0.0),
            "body_norm": (1.0, 0.0),
            "head_weight": (head_lr_scale, weight_decay),
            "head_bias": (2 * head_lr_scale, 0.0),
            "crf": (1.0, 0.0),
        }
        params: dict[str, list[nn.Parameter]] = {name: [] for name in groups}
        for group, parameter in self._trainable_parameters():
            params[group].append(parameter)
        return [
            {
                "params": params[name],
                "lr": lr * scale,
                "weight_decay": decay,
                "name": name,
                "lr_scale": scale,
            }
            for name, (scale, decay) in groups.items()
            if params[name]
        ]

    def with_zero_score(self) -> "DeepLab":
        """This model of one class as one of two, whose scores are 0 and the one that it gives.

        Their softmax is 1 - sigmoid and the sigmoid of that score.
        """
        self.num_classes = 2
        self.config = self.config | {"num_classes": 2, "sigmoid": True}
        return self

    def with_sigmoids(self) -> "DeepLab":
        """This model as one of several labels a pixel: the sigmoid of each score counts."""
        self.config = self.config | {"multilabel": True}
        return self

    @property
    def multilabel(self) -> bool:
        """Whether classes may hold together: labels are masks `[B, C, H, W]` of 0, 1 and 255."""
        return bool(self.config.get("multilabel", False))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of logits `[B, C, ...]`: the softmax over the classes, or the sigmoid of each."""
        return logits.sigmoid() if self.multilabel else logits.softmax(1)

    def class_scores(self, scores: Tensor) -> Tensor:
        """`[B, num_classes, h, w]` of what the head gives, which has one less with a zero score."""
        if not self.config.get("sigmoid"):
            return scores
        return torch.cat([torch.zeros_like(scores), scores], 1)

    def _scores(self, x: Tensor) -> Tensor:
        """`[B, num_classes, ~H/8, ~W/8]`, or of another output stride, at one scale."""
        return self.class_scores(self._scores_of_head(x))

    def _scores_of_head(self, x: Tensor) -> Tensor:
        if isinstance(self.head, DeepLabV3PlusHead):
            return self.head(*self.backbone.low_and_high(x))
        if self.taps is None:
            return self.head(self.backbone(x))
        assert isinstance(self.backbone, VGG16)
        pools, _, features = self.backbone.all_maps(x)
        scores: Tensor = self.head(features)
        return scores + self.taps(x, pools, scores.shape[2:])

    def _scores_of_scales(self, x: Tensor) -> tuple[Tensor, ...]:
        assert self.scales is not None
        return multiscale.scores_of_scales(self._scores, x, self.scales, self.resize)

    def _trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """(group, parameter) for each parameter that takes gradients, in the model's order."""
        found = []
        for module_name, module in self.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                # model.requires_grad_(True) means the others: a frozen norm has constants.
                if not parameter.requires_grad or isinstance(module, FrozenBatchNorm2d):
                    continue
                path = module_name.split(".")
                # timm's encoders have scales of layers too, under other names.
                scale = name not in ("weight", "bias")
                if path[0] == "crf":
                    group = "crf"
                elif scale or isinstance(module, NORMS):
                    group = "body_norm"
                else:
                    part = "head" if path[-1] == "classifier" else "body"
                    group = f"{part}_{name}"
                found.append((group, parameter))
        return found

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels or x.shape[2] == 0 or x.shape[3] == 0:
            raise ValueError(
                f"x must be a preprocessed batch [B, {self.in_channels}, H, W], not shape "
                f"{list(x.shape)}; "
                "model.preprocess(image) makes one"
            )
        if not x.is_floating_point():
            raise TypeError(
                f"x must be floating point, not {x.dtype}; pass model.preprocess(image)"
            )

    def _check_image(self, x: Tensor, image: Tensor | None, upsample: bool) -> None:
        if self.crf is None:
            if image is not None:
                raise ValueError(
                    "image: only a CRF layer looks at it and this model has none; leave it out, "
                    "or build the model with crf=crf.DenseCRF(...)"
                )
            return
        refuse_tracing()  # torch.jit.trace could not even pass `image`
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
        shape = [x.shape[0], 3, *x.shape[2:]]
        if list(image.shape) != shape:
            raise ValueError(
                f"image must be RGB of the size of x, {shape}, not {list(image.shape)}"
            )
