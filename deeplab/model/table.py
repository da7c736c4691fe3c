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

Four families put the heads of v2, v3 and v3+, and the 1x1 where v2's ablation starts
("deeplab_v2_base"), on any backbone of `deeplab.model.backbones`:

    model = build("deeplab_v3plus", num_classes=21, backbone="resnet34", output_stride=8)

Every builder takes `num_classes` and, by keyword, the options of `Options`; `frozen_bn` where there
is batch normalisation. The parameters are those with 21 classes; backbones have output stride 8
unless `output_stride` says otherwise, those under v3+ 16.

Sources: Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected
CRFs", ICLR 2015 (v1); "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous
Convolution, and Fully Connected CRFs", TPAMI 2018 (v2), and their released Caffe networks;
"Rethinking Atrous Convolution for Semantic Image Segmentation", 2017 (v3), in torchvision's layout;
"Encoder-Decoder with Atrous Separable Convolution", ECCV 2018 (v3+), in the layout of
segmentation_models_pytorch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, Unpack

from crf import DenseCRF
from deeplab.model import backbones
from deeplab.model.backbones import BACKBONES, Backbone, Body, ResNetBody, VGG16Body
from deeplab.model.heads import (
    ASPP,
    DeepLabV3Head,
    FullyConnected,
    FullyConnectedASPP,
    MultiScaleTaps,
    Pointwise,
)
from deeplab.model.multiscale import RESIZES, Resize, checked_scales
from deeplab.model.network import DeepLab, Head
from deeplab.model.preprocess import checked_statistics
from deeplab.model.styles import OUTPUT_STRIDES, STYLES, OutputStride, Style, check
from deeplab.model.v3plus import DeepLabV3PlusHead

LARGEFOV = (12,)
ASPP_S = (2, 4, 8, 12)
ASPP_L = (6, 12, 18, 24)
PYRAMID_V3 = (12, 24, 36)


class Options(TypedDict, total=False):
    """What every builder takes by keyword; left out, each is as in the paper.

    rates: of the head's convolutions in pixels of the map; one where fc6 is 4x4 or 7x7, none in
        the base of ResNet-101.
    style: "caffe", "torchvision" or "smp": see `deeplab.model.styles`. It belongs to the weights.
    scales: None, or (1.0, 0.75, 0.5) for multi-scale input, fused by maximum (MSC).
    resize: "caffe" or "torch": see `deeplab.model.multiscale`. It belongs to the weights, too.
    in_channels: bands of a picture: 3, unless mean and deviation are given.
    mean, deviation: a number for each band, in the picture's own units, for
        x = (picture - mean) / deviation; None for those of the style, which are of RGB.
    output_stride: pixels from one place of the last map to the next: 8, 16 or 32, which is the
        network without atrous convolution. The rates stay, unless given.
    crf: a dense CRF as the last layer.
    sigmoid: of two classes: the classifier gives one score z, and the scores of the classes are
        (0, z), whose softmax is (1 - sigmoid(z), sigmoid(z)).
    multilabel: classes may hold together: the probability of each is the sigmoid of its score,
        where it is else the softmax of all. No CRF goes with it.
    """

    rates: Sequence[int]
    style: Style
    scales: Sequence[float] | None
    resize: Resize
    in_channels: int
    mean: Sequence[float] | None
    deviation: Sequence[float] | None
    output_stride: OutputStride
    crf: DenseCRF | None
    sigmoid: bool
    multilabel: bool


class NormOptions(Options, total=False):
    """frozen_bn: keep statistics and affine of BatchNorm as they are, in training too, as the paper
    does with its small batches; False trains both.
    """

    frozen_bn: bool


class V3PlusOptions(NormOptions, total=False):
    """separable: the pyramid's 3x3 convolutions are depthwise, each with a 1x1 behind it."""

    separable: bool


class FamilyOptions(V3PlusOptions, total=False):
    """backbone: a name of `deeplab.model.backbones`; separable: of v3+ only."""

    backbone: str


@dataclass(frozen=True)
class Line:
    """A line of the table: a head, its backbone, and what their options are by default.

    head: of which paper; that of v2 is v1's too.
    backbone: None in a family, whose networks are on any.
    kernel, taps: of fc6, and whether there are those of MSc, on VGG-16.
    """

    head: Literal["v2", "v3", "v3plus"]
    rates: tuple[int, ...]
    style: Style
    frozen_bn: bool
    output_stride: OutputStride = 8
    backbone: Body | None = None
    kernel: int = 3
    taps: bool = False

    def on(self, backbone: Body, **changes: Any) -> "Line":
        return replace(self, backbone=backbone, **changes)

    def defaults(self) -> dict[str, Any]:
        """The options that the network has, and their values where none is given."""
        assert self.backbone is not None
        options: dict[str, Any] = {"rates": self.rates, "style": self.style, "scales": None}
        options |= {"resize": "caffe", "in_channels": 3, "mean": None, "deviation": None}
        if not self.fully_connected:
            options |= {"frozen_bn": self.frozen_bn}
        options |= {"output_stride": self.output_stride}
        if self.head == "v3plus":
            options |= {"separable": True}
        return {**options, **self.backbone.defaults}

    @property
    def fully_connected(self) -> bool:
        """Whether the head is fc6 - fc7 - fc8 (or that of its base), and no layer is normalised."""
        return self.head == "v2" and isinstance(self.backbone, VGG16Body)

    @property
    def kind(self) -> tuple[str, int, bool, bool]:
        """Of the head: of one kind, layers mean the same but for their rates."""
        return self.head, self.kernel, self.taps, bool(self.rates)

    def make_head(self, backbone: Backbone, config: Mapping[str, Any]) -> Head:
        channels, classes, rates = backbone.out_channels, config["num_classes"], config["rates"]
        if not self.rates:
            return Pointwise(channels, classes)
        if self.fully_connected and self.kernel != 3:
            return FullyConnected(channels, classes, rates[0], kernel=self.kernel)
        if self.fully_connected:
            return FullyConnectedASPP(channels, classes, rates)
        if self.head == "v2":
            return ASPP(channels, classes, rates)
        if self.head == "v3":
            return DeepLabV3Head(channels, classes, rates, frozen_bn=config["frozen_bn"])
        return DeepLabV3PlusHead(
            channels,
            backbone.low_channels,
            classes,
            rates,
            frozen_bn=config["frozen_bn"],
            separable=config["separable"],
            aligned=config["style"] != "torchvision",
        )

    def make_taps(self, config: Mapping[str, Any]) -> MultiScaleTaps | None:
        if not self.taps:
            return None
        stride = config["output_stride"]
        return MultiScaleTaps(config["num_classes"], config["in_channels"], stride)


V2 = Line("v2", ASPP_L, "caffe", frozen_bn=True)
V2_BASE = replace(V2, rates=())
V3 = Line("v3", PYRAMID_V3, "torchvision", frozen_bn=False)
V3PLUS = Line("v3plus", PYRAMID_V3, "smp", frozen_bn=False, output_stride=16)
FAMILIES: dict[str, Line] = {
    "deeplab_v2_base": V2_BASE,
    "deeplab_v2": V2,
    "deeplab_v3": V3,
    "deeplab_v3plus": V3PLUS,
}

VGG_16, RESNET_18, RESNET_50, RESNET_101 = (
    BACKBONES[name] for name in ("vgg16", "resnet18", "resnet50", "resnet101")
)
POOL5A = VGG16Body(pool5a=True)

MODELS: dict[str, Line] = {
    "deeplab_v1_7x7": V2.on(VGG_16, rates=(4,), kernel=7),
    "deeplab_v1_4x4": V2.on(VGG_16, rates=(4,), kernel=4),
    "deeplab_v1_largefov": V2.on(POOL5A, rates=LARGEFOV),
    "deeplab_v1_msc": V2.on(VGG_16, rates=(4,), kernel=4, taps=True),
    "deeplab_v1_msc_largefov": V2.on(POOL5A, rates=LARGEFOV, taps=True),
    "deeplab_v2_vgg16_largefov": V2.on(VGG_16, rates=LARGEFOV),
    "deeplab_v2_vgg16_aspp_s": V2.on(VGG_16, rates=ASPP_S),
    "deeplab_v2_vgg16_aspp_l": V2.on(VGG_16),
    "deeplab_v2_vgg16": V2.on(VGG_16),
    "deeplab_v2_resnet101_base": V2.on(RESNET_101, rates=()),
    "deeplab_v2_resnet101_largefov": V2.on(RESNET_101, rates=LARGEFOV),
    "deeplab_v2_resnet101_aspp_s": V2.on(RESNET_101, rates=ASPP_S),
    "deeplab_v2_resnet101_aspp_l": V2.on(RESNET_101),
    "deeplab_v2_resnet101": V2.on(RESNET_101),
    "deeplab_v2_resnet50": V2.on(RESNET_50),
    "deeplab_v2_resnet18": V2.on(RESNET_18),
    "deeplab_v2_small": V2.on(ResNetBody((2, 2, 1, 1), width=16), frozen_bn=False),
    "deeplab_v3_resnet101": V3.on(RESNET_101),
    "deeplab_v3_resnet50": V3.on(RESNET_50),
    "deeplab_v3_mobilenet": V3.on(BACKBONES["mobilenet_v3_large"]),
    "deeplab_v3plus_resnet101": V3PLUS.on(RESNET_101),
    "deeplab_v3plus_resnet50": V3PLUS.on(RESNET_50),
    "deeplab_v3plus_resnet18": V3PLUS.on(RESNET_18),
}


def build(name: str, num_classes: int = 21, **options: Any) -> DeepLab:
    """The model of that name in MODELS or FAMILIES, with the options of its builder function.

    Those of a family are `FamilyOptions`, of which it needs `backbone`.

    Raises ValueError for an unknown name, which lists the names, and for options that make no
    model; TypeError for an option that the model does not have; ImportError for a backbone of timm
    where that is not installed.
    """
    sigmoid, multilabel = options.pop("sigmoid", False), options.pop("multilabel", False)
    for flag, value in (("sigmoid", sigmoid), ("multilabel", multilabel)):
        if not isinstance(value, bool):
            raise ValueError(f"{flag} must be True or False, not {value!r}")
    if multilabel:
        if sigmoid:
            raise ValueError("sigmoid must be False with multilabel, where each class has a score")
        if options.get("crf") is not None:
            raise ValueError("crf must be None with multilabel: a CRF gives a pixel one class")
        return build(name, num_classes, **options).with_sigmoids()
    if sigmoid:
        if num_classes != 2:
            raise ValueError(f"num_classes must be 2 with sigmoid, not {num_classes!r}")
        return build(name, 1, **options).with_zero_score()
    crf = options.pop("crf", None)
    line = line_of(name, options)
    assert line.backbone is not None
    config = _config(name, line, num_classes, options)
    backbone = line.backbone.make(config)
    head, taps = line.make_head(backbone, config), line.make_taps(config)
    return DeepLab(backbone, head, config=config, taps=taps, crf=crf)


def line_of(name: str, options: Mapping[str, Any]) -> Line:
    """The line of a model's name, on the backbone that its options say where it is a family.

    Raises ValueError for an unknown name, and for a family's backbone that is missing or unknown.
    """
    if name in FAMILIES:
        return FAMILIES[name].on(backbones.named(options.get("backbone")))
    if name not in MODELS:
        known = ", ".join((*MODELS, *FAMILIES))
        raise ValueError(f"model: unknown name {name!r}; expected one of {known}")
    return MODELS[name]


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


def deeplab_v2_resnet101_base(num_classes: int = 21, **options: Unpack[NormOptions]) -> DeepLab:
    """ResNet-101 at output stride 8 with one 1x1 classifier: where the paper's ablation starts."""
    return build("deeplab_v2_resnet101_base", num_classes, **options)


def deeplab_v2_resnet101_largefov(num_classes: int = 21, **options: Unpack[NormOptions]) -> DeepLab:
    """DeepLab v2 LargeFOV on ResNet-101: one 3x3 classifier at rate 12."""
    return build("deeplab_v2_resnet101_largefov", num_classes, **options)


def deeplab_v2_resnet101_aspp_s(num_classes: int = 21, **options: Unpack[NormOptions]) -> DeepLab:
    """DeepLab v2 on ResNet-101, ASPP-S: 3x3 classifiers at rates 2, 4, 8 and 12, summed."""
    return build("deeplab_v2_resnet101_aspp_s", num_classes, **options)


def deeplab_v2_resnet101_aspp_l(num_classes: int = 21, **options: Unpack[NormOptions]) -> DeepLab:
    """DeepLab v2 on ResNet-101, ASPP-L: 3x3 classifiers at rates 6, 12, 18 and 24, summed."""
    return build("deeplab_v2_resnet101_aspp_l", num_classes, **options)


def deeplab_v2_resnet101(num_classes: int = 21, **options: Unpack[NormOptions]) -> DeepLab:
    """DeepLab v2 on ResNet-101 in the paper's best form: ASPP-L."""
    return build("deeplab_v2_resnet101", num_classes, **options)


def deeplab_v2_resnet50(num_classes: int = 21, **options: Unpack[NormOptions]) -> DeepLab:
    """`deeplab_v2_resnet101` with the blocks of ResNet-50."""
    return build("deeplab_v2_resnet50", num_classes, **options)


def deeplab_v2_resnet18(num_classes: int = 21, **options: Unpack[NormOptions]) -> DeepLab:
    """`deeplab_v2_resnet101` with the basic blocks of ResNet-18."""
    return build("deeplab_v2_resnet18", num_classes, **options)


def deeplab_v2_small(num_classes: int = 21, **options: Unpack[NormOptions]) -> DeepLab:
    """The layout of `deeplab_v2_resnet101` in small, for CPUs and tests.

    Base width 16 instead of 64 and (2, 2, 1, 1) blocks instead of (3, 4, 23, 3). It is trained from
    scratch, so BatchNorm is trained too unless frozen_bn says otherwise.
    """
    return build("deeplab_v2_small", num_classes, **options)


def deeplab_v3_resnet101(num_classes: int = 21, **options: Unpack[NormOptions]) -> DeepLab:
    """DeepLab v3 on ResNet-101 at output stride 8, as torchvision lays it out; BatchNorm trains."""
    return build("deeplab_v3_resnet101", num_classes, **options)


def deeplab_v3_resnet50(num_classes: int = 21, **options: Unpack[NormOptions]) -> DeepLab:
    """`deeplab_v3_resnet101` with the blocks of ResNet-50."""
    return build("deeplab_v3_resnet50", num_classes, **options)


def deeplab_v3_mobilenet(num_classes: int = 21, **options: Unpack[NormOptions]) -> DeepLab:
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
    defaults = ({"backbone": None} if name in FAMILIES else {}) | line.defaults()
    if unknown := options.keys() - defaults.keys():
        raise TypeError(
            f"{name}() got an unexpected keyword argument {min(unknown)!r}; expected num_classes, "
            f"{', '.join(defaults)} or crf"
        )
    if options.get("in_channels", 3) != 3:  # what is known of RGB does not help
        defaults |= {"mean": None, "deviation": None}
    chosen = defaults | options
    if not _is_positive(num_classes):
        raise ValueError(f"num_classes must be an integer from 1 up, not {num_classes!r}")
    for flag in ("frozen_bn", "separable"):
        if not isinstance(chosen.get(flag, False), bool):
            raise ValueError(f"{flag} must be True or False, not {chosen[flag]!r}")
    stride = chosen["output_stride"]
    if not isinstance(stride, int) or stride not in OUTPUT_STRIDES:
        raise ValueError(f"output_stride must be 8, 16 or 32, not {stride!r}")
    check("style", chosen["style"], STYLES)
    check("resize", chosen["resize"], RESIZES)
    chosen["rates"] = _checked_rates(name, line, chosen["rates"])
    chosen["scales"] = checked_scales(chosen["scales"])
    chosen |= checked_statistics(chosen["in_channels"], chosen["mean"], chosen["deviation"])
    return {"model": name, "num_classes": num_classes, **chosen}


def _checked_rates(name: str, line: Line, rates: Any) -> list[int]:
    listed = list(rates) if isinstance(rates, Iterable) else []
    whole = bool(listed) and all(_is_positive(rate) for rate in listed)
    shown = listed or rates
    if not line.rates:
        if listed or not isinstance(rates, Iterable):
            raise ValueError(f"rates must be none for the 1x1 classifier of {name}, not {shown}")
    elif line.kernel != 3:
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
