"""deeplab.model: the table of networks, their options, and what a network gives."""

import itertools
import json
import re

import pytest
import torch
from networks import tiny
from torch import nn

import deeplab.model.table
from deeplab.model import MODELS, build, deeplab_v2_small
from deeplab.model.heads import FullyConnected

PARAMETERS = {  # with 21 classes
    "deeplab_v1_7x7": 134_346_581,
    "deeplab_v1_4x4": 65_140_565,
    "deeplab_v1_largefov": 20_505_429,
    "deeplab_v1_msc": 66_346_686,
    "deeplab_v1_msc_largefov": 21_711_550,
    "deeplab_v2_vgg16_largefov": 20_505_429,
    "deeplab_v2_vgg16_aspp_s": 37_877_652,
    "deeplab_v2_vgg16_aspp_l": 37_877_652,
    "deeplab_v2_vgg16": 37_877_652,
    "deeplab_v2_resnet101_base": 42_543_189,
    "deeplab_v2_resnet101_largefov": 42_887_253,
    "deeplab_v2_resnet101_aspp_s": 44_048_532,
    "deeplab_v2_resnet101_aspp_l": 44_048_532,
    "deeplab_v2_resnet101": 44_048_532,
    "deeplab_v2_resnet50": 25_056_404,
    "deeplab_v2_resnet18": 11_563_668,
    "deeplab_v2_small": 915_876,
    "deeplab_v3_resnet101": 58_630_997,
    "deeplab_v3_resnet50": 39_638_869,
}
ONE_RATE = ("deeplab_v1_7x7", "deeplab_v1_4x4", "deeplab_v1_msc")  # fc6 is not 3x3


@pytest.fixture
def small():
    torch.manual_seed(0)
    return deeplab_v2_small(5).eval()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_with_21_classes(name):
    with torch.device("meta"):
        model = build(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_every_model_of_the_table_is_counted_here_and_in_its_docstring():
    assert set(MODELS) == set(PARAMETERS)
    table = deeplab.model.table.__doc__
    documented = re.findall(r"^    (deeplab_\w+) .* ([\d,]+)$", table, re.MULTILINE)
    assert {name: int(count.replace(",", "")) for name, count in documented} == PARAMETERS


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_model_of_the_table_has_a_builder_of_its_name(name):
    with torch.device("meta"):
        model = getattr(deeplab.model, name)(num_classes=2)
    assert model.config == {**model.config, "model": name, "num_classes": 2}


def test_the_small_model_is_resnet_layout_at_a_quarter_of_the_width():
    with torch.device("meta"):
        small, big = build("deeplab_v2_small"), build("deeplab_v2_resnet101")
    weights = dict(small.named_parameters())
    shapes = {name: weight.shape for name, weight in big.named_parameters() if name in weights}
    assert shapes.keys() == weights.keys()
    for name, shape in shapes.items():
        for mine, theirs in zip(weights[name].shape, shape, strict=True):
            assert mine in (theirs, theirs // 4), name
    assert 0.65e6 < sum(p.numel() for p in deeplab_v2_small(9).parameters()) < 0.75e6


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("deeplab_v1_7x7", (4,)),
        ("deeplab_v1_4x4", (4,)),
        ("deeplab_v1_largefov", (12,)),
        ("deeplab_v1_msc_largefov", (12,)),
        ("deeplab_v2_vgg16_largefov", (12,)),
        ("deeplab_v2_vgg16_aspp_s", (2, 4, 8, 12)),
        ("deeplab_v2_vgg16", (6, 12, 18, 24)),
        ("deeplab_v2_resnet101_largefov", (12,)),
        ("deeplab_v2_resnet101_aspp_s", (2, 4, 8, 12)),
        ("deeplab_v2_resnet101", (6, 12, 18, 24)),
        ("deeplab_v2_resnet50", (6, 12, 18, 24)),
        ("deeplab_v2_resnet18", (6, 12, 18, 24)),
        ("deeplab_v2_small", (6, 12, 18, 24)),
        ("deeplab_v3_resnet101", (12, 24, 36)),
    ],
)
def test_the_heads_have_the_papers_rates(name, rates):
    with torch.device("meta"):
        model = build(name)
    head = model.head
    layer = getattr(head, "fc6", getattr(head, "pyramid", head.classifier))
    assert rates == (layer.dilation[:1] if isinstance(layer, nn.Conv2d) else layer.rates)
    assert model.config["rates"] == list(rates)


def test_the_largefov_networks_of_v1_average_after_pool5_and_no_others_do():
    with torch.device("meta"):
        vgg = [name for name in MODELS if "v1" in name or "vgg" in name]
        averaging = [name for name in vgg if build(name).backbone.pool5a is not None]
    assert averaging == ["deeplab_v1_largefov", "deeplab_v1_msc_largefov"]


def test_the_base_of_resnet101_classifies_with_a_single_1x1():
    with torch.device("meta"):
        head = build("deeplab_v2_resnet101_base").head
    assert list(head.state_dict()) == ["classifier.weight", "classifier.bias"]
    assert head.classifier.kernel_size == (1, 1)


@pytest.mark.parametrize(("kernel", "rate"), [(7, 4), (4, 4), (4, 8)])
@pytest.mark.parametrize("size", [(1, 1), (6, 9)])
def test_a_large_fc6_keeps_the_size_of_the_map(kernel, rate, size):
    head = FullyConnected(3, 2, rate, kernel=kernel, channels=5).double().eval()
    for parameter in head.parameters():
        parameter.data.normal_()
    x, state = torch.randn(1, 3, *size, dtype=torch.float64), head.state_dict()
    expected = torch.zeros(1, 5, *size, dtype=torch.float64)
    for i, j in itertools.product(range(kernel), repeat=2):  # tap by tap, from the definition
        down, right = (int(rate * (t - (kernel - 1) / 2)) for t in (i, j))
        padded = nn.functional.pad(x, (32, 32, 32, 32))
        seen = padded[:, :, 32 + down :, 32 + right :][:, :, : size[0], : size[1]]
        expected += torch.einsum("oc,bchw->bohw", state["fc6.weight"][:, :, i, j], seen)
    expected = (expected + state["fc6.bias"].view(-1, 1, 1)).clamp(min=0)
    expected = head.classifier(head.fc7(expected).clamp(min=0))
    torch.testing.assert_close(head(x), expected)


def test_an_fc6_that_cannot_be_centred_is_refused():
    with pytest.raises(ValueError, match=r"rates: fc6 is 4x4.*the rate must be even"):
        build("deeplab_v1_4x4", rates=(3,))


@pytest.mark.parametrize("name", MODELS)
def test_config_is_json_and_builds_the_same_model_again(name):
    with torch.device("meta"):
        rates = () if name.endswith("_base") else (8,) if name in ONE_RATE else (3, 5)
        options = {"rates": rates, "style": "torchvision", "scales": (1.0, 0.5)}
        model = build(name, num_classes=4, **options)
        assert model.config == model.config | {**options, "rates": [*rates], "scales": [1.0, 0.5]}
        config = json.loads(json.dumps(model.config))
        again = build(config.pop("model"), **config)
    assert again.config == model.config
    assert again.num_classes == 4
    assert repr(again) == repr(model)


def caffe_interp(x, height, width):
    """Caffe's Interp: output i looks at i * (n - 1) / (m - 1) between its two neighbours."""

    def matrix(n, m):
        weights = torch.zeros(m, n, dtype=x.dtype)
        for i in range(m):
            at = i * (n - 1) / (m - 1) if m > 1 else 0.0
            low = min(int(at), n - 1)
            weights[i, low] += 1 - (at - low)
            weights[i, min(low + 1, n - 1)] += at - low
        return weights

    rows, columns = matrix(x.shape[2], height), matrix(x.shape[3], width)
    return torch.einsum("hi,bcij,wj->bchw", rows, x, columns)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 2), (33, 33), (40, 51)])
def test_logits_are_the_upsampled_scores_of_head_and_backbone(size):
    model = tiny().double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    scores = model(x, upsample=False)
    assert torch.equal(scores, model.head(model.backbone(x)))
    logits = model(x)
    assert logits.shape == (2, 3, *size)
    torch.testing.assert_close(logits, caffe_interp(scores, *size), rtol=0, atol=1e-12)


def test_the_check_sees_upsampling_without_aligned_corners():
    scores = tiny().double()(torch.randn(1, 3, 33, 33, dtype=torch.float64), upsample=False)
    other = nn.functional.interpolate(scores, size=(33, 33), mode="bilinear", align_corners=False)
    assert (other - caffe_interp(scores, 33, 33)).abs().max() > 1e-6


def test_stride_8_scores_have_the_backbones_size(small):
    for n, eighth in ((1, 1), (7, 2), (41, 6), (64, 9), (65, 9)):
        assert small(torch.randn(1, 3, n, 33), upsample=False).shape == (1, 5, eighth, 5)


@pytest.mark.parametrize("name", ["deeplab_v1_4x4", "deeplab_v1_msc_largefov", "deeplab_v2_vgg16"])
def test_the_vgg_models_run_forward_and_backward(name):
    model = build(name, num_classes=3)
    logits = model(torch.randn(1, 3, 17, 24))
    assert logits.shape == (1, 3, 17, 24)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_training_returns_one_tensor_too(small):
    logits = small.train()(torch.randn(2, 3, 33, 33))
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, 5, 33, 33)


def test_channels_last_gives_the_same_logits():
    model = tiny().double()
    x = torch.randn(2, 3, 33, 40, dtype=torch.float64)
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    assert model.head.classifier.weight.is_contiguous(memory_format=torch.channels_last)
    found = model(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 9, 9), (1, 4, 9, 9), (1, 3, 0, 9), (1, 3, 9, 0)])
def test_an_input_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"x must be a preprocessed batch \[B, 3, H, W\]"):
        tiny()(torch.zeros(shape))


def test_an_image_that_was_not_preprocessed_is_refused():
    with pytest.raises(TypeError, match=r"not torch\.uint8; pass model\.preprocess\(image\)"):
        tiny()(torch.zeros(1, 3, 9, 9, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_classes": 0}, "num_classes must be an integer from 1 up, not 0"),
        ({"num_classes": 2.0}, "num_classes .*not 2.0"),
        ({"num_classes": True}, "num_classes .*not True"),
        ({"rates": 6}, "rates .*not 6"),
        ({"rates": (6, 0)}, r"rates .*not \[6, 0\]"),
        ({"style": "keras"}, "style must be one of caffe, torchvision, not 'keras'"),
        ({"scales": (0.5,)}, "scales must be None"),
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_bad_options_are_refused(name, arguments, said):
    with pytest.raises(ValueError, match=said):
        build(name, **arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "said"),
    [
        ("deeplab_v2_small", {"rates": ()}, ValueError, "rates must hold at least one integer"),
        ("deeplab_v1_7x7", {"rates": ()}, ValueError, "rates must be one for deeplab_v1_7x7"),
        ("deeplab_v1_msc", {"rates": (4, 8)}, ValueError, r"rates must be one .*not \[4, 8\]"),
        ("deeplab_v2_resnet101_base", {"rates": (12,)}, ValueError, "must be none for the 1x1 cl"),
        ("deeplab_v2_small", {"frozen_bn": "no"}, ValueError, "frozen_bn must be True or False"),
        ("deeplab_v2_vgg16", {"frozen_bn": True}, TypeError, "keyword argument 'frozen_bn'"),
    ],
)
def test_options_that_a_model_does_not_have_are_refused(name, arguments, error, said):
    with pytest.raises(error, match=said):
        build(name, **arguments)


def test_an_unknown_model_is_refused_with_the_names():
    with pytest.raises(ValueError, match=r"'unet'; expected one of deeplab_v1_7x7, .*_vgg16"):
        build("unet")


def test_preprocess_puts_the_batch_on_the_models_device(small):
    x = small.preprocess(torch.full((3, 4, 5), 200, dtype=torch.uint8))
    assert x.shape == (1, 3, 4, 5)
    assert x.device == small.backbone.conv1.weight.device
    with torch.device("meta"):
        elsewhere = deeplab_v2_small(2)
    assert elsewhere.preprocess(torch.zeros(3, 4, 5)).device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_preprocess_gives_what_a_model_in_that_dtype_takes(small, dtype):
    image = torch.full((3, 9, 9), 200, dtype=torch.uint8)
    expected = small.preprocess(image).to(dtype)
    x = small.to(dtype).preprocess(image)
    assert torch.equal(x, expected)
    assert small(x).dtype == dtype
