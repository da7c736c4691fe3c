"""The networks of the DeepLab papers: one table, and a builder function for each line of it.

    name                           backbone    head                                     parameters
    deeplab_v1_7x7                 VGG-16      fc6 7x7 at rate 4, fc7, fc8             134,346,581
    deeplab_v1_4x4                 VGG-16      fc6 4x4 at rate 4, fc7, fc8              65,140,565
    deeplab_v1_largefov            VGG-16      fc6 3x3 at rate 12, fc7, fc8             20,505,429
    deeplab_v1_msc                 VGG-16      that of 4x4, with taps                   66,346,686
    deeplab_v1_msc_largefov        VGG-16      that of LargeFOV, with taps              21,711,550
    deeplab_v2_vgg16_largefov      VGG-16      fc6 3x3 at rate 12, fc7, fc8             20,505,429
    deeplab_v2_vgg16_aspp_s        VGG-16      fc6-fc7-fc8 at rates 2, 4, 8, 12         37,877,652
    deeplab_v2_vgg16_aspp_l        VGG-16      fc6-fc7-fc8 at rates 6, 12, 18, 24       37,877,652
    deeplab_v2_vgg16               VGG-16      the same                                 37,877,652
    deeplab_v2_resnet101_base      ResNet-101  1x1                                      42,543,189
    deeplab_v2_resnet101_largefov  ResNet-101  3x3 at rate 12                           42,887,253
    deeplab_v2_resnet101_aspp_s    ResNet-101  3x3 at rates 2, 4, 8, 12                 44,048,532
    deeplab_v2_resnet101_aspp_l    ResNet-101  3x3 at rates 6, 12, 18, 24               44,048,532
    deeplab_v2_resnet101           ResNet-101  the same                                 44,048,532
    deeplab_v2_resnet50            ResNet-50   3x3 at rates 6, 12, 18, 24               25,056,404
    deeplab_v2_resnet18            ResNet-18   3x3 at rates 6, 12, 18, 24               11,563,668
    deeplab_v2_small               1/4 of it   the same; 6 blocks                          915,876
    deeplab_v3_resnet101           ResNet-101  1x1, 3x3 at rates 12, 24, 36, pooling    58,630,997
    deeplab_v3_resnet50            ResNet-50   the same                                 39,638,869
    deeplab_v3_mobilenet           MobileNetV3 the same, at output stride 16            11,025,477
    deeplab_v3plus_resnet101       ResNet-101  v3's pyramid and a decoder               45,674,853
    deeplab_v3plus_resnet50        ResNet-50   the same                                 26,682,725
    deeplab_v3plus_resnet18        ResNet-18   the same                                 12,334,437

    model = deeplab_v2_resnet101(num_classes=21).eval()
    labels = model(model.preprocess(image)).argmax(1)

Every builder takes `num_classes` and, by keyword, the options of `Options`; `frozen_bn` on ResNets
and MobileNetV3 too. The parameters are those with 21 classes; the other backbones have output
stride 8 unless `output_stride` says otherwise, those under v3+ 16.

Sources: Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected
CRFs", ICLR 2015 (v1); "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous
Convolution, and Fully Connected CRFs", TPAMI 2018 (v2), and their released Caffe networks;
"Rethinking Atrous Convolution for Semantic Image Segmentation", 2017 (v3), in torchvision's layout;
"Encoder-Decoder with Atrous Separable Convolution", ECCV 2018 (v3+), in the layout of
segmentation_models_pytorch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack

from crf import DenseCRF
from deeplab.model.heads import (
    ASPP,
    DeepLabV3Head,
    FullyConnected,
    FullyConnectedASPP,
    MultiScaleTaps,
    Pointwise,
)
from deeplab.model.mobilenet import MobileNetV3
from deeplab.model.multiscale import RESIZES, Resize, checked_scales
from deeplab.model.network import DeepLab, Head
from deeplab.model.resnet import STAGES, OutputStride, ResNet
from deeplab.model.styles import STYLES, Style, check
from deeplab.model.v3plus import DeepLabV3PlusHead
from deeplab.model.vgg import VGG16

LARGEFOV = (12,)
ASPP_S = (2, 4, 8, 12)
ASPP_L = (6, 12, 18, 24)
PYRAMID_V3 = (12, 24, 36)
RESNET_101 = (3, 4, 23, 3)
RESNET_50 = (3, 4, 6, 3)
RESNET_18 = (2, 2, 2, 2)


class Options(TypedDict, total=False):
    """What every builder takes by keyword; left out, each is as in the paper.

    rates: of the head's convolutions in pixels of the map; one where fc6 is 4x4 or 7x7, none in
        the base of ResNet-101.
    style: "caffe" or "torchvision": see `deeplab.model.styles`. It belongs to the weights.
    scales: None, or (1.0, 0.75, 0.5) for multi-scale input, fused by maximum (MSC).
    resize: "caffe" or "torch": see `deeplab.model.multiscale`. It belongs to the weights, too.
    crf: a dense CRF as the last layer.
    sigmoid: of two classes: the classifier gives one score z, and the scores of the classes are
        (0, z), whose softmax is (1 - sigmoid(z), sigmoid(z)).
    """

    rates: Sequence[int]
    style: Style
    scales: Sequence[float] | None
    resize: Resize
    crf: DenseCRF | None
    sigmoid: bool


class ResNetOptions(Options, total=False):
    """frozen_bn: keep statistics and affine of BatchNorm as they are, in training too, as the paper
        does with its small batches; False trains both.
    output_stride: pixels from one place of the last map to the next: 8, 16 or 32, which is the
        network without atrous convolution. The rates stay, unless given.
    """

    frozen_bn: bool
    output_stride: OutputStride


class V3PlusOptions(ResNetOptions, total=False):
    """separable: the pyramid's 3x3 convolutions are depthwise, each with a 1x1 behind it."""

    separable: bool


@dataclass(frozen=True)
class OnVGG16:
    """A line of the table: v1's LargeFOV averages after pool5 (pool5a), the others do not."""

    rates: tuple[int, ...]
    pool5a: bool
    kernel: int = 3  # of fc6
    taps: bool = False

    def head(self, in_channels: int, num_classes: int, rates: Sequence[int]) -> Head:
        if self.kernel == 3:
            return FullyConnectedASPP(in_channels, num_classes, rates)
        return FullyConnected(in_channels, num_classes, rates[0], kernel=self.kernel)


@dataclass(frozen=True)
class OnResNet:
    """A line of the table."""

    rates: tuple[int, ...]
    blocks: tuple[int, int, int, int]
    block: Literal["bottleneck", "basic"] = "bottleneck"
    width: int = 64
    pyramid: bool = False  # of v3
    frozen_bn: bool = True
    style: Style = "caffe"
    output_stride: OutputStride = 8

    def backbone(self, style: Style, frozen_bn: bool, output_stride: OutputStride) -> ResNet:
        return ResNet(
            self.blocks,
            width=self.width,
            frozen_bn=frozen_bn,
            style=style,
            block=self.block,
            output_stride=output_stride,
        )

    def head(
        self, in_channels: int, num_classes: int, rates: Sequence[int], frozen_bn: bool
    ) -> Head:
        if self.pyramid:
            return DeepLabV3Head(in_channels, num_classes, rates, frozen_bn=frozen_bn)
        if not rates:
            return Pointwise(in_channels, num_classes)
        return ASPP(in_channels, num_classes, rates)


@dataclass(frozen=True)
class V3PlusOnResNet(OnResNet):
    """A line of the table: v3+, as segmentation_models_pytorch has it."""

    pyramid: bool = True
    frozen_bn: bool = False
    style: Style = "smp"
    output_stride: OutputStride = 16

    def plus_head(
        self, in_channels: int, num_classes: int, config: Mapping[str, Any]
    ) -> DeepLabV3PlusHead:
        return DeepLabV3PlusHead(
            in_channels,
            in_channels // 8,  # of layer1
            num_classes,
            config["rates"],
            frozen_bn=config["frozen_bn"],
            separable=config["separable"],
            aligned=config["style"] != "torchvision",
        )


@dataclass(frozen=True)
class OnMobileNetV3:
    """A line of the table."""

    rates: tuple[int, ...]
    frozen_bn: bool = False
    style: Style = "torchvision"
    pyramid = True

    def backbone(self, style: Style, frozen_bn: bool) -> MobileNetV3:
        if style != self.style:
            raise ValueError(f"style must be {self.style} for a MobileNetV3, not {style}")
        return MobileNetV3(frozen_bn=frozen_bn)

    def head(
        self, in_channels: int, num_classes: int, rates: Sequence[int], frozen_bn: bool
    ) -> Head:
        return DeepLabV3Head(in_channels, num_classes, rates, frozen_bn=frozen_bn)


Line = OnVGG16 | OnResNet | OnMobileNetV3

MODELS: dict[str, Line] = {
    "deeplab_v1_7x7": OnVGG16((4,), pool5a=False, kernel=7),
    "deeplab_v1_4x4": OnVGG16((4,), pool5a=False, kernel=4),
    "deeplab_v1_largefov": OnVGG16(LARGEFOV, pool5a=True),
    "deeplab_v1_msc": OnVGG16((4,), pool5a=False, kernel=4, taps=True),
    "deeplab_v1_msc_largefov": OnVGG16(LARGEFOV, pool5a=True, taps=True),
    "deeplab_v2_vgg16_largefov": OnVGG16(LARGEFOV, pool5a=False),
    "deeplab_v2_vgg16_aspp_s": OnVGG16(ASPP_S, pool5a=False),
    "deeplab_v2_vgg16_aspp_l": OnVGG16(ASPP_L, pool5a=False),
    "deeplab_v2_vgg16": OnVGG16(ASPP_L, pool5a=False),
    "deeplab_v2_resnet101_base": OnResNet((), RESNET_101),
    "deeplab_v2_resnet101_largefov": OnResNet(LARGEFOV, RESNET_101),
    "deeplab_v2_resnet101_aspp_s": OnResNet(ASPP_S, RESNET_101),
    "deeplab_v2_resnet101_aspp_l": OnResNet(ASPP_L, RESNET_101),
    "deeplab_v2_resnet101": OnResNet(ASPP_L, RESNET_101),
    "deeplab_v2_resnet50": OnResNet(ASPP_L, RESNET_50),
    "deeplab_v2_resnet18": OnResNet(ASPP_L, RESNET_18, block="basic"),
    "deeplab_v2_small": OnResNet(ASPP_L, (2, 2, 1, 1), width=16, frozen_bn=False),
    "deeplab_v3_resnet101": OnResNet(
        PYRAMID_V3, RESNET_101, pyramid=True, frozen_bn=False, style="torchvision"
    ),
    "deeplab_v3_resnet50": OnResNet(
        PYRAMID_V3, RESNET_50, pyramid=True, frozen_bn=False, style="torchvision"
    ),
    "deeplab_v3_mobilenet": OnMobileNetV3(PYRAMID_V3),
    "deeplab_v3plus_resnet101": V3PlusOnResNet(PYRAMID_V3, RESNET_101),
    "deeplab_v3plus_resnet50": V3PlusOnResNet(PYRAMID_V3, RESNET_50),
    "deeplab_v3plus_resnet18": V3PlusOnResNet(PYRAMID_V3, RESNET_18, block="basic"),
}


def build(name: str, num_classes: int = 21, **options: Any) -> DeepLab:
    """The model of that name in MODELS, with the options of its builder function.

    Raises ValueError for an unknown name, which lists the names, and for options that make no
    model; TypeError for an option that the model does not have.
    """
    sigmoid = options.pop("sigmoid", False)
    if not isinstance(sigmoid, bool):
        raise ValueError(f"sigmoid must be True or False, not {sigmoid!r}")
    if sigmoid:
        if num_classes != 2:
            raise ValueError(f"num_classes must be 2 with sigmoid, not {num_classes!r}")
        return build(name, 1, **options).with_zero_score()
    if name not in MODELS:
        raise ValueError(f"model: unknown name {name!r}; expected one of {', '.join(MODELS)}")
    line = MODELS[name]
    crf = options.pop("crf", None)
    config = _config(name, line, num_classes, options)
    rates, style = config["rates"], config["style"]
    if isinstance(line, OnVGG16):
        backbone = VGG16(pool5a=line.pool5a, style=style)
        head = line.head(backbone.out_channels, num_classes, rates)
        taps = MultiScaleTaps(num_classes) if line.taps else None
        return DeepLab(backbone, head, config=config, taps=taps, crf=crf)
    body: ResNet | MobileNetV3
    if isinstance(line, OnMobileNetV3):
        body = line.backbone(style, config["frozen_bn"])
    else:
        body = line.backbone(style, config["frozen_bn"], config["output_stride"])
    if isinstance(line, V3PlusOnResNet):
        head = line.plus_head(body.out_channels, num_classes, config)
    else:
        head = line.head(body.out_channels, num_classes, rates, config["frozen_bn"])
    return DeepLab(body, head, config=config, crf=crf)


def deeplab_v1_7x7(num_classes: int = 21, **options: Unpack[Options]) -> DeepLab:
    """DeepLab v1 with fc6 as large as VGG-16 has it: 7x7 at rate 4. Poolings: `deeplab_v1_4x4`."""
    return build("deeplab_v1_7x7", num_classes, **options)


def deeplab_v1_4x4(num_classes: int = 21, **options: Unpack[Options]) -> DeepLab:
    """DeepLab v1, the paper's first network: fc6 cut to 4x4, at rate 4; v2 has it at rate 8 too.

    Its poolings are the 3x3 of the other networks. The authors' own file has poolings of 2x2, whose
    scores lie elsewhere, and is refused.
    """
    return build("deeplab_v1_4x4", num_classes, **options)


def deeplab_v1_largefov(num_classes: int = 21, **options: Unpack[Options]) -> DeepLab:
    """DeepLab v1 LargeFOV: VGG-16, average pooling (pool5a), fc6 - fc7 - fc8 at rate 12."""
    return build("deeplab_v1_largefov", num_classes, **options)


def deeplab_v1_msc(num_classes: int = 21, **options: Unpack[Options]) -> DeepLab:
    """DeepLab v1 MSc: `deeplab_v1_4x4` plus scores from the image and pool1 to pool4."""
    return build("deeplab_v1_msc", num_classes, **options)


def deeplab_v1_msc_largefov(num_classes: int = 21, **options: Unpack[Options]) -> DeepLab:
    """DeepLab v1 MSc-LargeFOV: `deeplab_v1_largefov` plus scores from the image and the pools."""
    return build("deeplab_v1_msc_largefov", num_classes, **options)


def deeplab_v2_vgg16_largefov(num_classes: int = 21, **options: Unpack[Options]) -> DeepLab:
    """DeepLab v2 LargeFOV on VGG-16: one branch fc6 - fc7 - fc8 at rate 12, without pool5a."""
    return build("deeplab_v2_vgg16_largefov", num_classes, **options)


def deeplab_v2_vgg16_aspp_s(num_classes: int = 21, **options: Unpack[Options]) -> DeepLab:
    """DeepLab v2 on VGG-16, ASPP-S: a branch fc6 - fc7 - fc8 at rates 2, 4, 8 and 12, summed."""
    return build("deeplab_v2_vgg16_aspp_s", num_classes, **options)


def deeplab_v2_vgg16_aspp_l(num_classes: int = 21, **options: Unpack[Options]) -> DeepLab:
    """DeepLab v2 on VGG-16, ASPP-L: a branch fc6 - fc7 - fc8 at rates 6, 12, 18 and 24, summed."""
    return build("deeplab_v2_vgg16_aspp_l", num_classes, **options)


def deeplab_v2_vgg16(num_classes: int = 21, **options: Unpack[Options]) -> DeepLab:
    """DeepLab v2 on VGG-16 in the paper's best form: ASPP-L."""
    return build("deeplab_v2_vgg16", num_classes, **options)


def deeplab_v2_resnet101_base(num_classes: int = 21, **options: Unpack[ResNetOptions]) -> DeepLab:
    """ResNet-101 at output stride 8 with one 1x1 classifier: where the paper's ablation starts."""
    return build("deeplab_v2_resnet101_base", num_classes, **options)


def deeplab_v2_resnet101_largefov(
    num_classes: int = 21, **options: Unpack[ResNetOptions]
) -> DeepLab:
    """DeepLab v2 LargeFOV on ResNet-101: one 3x3 classifier at rate 12."""
    return build("deeplab_v2_resnet101_largefov", num_classes, **options)


def deeplab_v2_resnet101_aspp_s(num_classes: int = 21, **options: Unpack[ResNetOptions]) -> DeepLab:
    """DeepLab v2 on ResNet-101, ASPP-S: 3x3 classifiers at rates 2, 4, 8 and 12, summed."""
    return build("deeplab_v2_resnet101_aspp_s", num_classes, **options)


def deeplab_v2_resnet101_aspp_l(num_classes: int = 21, **options: Unpack[ResNetOptions]) -> DeepLab:
    """DeepLab v2 on ResNet-101, ASPP-L: 3x3 classifiers at rates 6, 12, 18 and 24, summed."""
    return build("deeplab_v2_resnet101_aspp_l", num_classes, **options)


def deeplab_v2_resnet101(num_classes: int = 21, **options: Unpack[ResNetOptions]) -> DeepLab:
    """DeepLab v2 on ResNet-101 in the paper's best form: ASPP-L."""
    return build("deeplab_v2_resnet101", num_classes, **options)


def deeplab_v2_resnet50(num_classes: int = 21, **options: Unpack[ResNetOptions]) -> DeepLab:
    """`deeplab_v2_resnet101` with the blocks of ResNet-50."""
    return build("deeplab_v2_resnet50", num_classes, **options)


def deeplab_v2_resnet18(num_classes: int = 21, **options: Unpack[ResNetOptions]) -> DeepLab:
    """`deeplab_v2_resnet101` with the basic blocks of ResNet-18."""
    return build("deeplab_v2_resnet18", num_classes, **options)


def deeplab_v2_small(num_classes: int = 21, **options: Unpack[ResNetOptions]) -> DeepLab:
    """The layout of `deeplab_v2_resnet101` in small, for CPUs and tests.

    Base width 16 instead of 64 and (2, 2, 1, 1) blocks instead of (3, 4, 23, 3). It is trained from
    scratch, so BatchNorm is trained too unless frozen_bn says otherwise.
    """
    return build("deeplab_v2_small", num_classes, **options)


def deeplab_v3_resnet101(num_classes: int = 21, **options: Unpack[ResNetOptions]) -> DeepLab:
    """DeepLab v3 on ResNet-101 at output stride 8, as torchvision lays it out; BatchNorm trains."""
    return build("deeplab_v3_resnet101", num_classes, **options)


def deeplab_v3_resnet50(num_classes: int = 21, **options: Unpack[ResNetOptions]) -> DeepLab:
    """`deeplab_v3_resnet101` with the blocks of ResNet-50."""
    return build("deeplab_v3_resnet50", num_classes, **options)


def deeplab_v3_mobilenet(num_classes: int = 21, **options: Unpack[ResNetOptions]) -> DeepLab:
    """DeepLab v3 on MobileNetV3-Large at output stride 16, as torchvision has it: for CPUs."""
    return build("deeplab_v3_mobilenet", num_classes, **options)


def deeplab_v3plus_resnet101(num_classes: int = 21, **options: Unpack[V3PlusOptions]) -> DeepLab:
    """DeepLab v3+ on ResNet-101, as segmentation_models_pytorch lays it out; BatchNorm trains."""
    return build("deeplab_v3plus_resnet101", num_classes, **options)


def deeplab_v3plus_resnet50(num_classes: int = 21, **options: Unpack[V3PlusOptions]) -> DeepLab:
    """`deeplab_v3plus_resnet101` with the blocks of ResNet-50."""
    return build("deeplab_v3plus_resnet50", num_classes, **options)


def deeplab_v3plus_resnet18(num_classes: int = 21, **options: Unpack[V3PlusOptions]) -> DeepLab:
    """`deeplab_v3plus_resnet101` with the basic blocks of ResNet-18."""
    return build("deeplab_v3plus_resnet18", num_classes, **options)


def _config(name: str, line: Line, num_classes: int, options: dict[str, Any]) -> dict[str, Any]:
    """The model's name and options as JSON-able values; raises where they make no model."""
    defaults: dict[str, Any] = {"rates": line.rates, "style": "caffe", "scales": None}
    defaults["resize"] = "caffe"
    if not isinstance(line, OnVGG16):
        defaults |= {"frozen_bn": line.frozen_bn, "style": line.style}
    if isinstance(line, OnResNet):
        defaults |= {"output_stride": line.output_stride}
    if isinstance(line, V3PlusOnResNet):
        defaults |= {"separable": True}
    if unknown := options.keys() - defaults.keys():
        raise TypeError(
            f"{name}() got an unexpected keyword argument {min(unknown)!r}; expected num_classes, "
            f"{', '.join(defaults)} or crf"
        )
    chosen = defaults | options
    if not _is_positive(num_classes):
        raise ValueError(f"num_classes must be an integer from 1 up, not {num_classes!r}")
    for flag in ("frozen_bn", "separable"):
        if not isinstance(chosen.get(flag, False), bool):
            raise ValueError(f"{flag} must be True or False, not {chosen[flag]!r}")
    if chosen.get("output_stride", 8) not in STAGES:
        raise ValueError(f"output_stride must be 8, 16 or 32, not {chosen['output_stride']!r}")
    check("style", chosen["style"], STYLES)
    check("resize", chosen["resize"], RESIZES)
    chosen["rates"] = _checked_rates(name, line, chosen["rates"])
    chosen["scales"] = checked_scales(chosen["scales"])
    return {"model": name, "num_classes": num_classes, **chosen}


def _checked_rates(name: str, line: Line, rates: Any) -> list[int]:
    listed = list(rates) if isinstance(rates, Iterable) else []
    whole = bool(listed) and all(_is_positive(rate) for rate in listed)
    shown = listed or rates
    if not line.rates:
        if listed or not isinstance(rates, Iterable):
            raise ValueError(f"rates must be none for the 1x1 classifier of {name}, not {shown}")
    elif isinstance(line, OnVGG16) and line.kernel != 3:
        if not whole or len(listed) > 1:
            raise ValueError(f"rates must be one for {name}, such as (4,), not {shown}")
    elif not whole:
        raise ValueError(
            "rates must hold at least one integer, each from 1 up, such as (6, 12, 18, 24), not "
            f"{shown}"
        )
    return listed


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
