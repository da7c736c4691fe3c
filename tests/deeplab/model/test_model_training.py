"""deeplab.model in training: frozen norms, parameter groups, mixed precision, the CRF layer."""

import copy
import itertools

import pytest
import torch
from networks import tiny
from torch import nn

from crf import DenseCRF
from deeplab.model import MODELS, build
from deeplab.model.heads import MultiRateConv2d

RESNETS = [name for name in MODELS if "vgg" not in name and "v1" not in name]


def test_a_short_step_along_the_papers_groups_lowers_the_loss():
    model = tiny(frozen_bn=False).train()
    x, labels = torch.randn(2, 3, 33, 33), torch.randint(3, (2, 33, 33))
    before = nn.functional.cross_entropy(model(x), labels)
    before.backward()
    torch.optim.SGD(model.param_groups(1e-4)).step()
    assert nn.functional.cross_entropy(model(x), labels) < before


@pytest.mark.parametrize("frozen_bn", [True, False])
@pytest.mark.parametrize("name", RESNETS)
def test_frozen_norms_stay_frozen_in_training_and_trained_ones_train(name, frozen_bn):
    with torch.device("meta"):
        model = build(name, frozen_bn=frozen_bn).train()
    norms = [m for m in model.modules() if hasattr(m, "running_mean")]
    assert len(norms) == sum(
        isinstance(m, nn.Conv2d | MultiRateConv2d) and m.bias is None
        for name, m in model.named_modules()
        if not name.endswith(("conv.0", "decode.0", "depthwise"))  # the first of two, under v3+
    )
    assert all(isinstance(norm, nn.BatchNorm2d) != frozen_bn for norm in norms)
    trained = {p.requires_grad for norm in norms for p in norm.parameters()}
    assert trained == {not frozen_bn}


def test_the_papers_networks_freeze_their_norms_and_those_of_the_small_one_and_v3_train():
    with torch.device("meta"):
        trained = [name for name in RESNETS if not build(name).config["frozen_bn"]]
    of_v3 = [name for name in MODELS if "v3" in name]
    assert trained == ["deeplab_v2_small", *of_v3]


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


@pytest.mark.parametrize("name", MODELS)
def test_in_every_model_each_parameter_has_the_multipliers_of_its_kind(name):
    with torch.device("meta"):
        model = build(name)
    names = {id(parameter): n for n, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in model.param_groups(1.0)
        for parameter in group["params"]
    }
    trained = {n for n, parameter in model.named_parameters() if parameter.requires_grad}
    assert found.keys() == trained
    for n, (lr, decay) in found.items():
        last, bias = ".classifier." in n, n.endswith(".bias")
        norm = isinstance(model.get_submodule(n.rpartition(".")[0]), nn.BatchNorm2d)
        assert lr == (1 if norm else (10 if last else 1) * (2 if bias else 1)), n
        assert decay == (0 if norm or bias else 5e-4), n


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


def test_frozen_norms_stay_out_of_the_groups_when_all_else_is_unfrozen():
    model = tiny(frozen_bn=True)
    expected = [[id(p) for p in group["params"]] for group in model.param_groups(0.1)]
    model.requires_grad_(False)
    assert model.param_groups(0.1) == []
    model.requires_grad_(True)
    assert [[id(p) for p in group["params"]] for group in model.param_groups(0.1)] == expected


def test_a_parameter_that_the_user_froze_is_in_no_group():
    small = tiny()
    small.backbone.conv1.weight.requires_grad_(False)
    grouped = itertools.chain.from_iterable(group["params"] for group in small.param_groups(0.1))
    assert all(parameter is not small.backbone.conv1.weight for parameter in grouped)


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


# The CRF layer


class SharpenByImage(nn.Module):
    """Stands for a CRF layer: what it gives depends on the logits, the image and a weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def refine_logits(self, logits, images):
        assert logits.shape[2:] == images.shape[2:]
        return self.weight * logits + images.mean(1, keepdim=True)


def test_a_crf_layer_refines_the_upsampled_logits():
    crf = SharpenByImage()
    model = tiny()
    x, image = torch.randn(2, 3, 17, 20), torch.rand(2, 3, 17, 20) * 255
    logits = model(x)
    model.crf = crf
    torch.testing.assert_close(model(x, image=image), crf.refine_logits(logits, image))


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


def test_cross_entropy_trains_through_the_crf_layer():
    model = tiny(crf=SharpenByImage()).train()
    x, image = torch.randn(1, 3, 17, 20), torch.rand(1, 3, 17, 20) * 255
    field = model(x, image=image)
    nn.functional.cross_entropy(field, torch.zeros(1, 17, 20, dtype=torch.long)).backward()
    assert model.crf.weight.grad.abs() > 0
    assert model.backbone.conv1.weight.grad.abs().max() > 0


def test_network_and_a_learnable_crf_train_together():
    layer = DenseCRF(3, iterations=2, learnable=True, learn_sigmas=False)
    model = tiny(frozen_bn=True, crf=layer).train()
    image = torch.randint(256, (1, 3, 17, 20), dtype=torch.uint8)
    x, labels = torch.randn(1, 3, 17, 20), torch.randint(3, (1, 17, 20))
    optimizer = torch.optim.SGD(model.param_groups(1e-4))
    assert optimizer.param_groups[-1]["name"] == "crf"
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    losses = []
    for _ in range(3):
        loss = nn.functional.cross_entropy(model(x, image=image), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    now = dict(model.named_parameters())
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, now[name])}
    assert {"backbone.conv1.weight", "crf.learned.weights"} <= moved


@pytest.mark.parametrize(
    ("with_crf", "arguments", "said"),
    [
        (True, {}, r"image: this model ends in a CRF.*model\.crf = None"),
        (True, {"image": torch.zeros(1, 3, 9, 9), "upsample": False}, "upsample: the CRF works on"),
        (True, {"image": torch.zeros(1, 3, 9, 8)}, r"image must be RGB of the size.*9, 9.*9, 8"),
        (True, {"image": torch.zeros(2, 3, 9, 9)}, "image must be RGB of the size"),
        (False, {"image": torch.zeros(1, 3, 9, 9)}, "image: only a CRF layer looks at it"),
    ],
)
def test_image_and_crf_must_come_together(with_crf, arguments, said):
    model = tiny(crf=SharpenByImage() if with_crf else None)
    with pytest.raises(ValueError, match=said):
        model(torch.zeros(1, 3, 9, 9), **arguments)
