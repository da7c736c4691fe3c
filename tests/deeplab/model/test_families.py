"""Every head on every backbone, and backbones at every output stride."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from networks import assert_equal, layer_outputs, picture, randomise
from torch import nn

from deeplab.errors import InputError
from deeplab.model import FAMILIES, MODELS, build
from deeplab.model.backbones import BACKBONES, ResNetBody
from deeplab.model.mobilenet import MobileNetV3
from deeplab.model.resnet import ResNet
from deeplab.model.vgg import VGG16
from deeplab.training.losses import label_strides

LIGHT = ("resnet18", "resnet50", "vgg16", "mobilenet_v3_large")  # one of each kind
NAMED = {  # a network that has a name of its own: family and backbone
    "deeplab_v2_vgg16": ("deeplab_v2", "vgg16"),
    "deeplab_v2_resnet101_base": ("deeplab_v2_base", "resnet101"),
    "deeplab_v2_resnet101": ("deeplab_v2", "resnet101"),
    "deeplab_v2_resnet50": ("deeplab_v2", "resnet50"),
    "deeplab_v2_resnet18": ("deeplab_v2", "resnet18"),
    "deeplab_v3_resnet101": ("deeplab_v3", "resnet101"),
    "deeplab_v3_resnet50": ("deeplab_v3", "resnet50"),
    "deeplab_v3_mobilenet": ("deeplab_v3", "mobilenet_v3_large"),
    "deeplab_v3plus_resnet101": ("deeplab_v3plus", "resnet101"),
    "deeplab_v3plus_resnet50": ("deeplab_v3plus", "resnet50"),
    "deeplab_v3plus_resnet18": ("deeplab_v3plus", "resnet18"),
}


def on_meta(name: str, num_classes: int = 5, **options: Any) -> Any:
    with torch.device("meta"):
        return build(name, num_classes, **options).eval()


def size_of_scores(model: Any, height: int, width: int) -> tuple[int, ...]:
    x = torch.empty(2, 3, height, width, device="meta")
    scores = model(x, upsample=False)
    assert scores.shape[:2] == (2, model.num_classes)
    return tuple(scores.shape[2:])


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("backbone", LIGHT)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_head_sits_on_every_backbone_at_every_stride(
    family: str, backbone: str, stride: int
) -> None:
    model = on_meta(family, backbone=backbone, output_stride=stride)
    apart = 4 if family == "deeplab_v3plus" else stride
    assert model.output_stride == apart
    assert size_of_scores(model, 1, 1) == (1, 1)
    assert size_of_scores(model, 33, 65) == (32 // apart + 1, 64 // apart + 1)
    if model.style != "caffe":  # whose poolings round up
        assert size_of_scores(model, 40, 27) == (-(-40 // apart), -(-27 // apart))
    assert model(torch.empty(1, 3, 7, 9, device="meta")).shape == (1, 5, 7, 9)


@pytest.mark.parametrize(("name", "family"), NAMED.items())
def test_the_named_networks_are_lines_of_the_families(name: str, family: tuple[str, str]) -> None:
    head, backbone = family
    assert FAMILIES[head].on(BACKBONES[backbone]) == MODELS[name]
    named, other = on_meta(name), on_meta(head, backbone=backbone)
    own = {"model": head, "backbone": backbone}
    assert other.config == named.config | own
    shapes = {n: t.shape for n, t in named.state_dict().items()}
    assert {n: t.shape for n, t in other.state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("name", "blocks"), [("resnet34", (3, 4, 6, 3)), ("resnet152", (3, 8, 36, 3))]
)
def test_the_other_resnets_have_the_papers_depth(name: str, blocks: tuple[int, ...]) -> None:
    body = BACKBONES[name]
    assert isinstance(body, ResNetBody)
    assert body.blocks == blocks
    expected = {"resnet34": 21_284_672, "resnet152": 58_143_808}  # torchvision's without fc
    backbone = on_meta("deeplab_v3", backbone=name).backbone
    assert sum(p.numel() for p in backbone.parameters()) == expected[name]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backbone", ["resnet18", "vgg16", "mobilenet_v3_large"])
def test_the_config_makes_the_same_model_again(family: str, backbone: str) -> None:
    rates = (1, 2, 3) if FAMILIES[family].rates else ()
    model = on_meta(family, backbone=backbone, output_stride=32, rates=rates)
    config = json.loads(json.dumps(model.config))
    again = on_meta(config.pop("model"), config.pop("num_classes"), **config)
    assert again.config == model.config
    assert repr(again) == repr(model)


@pytest.mark.parametrize(
    "name", ["deeplab_v1_largefov", "deeplab_v2_vgg16", "deeplab_v3_mobilenet"]
)
def test_options_written_before_there_were_strides_make_the_network_of_then(name: str) -> None:
    now = on_meta(name)
    of_then = {k: now.config[k] for k in ("rates", "style", "scales", "resize")}
    assert repr(on_meta(name, **of_then)) == repr(now)
    assert now.output_stride == (16 if name == "deeplab_v3_mobilenet" else 8)


@pytest.mark.parametrize("name", [None, "resnet19", "vgg", 7])
def test_a_missing_or_unknown_backbone_is_refused_with_the_names(name: Any) -> None:
    options = {} if name is None else {"backbone": name}
    said = rf"backbone must be one of resnet18, .*, vgg16, .* or timm:NAME, .* not {name!r}"
    with pytest.raises(ValueError, match=said):
        build("deeplab_v3", 2, **options)


def test_options_that_a_network_does_not_have_are_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'backbone'"):
        build("deeplab_v3_resnet50", 2, backbone="resnet18")
    with pytest.raises(TypeError, match="unexpected keyword argument 'frozen_bn'"):
        build("deeplab_v2", 2, backbone="vgg16", frozen_bn=True)  # fc6 - fc7 - fc8: no norm
    with pytest.raises(TypeError, match="unexpected keyword argument 'separable'"):
        build("deeplab_v3", 2, backbone="resnet18", separable=True)
    with pytest.raises(ValueError, match="style must be torchvision for a MobileNetV3, not smp"):
        build("deeplab_v3plus", 2, backbone="mobilenet_v3_large", style="smp")


@pytest.mark.parametrize("stride", [8, 16, 32, 64, 8.0, True])
@pytest.mark.parametrize("name", ["deeplab_v1_4x4", "deeplab_v2_vgg16", "deeplab_v3_mobilenet"])
def test_the_papers_own_networks_take_an_output_stride(name: str, stride: Any) -> None:
    if type(stride) is not int or stride == 64:
        with pytest.raises(ValueError, match="output_stride must be 8, 16 or 32, not"):
            build(name, 2, output_stride=stride)
    else:
        model = on_meta(name, output_stride=stride)
        assert size_of_scores(model, 65, 33) == (64 // stride + 1, 32 // stride + 1)
        assert model.config["rates"] == on_meta(name).config["rates"]


@pytest.mark.parametrize("name", ["deeplab_v2_vgg16", "deeplab_v3_mobilenet"])
def test_the_loss_on_the_grid_of_stride_8_is_refused_at_other_strides(name: str) -> None:
    assert label_strides(on_meta(name, output_stride=8), 8) == (8,)
    for stride in (16, 32):
        model = on_meta(name, output_stride=stride)
        assert label_strides(model, 1) == (1,)
        with pytest.raises(InputError, match=f"loss_stride must be 1 .* lie {stride} pixels"):
            label_strides(model, 8)


# What a dilated network computes at the places of the strided one


@pytest.mark.parametrize("style", ["caffe", "torchvision", "smp"])
def test_vgg16_without_strides_agrees_with_the_strided_one_up_to_pool5(style: Any) -> None:
    """pool5 is 3x3 without a rate: it sees neighbours on the map that it is given."""
    fine, coarse = (randomise(VGG16(pool5a=False, style=style, output_stride=s)) for s in (8, 16))
    coarse.load_state_dict(fine.state_dict())
    x = picture(1, 3, 33, 17)
    layers = ("pool4", "conv5_1", "conv5_3")
    found, expected = (layer_outputs(model, layers, x) for model in (fine, coarse))
    for layer in layers:
        assert_equal([found[layer][:, :, ::2, ::2]], [expected[layer]])


@pytest.mark.parametrize("style", ["caffe", "torchvision"])
def test_vgg16_at_stride_16_holds_the_network_for_pictures_at_every_second_place(
    style: Any,
) -> None:
    fine, coarse = (randomise(VGG16(pool5a=False, style=style, output_stride=s)) for s in (16, 32))
    coarse.load_state_dict(fine.state_dict())
    x = picture(1, 3, 33, 65)
    with torch.no_grad():
        assert_equal([fine(x)[:, :, ::2, ::2]], [coarse(x)])


def test_mobilenets_blocks_at_a_rate_compute_the_same_on_a_finer_map() -> None:
    """Those without squeeze and excitation, which sees the mean of the whole map."""
    fine, coarse = (randomise(MobileNetV3(frozen_bn=True, output_stride=s)) for s in (8, 16))
    coarse.load_state_dict(fine.state_dict())
    x = picture(1, 80, 9, 7)
    with torch.no_grad():
        found, expected = (model.features[8:11] for model in (fine, coarse))
        assert_equal([found(x)[:, :, ::2, ::2]], [expected(x[:, :, ::2, ::2])])


@pytest.mark.parametrize(("stride", "rates"), [(8, (2, 4)), (16, (1, 2)), (32, (1, 1))])
def test_mobilenets_rates_make_up_for_the_strides_that_it_leaves_out(
    stride: Any, rates: tuple[int, int]
) -> None:
    """The block that would stride has the new rate, as torchvision has it at 16."""
    model = MobileNetV3(frozen_bn=True, output_stride=stride)
    depthwise = [
        next(c for c in block.modules() if isinstance(c, nn.Conv2d) and c.groups > 1)
        for block in model.features[1:16]
    ]
    expected = [1] * 6 + [rates[0]] * 6 + [rates[1]] * 3
    assert [conv.dilation[0] for conv in depthwise] == expected


@pytest.mark.parametrize("stride", [16, 32])
def test_mobilenet_is_torchvisions_with_and_without_rates(torchvision: Any, stride: int) -> None:
    mobilenetv3 = pytest.importorskip("torchvision.models.mobilenetv3")
    theirs = mobilenetv3.mobilenet_v3_large(weights=None, dilated=stride == 16).features
    theirs = randomise(theirs)
    ours = randomise(MobileNetV3(frozen_bn=False, output_stride=stride))  # type: ignore[arg-type]
    ours.features.load_state_dict(theirs.state_dict())
    for shape in ((1, 3, 65, 41), (1, 3, 1, 1)):
        x = picture(*shape)
        with torch.no_grad():
            assert_equal([ours(x)], [theirs(x)])
            assert_equal([ours.low_and_high(x)[0]], [theirs[:4](x)])


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(1, 1), (33, 65), (65, 33)])
@pytest.mark.parametrize(
    ("body", "layer"),
    [(ResNet, "layer1"), (VGG16, "pool2"), (MobileNetV3, "features.3")],
    ids=["resnet", "vgg", "mobilenet"],
)
def test_the_low_map_is_the_last_of_output_stride_4(
    body: Any, layer: str, size: tuple[int, int], stride: int
) -> None:
    options = {
        ResNet: {"blocks": (1, 1, 1, 1), "width": 4, "frozen_bn": True},
        VGG16: {"pool5a": False},
        MobileNetV3: {"frozen_bn": True},
    }[body]
    backbone = randomise(body(**options, output_stride=stride))
    x = picture(1, 3, *size)
    with torch.no_grad():
        low, high = backbone.low_and_high(x)
        assert torch.equal(backbone(x), high)
    assert low.shape[1:] == (backbone.low_channels, *(n // 4 + 1 for n in size))
    assert high.shape[1] == backbone.out_channels
    assert low.shape[2:] == layer_outputs(backbone, [layer], x)[layer].shape[2:]


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("style", ["caffe", "torchvision"])
def test_the_taps_of_msc_stride_to_the_map(style: str, stride: int) -> None:
    model = on_meta("deeplab_v1_msc", style=style, output_stride=stride)
    strides = [tap.conv1.stride[0] for tap in model.taps.children()]
    assert strides == [stride, stride // 2, stride // 4, stride // 8, 2 if stride == 32 else 1]
    plain = on_meta("deeplab_v1_4x4", style=style, output_stride=stride)
    for size in ((1, 1), (40, 27), (65, 33), (2, 130)):
        assert size_of_scores(model, *size) == size_of_scores(plain, *size)


def test_msc_at_stride_32_is_largefov_plus_its_taps() -> None:
    model = build("deeplab_v1_msc_largefov", 2, output_stride=32).eval()
    x = torch.randn(1, 3, 40, 39)
    for tap in model.taps.children():
        tap.classifier.weight.data.normal_(0, 0.5)
    with torch.no_grad():
        pools, _, features = model.backbone.all_maps(x)
        expected = model.head(features)
        for tap, given in zip(model.taps.children(), (x, *pools), strict=True):
            expected = expected + tap(given, features.shape[2:])
        torch.testing.assert_close(model(x, upsample=False), expected)
        assert not torch.allclose(model.head(features), expected)
