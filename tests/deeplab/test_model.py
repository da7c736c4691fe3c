"""deeplab.model: counts, sizes, composition, CRF layer, parameter groups, compile and export."""

import copy
import itertools
import json
import re

import pytest
import torch
from torch import nn

import deeplab.model
from crf import DenseCRF
from deeplab.backbones import ResNet
from deeplab.heads import ASPP, FullyConnected, MultiRateConv2d
from deeplab.model import MODELS, DeepLab, build, deeplab_v2_small

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
RESNETS = [name for name in PARAMETERS if "vgg" not in name and "v1" not in name]


@pytest.fixture
def small():
    torch.manual_seed(0)
    return deeplab_v2_small(5).eval()


def tiny(frozen_bn=True, crf=None):
    """The layout of the small model at width 4 with one block a stage: quick to compile."""
    torch.manual_seed(0)
    backbone = ResNet((1, 1, 1, 1), width=4, frozen_bn=frozen_bn)
    config = {"model": "tiny", "num_classes": 3}
    return DeepLab(backbone, ASPP(128, 3, (2, 3)), config=config, crf=crf).eval()


class SharpenByImage(nn.Module):
    """Stands for a CRF layer: a field that depends on the logits, on the image and a weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def field(self, logits, images):
        assert logits.shape[2:] == images.shape[2:]
        return self.weight * logits + images.mean(1, keepdim=True)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_with_21_classes(name):
    with torch.device("meta"):
        model = build(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_every_model_of_the_table_is_counted_here_and_in_its_docstring():
    assert set(MODELS) == set(PARAMETERS)
    documented = re.findall(r"^    (deeplab_\w+) .* ([\d,]+)$", deeplab.model.__doc__, re.MULTILINE)
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
    with pytest.raises(ValueError, match=r"rates: fc6 is 4x4.*expected an even rate"):
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

    return torch.einsum(
        "hi,bcij,wj->bchw", matrix(x.shape[2], height), x, matrix(x.shape[3], width)
    )


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


def test_a_short_step_along_the_papers_groups_lowers_the_loss():
    model = tiny(frozen_bn=False).train()
    x, labels = torch.randn(2, 3, 33, 33), torch.randint(3, (2, 33, 33))
    before = nn.functional.cross_entropy(model(x), labels)
    before.backward()
    torch.optim.SGD(model.param_groups(1e-4)).step()
    assert nn.functional.cross_entropy(model(x), labels) < before


def test_channels_last_gives_the_same_logits():
    model = tiny().double()
    x = torch.randn(2, 3, 33, 40, dtype=torch.float64)
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    assert model.head.classifier.weight.is_contiguous(memory_format=torch.channels_last)
    found = model(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_bfloat16_autocast_stays_within_its_rounding_and_trains():
    model = tiny(frozen_bn=False)
    x = torch.randn(2, 3, 33, 40)
    expected = copy.deepcopy(model).double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
        loss = nn.functional.cross_entropy(logits, torch.zeros(2, 33, 40, dtype=torch.long))
    assert logits.dtype == torch.bfloat16
    # Each of about 20 layers rounds to bfloat16 once: relative errors add up in the norm.
    error = (logits.double() - expected).norm() / expected.norm()
    assert error < 20 * torch.finfo(torch.bfloat16).eps
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_crf_layer_gives_the_field_of_the_upsampled_logits():
    crf = SharpenByImage()
    model = tiny()
    x, image = torch.randn(2, 3, 17, 20), torch.rand(2, 3, 17, 20) * 255
    logits = model(x)
    model.crf = crf
    torch.testing.assert_close(model(x, image=image), crf.field(logits, image))


def test_the_softmax_of_the_field_of_a_dense_crf_is_its_marginals():
    model = tiny(crf=DenseCRF(3, iterations=3))
    image = torch.randint(256, (2, 3, 17, 20), generator=torch.Generator().manual_seed(0))
    x = model.preprocess(image.to(torch.uint8))
    with torch.no_grad():
        field = model(x, image=image.to(torch.uint8))
        crf, model.crf = model.crf, None
        marginals = crf(model(x), image.to(torch.uint8))
    torch.testing.assert_close(field.softmax(1), marginals)
    assert (marginals - model(x).softmax(1)).abs().max() > 1e-3


def test_a_model_with_a_dense_crf_is_captured_whole():
    model = tiny(crf=DenseCRF(3, iterations=2))
    image = torch.rand(1, 3, 9, 12) * 255
    x = model.preprocess(image)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(x, image=image).softmax(1), model(x, image=image).softmax(1)
        )


def test_cross_entropy_trains_through_the_crf_layer():
    model = tiny(crf=SharpenByImage()).train()
    x, image = torch.randn(1, 3, 17, 20), torch.rand(1, 3, 17, 20) * 255
    field = model(x, image=image)
    nn.functional.cross_entropy(field, torch.zeros(1, 17, 20, dtype=torch.long)).backward()
    assert model.crf.weight.grad.abs() > 0
    assert model.backbone.conv1.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("with_crf", "arguments", "said"),
    [
        (True, {}, r"image: this model ends in a CRF.*model\.crf = None"),
        (True, {"image": torch.zeros(1, 3, 9, 9), "upsample": False}, "upsample: the CRF works on"),
        (True, {"image": torch.zeros(1, 3, 9, 8)}, r"image: expected the shape of x.*9, 9.*9, 8"),
        (True, {"image": torch.zeros(2, 3, 9, 9)}, "image: expected the shape of x"),
        (False, {"image": torch.zeros(1, 3, 9, 9)}, "image: only a CRF layer looks at it"),
    ],
)
def test_image_and_crf_must_come_together(with_crf, arguments, said):
    model = tiny(crf=SharpenByImage() if with_crf else None)
    with pytest.raises(ValueError, match=said):
        model(torch.zeros(1, 3, 9, 9), **arguments)


@pytest.mark.parametrize("shape", [(3, 9, 9), (1, 4, 9, 9), (1, 3, 0, 9), (1, 3, 9, 0)])
def test_an_input_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"x: expected a preprocessed batch \[B, 3, H, W\]"):
        tiny()(torch.zeros(shape))


def test_an_image_that_was_not_preprocessed_is_refused():
    with pytest.raises(TypeError, match=r"got torch\.uint8; pass model\.preprocess\(image\)"):
        tiny()(torch.zeros(1, 3, 9, 9, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_classes": 0}, "num_classes: expected an integer from 1 up, got 0"),
        ({"num_classes": 2.0}, "num_classes: .* got 2.0"),
        ({"num_classes": True}, "num_classes: .* got True"),
        ({"rates": 6}, "rates: .* got 6"),
        ({"rates": (6, 0)}, r"rates: .* got \[6, 0\]"),
        ({"style": "keras"}, "style: expected one of caffe, torchvision, got 'keras'"),
        ({"scales": (0.5,)}, "scales: expected None"),
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_bad_options_are_refused(name, arguments, said):
    with pytest.raises(ValueError, match=said):
        build(name, **arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "said"),
    [
        ("deeplab_v2_small", {"rates": ()}, ValueError, "rates: expected at least one integer"),
        ("deeplab_v1_7x7", {"rates": ()}, ValueError, "rates: deeplab_v1_7x7 has one rate"),
        ("deeplab_v1_msc", {"rates": (4, 8)}, ValueError, r"has one rate.*got \[4, 8\]"),
        ("deeplab_v2_resnet101_base", {"rates": (12,)}, ValueError, "and so no rates, got"),
        ("deeplab_v2_small", {"frozen_bn": "no"}, ValueError, "frozen_bn: expected True or False"),
        ("deeplab_v2_vgg16", {"frozen_bn": True}, TypeError, "keyword argument 'frozen_bn'"),
    ],
)
def test_options_that_a_model_does_not_have_are_refused(name, arguments, error, said):
    with pytest.raises(error, match=said):
        build(name, **arguments)


def test_an_unknown_model_is_refused_with_the_names():
    with pytest.raises(ValueError, match=r"'unet'; expected one of deeplab_v1_7x7, .*_vgg16"):
        build("unet")


@pytest.mark.parametrize("frozen_bn", [True, False])
@pytest.mark.parametrize("name", RESNETS)
def test_frozen_norms_stay_frozen_in_training_and_trained_ones_train(name, frozen_bn):
    with torch.device("meta"):
        model = build(name, frozen_bn=frozen_bn).train()
    norms = [m for m in model.modules() if hasattr(m, "running_mean")]
    assert len(norms) == sum(
        isinstance(m, nn.Conv2d | MultiRateConv2d) and m.bias is None for m in model.modules()
    )
    assert all(isinstance(norm, nn.BatchNorm2d) != frozen_bn for norm in norms)
    trained = {p.requires_grad for norm in norms for p in norm.parameters()}
    assert trained == {not frozen_bn}


def test_the_papers_networks_freeze_their_norms_and_those_of_the_small_one_and_v3_train():
    with torch.device("meta"):
        trained = [name for name in RESNETS if not build(name).config["frozen_bn"]]
    assert trained == ["deeplab_v2_small", "deeplab_v3_resnet101", "deeplab_v3_resnet50"]


GROUPS = {  # name: factor of the learning rate, share of the weight decay
    "body_weight": (1, 1),
    "body_bias": (2, 0),
    "body_norm": (1, 0),
    "head_weight": (10, 1),
    "head_bias": (20, 0),
    "crf": (1, 0),
}


@pytest.mark.parametrize(
    ("name", "options", "groups"),
    [
        ("deeplab_v1_largefov", {}, "body_weight body_bias head_weight head_bias"),
        ("deeplab_v2_vgg16", {}, "body_weight body_bias head_weight head_bias"),
        ("deeplab_v1_7x7", {}, "body_weight body_bias head_weight head_bias"),
        ("deeplab_v1_msc", {}, "body_weight body_bias head_weight head_bias"),
        ("deeplab_v2_resnet101", {}, "body_weight head_weight head_bias"),
        ("deeplab_v2_resnet101_base", {}, "body_weight head_weight head_bias"),
        ("deeplab_v2_resnet18", {}, "body_weight head_weight head_bias"),
        ("deeplab_v3_resnet50", {}, "body_weight body_norm head_weight head_bias"),
        ("deeplab_v3_resnet50", {"frozen_bn": True}, "body_weight head_weight head_bias"),
        ("deeplab_v2_small", {}, "body_weight body_norm head_weight head_bias"),
        ("deeplab_v2_small", {"frozen_bn": True}, "body_weight head_weight head_bias"),
        ("deeplab_v2_vgg16", {"crf": 1}, "body_weight body_bias head_weight head_bias crf"),
    ],
)
def test_param_groups_are_the_papers_with_every_trainable_parameter_once(name, options, groups):
    if "crf" in options:
        options = {"crf": SharpenByImage()}
    with torch.device("meta"):
        model = build(name, **options)
    found = model.param_groups(0.5, weight_decay=0.25)
    assert " ".join(group["name"] for group in found) == groups
    for group in found:
        lr_scale, decay = GROUPS[group["name"]]
        assert group["lr_scale"] == lr_scale
        assert group["lr"] == 0.5 * lr_scale
        assert group["weight_decay"] == 0.25 * decay
        assert ("weight" in group["name"]) == all(p.ndim == 4 for p in group["params"])
    grouped = [id(parameter) for group in found for parameter in group["params"]]
    trainable = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trainable)


def test_the_head_groups_hold_the_last_layer_only():
    with torch.device("meta"):
        vgg, resnet = build("deeplab_v2_vgg16"), build("deeplab_v2_resnet101")
    for model, layer in ((vgg, vgg.head.classifier), (resnet, resnet.head.classifier)):
        groups = {group["name"]: group["params"] for group in model.param_groups(1.0)}
        assert [id(p) for p in groups["head_weight"]] == [id(layer.weight)]
        assert [id(p) for p in groups["head_bias"]] == [id(layer.bias)]
    fc = [vgg.head.fc6.weight, vgg.head.fc7.weight]
    body = {id(p) for g in vgg.param_groups(1.0) if g["name"] == "body_weight" for p in g["params"]}
    assert all(id(weight) in body for weight in fc)


def test_the_taps_classifiers_are_in_the_head_groups_and_their_convolutions_in_the_body():
    with torch.device("meta"):
        model = build("deeplab_v1_msc_largefov")
    groups = {group["name"]: group["params"] for group in model.param_groups(1.0)}
    classifiers = [model.head.classifier, *(tap.classifier for tap in model.taps.children())]
    assert len(classifiers) == 6
    assert {id(p) for p in groups["head_weight"]} == {id(layer.weight) for layer in classifiers}
    assert {id(p) for p in groups["head_bias"]} == {id(layer.bias) for layer in classifiers}
    body = {id(p) for p in groups["body_weight"]}
    assert all({id(t.conv1.weight), id(t.conv2.weight)} <= body for t in model.taps.children())


def test_a_parameter_that_the_user_froze_is_in_no_group(small):
    small.backbone.conv1.weight.requires_grad_(False)
    grouped = itertools.chain.from_iterable(group["params"] for group in small.param_groups(0.1))
    assert all(parameter is not small.backbone.conv1.weight for parameter in grouped)


def test_preprocess_puts_the_batch_on_the_models_device(small):
    x = small.preprocess(torch.full((3, 4, 5), 200, dtype=torch.uint8))
    assert x.shape == (1, 3, 4, 5)
    assert x.device == small.backbone.conv1.weight.device
    with torch.device("meta"):
        elsewhere = deeplab_v2_small(2)
    assert elsewhere.preprocess(torch.zeros(3, 4, 5)).device.type == "meta"


SHAPES = [(2, 3, 33, 40), (2, 3, 41, 37), (3, 3, 64, 17)]


def test_the_whole_model_is_captured_once_for_all_sizes():
    model = tiny()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for shape in SHAPES:
            x = torch.randn(shape)
            torch.testing.assert_close(compiled(x), model(x))
    assert len(graphs) == 1


def test_the_compiled_backward_gives_the_gradients_of_the_model():
    model = tiny(frozen_bn=False).train()
    compiled = copy.deepcopy(model)
    torch._dynamo.reset()
    x = torch.randn(2, 3, 17, 33)
    step = torch.compile(compiled, fullgraph=True, dynamic=False, backend="aot_eager")
    step(x).square().mean().backward()
    model(x).square().mean().backward()
    theirs = dict(model.named_parameters())
    for name, parameter in compiled.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, msg=name)


@pytest.mark.slow
def test_the_default_compiler_takes_each_kind_of_layer_at_any_size():
    model = tiny()
    # One stage of the four: the others add kernels to compile, and nothing new.
    model.backbone.layer2 = model.backbone.layer3 = model.backbone.layer4 = nn.Identity()
    model.head = ASPP(16, 3, (2, 3)).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for shape in SHAPES:
            x = torch.randn(shape)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_an_exported_program_serves_any_batch_and_size():
    model = tiny()
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with torch.no_grad():
        program = torch.export.export(
            model, (torch.randn(2, 3, 33, 40),), dynamic_shapes={"x": dynamic}
        )
        for shape in [*SHAPES, (1, 3, 9, 320)]:
            x = torch.randn(shape)
            torch.testing.assert_close(program.module()(x), model(x))
