"""The backbones against networks written from the prototxts, layer by layer, in float64.

The references use only F.conv2d and elementwise arithmetic; Caffe's pooling is written out from its
formula, out = ceil((n + 2 p - k) / s) + 1, the last window kept only if it starts inside.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from networks import assert_equal, layer_outputs, picture, randomise, set_rate, set_strides
from torch import nn

from deeplab.model import build
from deeplab.model.batch_norm import FrozenBatchNorm2d
from deeplab.model.resnet import ResNet
from deeplab.model.vgg import VGG16

RESNET_STAGES = [("layer1", 1, 1), ("layer2", 2, 1), ("layer3", 1, 2), ("layer4", 1, 4)]
VGG_STAGES = [(2, 1, 2), (2, 1, 2), (3, 1, 2), (3, 1, 1), (3, 2, 1)]  # convolutions, rate, pool


def caffe_pool(x, stride, kind="max"):
    """3x3 window, padding 1, rounding up; the average divides by 9 minus what lies past the pad."""

    def windows(n):
        count = math.ceil((n + 2 - 3) / stride) + 1
        if (count - 1) * stride >= n + 1:
            count -= 1
        return [(i * stride - 1, min(i * stride + 2, n + 1)) for i in range(count)]

    rows, columns = windows(x.shape[2]), windows(x.shape[3])
    y = x.new_empty(*x.shape[:2], len(rows), len(columns))
    places = itertools.product(enumerate(rows), enumerate(columns))
    for (i, (top, bottom)), (j, (left, right)) in places:
        window = x[:, :, max(top, 0) : bottom, max(left, 0) : right].flatten(2)
        if kind == "max":
            y[:, :, i, j] = window.amax(2)
        else:
            y[:, :, i, j] = window.sum(2) / ((bottom - top) * (right - left))
    return y


def reference_resnet(state, x):
    """Every block's output by name."""

    def conv_norm(x, conv, norm, stride=1, rate=1):
        weight = state[f"{conv}.weight"]
        pad = rate * (weight.shape[-1] // 2)
        y = F.conv2d(x, weight, stride=stride, padding=pad, dilation=rate)
        mean, var, gamma, beta = (
            state[f"{norm}.{name}"][:, None, None]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / (var + 1e-5).sqrt() * gamma + beta

    x = conv_norm(x, "conv1", "bn1", stride=2).clamp(min=0)
    out = {"pool1": caffe_pool(x, stride=2)}
    x = out["pool1"]
    for stage, stride, rate in RESNET_STAGES:
        for index in itertools.count():
            block = f"{stage}.{index}"
            if f"{block}.conv1.weight" not in state:
                break
            s = stride if index == 0 else 1
            shortcut = x
            if index == 0:
                shortcut = conv_norm(x, f"{block}.downsample.0", f"{block}.downsample.1", s)
            y = conv_norm(x, f"{block}.conv1", f"{block}.bn1", s).clamp(min=0)
            y = conv_norm(y, f"{block}.conv2", f"{block}.bn2", rate=rate).clamp(min=0)
            y = conv_norm(y, f"{block}.conv3", f"{block}.bn3")
            x = out[block] = (y + shortcut).clamp(min=0)
    return out


def reference_vgg(state, x, pool5a):
    """Every pool's output by name."""
    out = {}
    for stage, (convolutions, rate, stride) in enumerate(VGG_STAGES, start=1):
        for index in range(1, convolutions + 1):
            name = f"conv{stage}_{index}"
            weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
            x = F.conv2d(x, weight, bias, padding=rate, dilation=rate).clamp(min=0)
        x = out[f"pool{stage}"] = caffe_pool(x, stride)
    if pool5a:
        out["pool5a"] = caffe_pool(x, 1, "average")
    return out


def assert_same_layers(model, expected, x):
    found = layer_outputs(model, ["", *expected], x)
    assert torch.equal(found.pop(""), found[list(expected)[-1]])
    for name, reference in expected.items():
        assert_equal([found[name]], [reference])


@pytest.mark.parametrize("shape", [(2, 3, 40, 27), (1, 3, 1, 1), (1, 3, 2, 9), (1, 3, 7, 64)])
@pytest.mark.parametrize("frozen_bn", [True, False])
def test_resnet_equals_the_caffe_network_layer_by_layer(shape, frozen_bn):
    model = randomise(ResNet((2, 1, 2, 2), width=4, frozen_bn=frozen_bn))
    x = picture(*shape)
    assert_same_layers(model, reference_resnet(model.state_dict(), x), x)


def test_resnet101_at_its_real_width_equals_the_caffe_network_layer_by_layer():
    model = randomise(build("deeplab_v2_resnet101").backbone)
    x = picture(1, 3, 33, 40)
    expected = reference_resnet(model.state_dict(), x)
    blocks = [sum(name.startswith(stage) for name in expected) for stage, _, _ in RESNET_STAGES]
    assert blocks == [3, 4, 23, 3]
    assert_same_layers(model, expected, x)


@pytest.mark.parametrize("shape", [(1, 3, 24, 19), (2, 3, 1, 1), (1, 3, 2, 11)])
@pytest.mark.parametrize("pool5a", [True, False])
def test_vgg16_equals_the_caffe_network_layer_by_layer(shape, pool5a):
    model, x = randomise(VGG16(pool5a=pool5a)), picture(*shape)
    assert_same_layers(model, reference_vgg(model.state_dict(), x, pool5a), x)


OTHER_RESNETS = {
    "pooling rounds down": lambda m: setattr(m.pool1, "ceil_mode", False),
    "stride on the 3x3": lambda m: set_strides(m.layer2[0], 1, 2),
    "old rate in the first block": lambda m: set_rate(m.layer4[0].conv2, 2),
    "rate in the first block only": lambda m: set_rate(m.layer3[1].conv2, 1),
    "multi-grid": lambda m: set_rate(m.layer4[1].conv2, 8),
    "projection ignored": lambda m: m.layer1[0].downsample[0].weight.data.zero_(),
    "another epsilon": lambda m: setattr(m.layer3[0].bn2, "eps", 1e-3),
}


@pytest.mark.parametrize("mutate", OTHER_RESNETS.values(), ids=OTHER_RESNETS)
def test_the_check_sees_a_resnet_of_another_convention(mutate):
    model = randomise(ResNet((2, 1, 2, 2), width=4, frozen_bn=True))
    x = picture(2, 3, 40, 27)
    expected = reference_resnet({k: v.clone() for k, v in model.state_dict().items()}, x)
    mutate(model)
    with pytest.raises(AssertionError):
        assert_same_layers(model, expected, x)


OTHER_VGGS = {
    "pooling rounds down": lambda m: setattr(m.pool1, "ceil_mode", False),
    "average without padding": lambda m: setattr(m.pool5a, "count_include_pad", False),
    "conv5 at rate 1": lambda m: set_rate(m.conv5_2, 1),
    "pool4 strides": lambda m: setattr(m.pool4, "stride", 2),
}


@pytest.mark.parametrize("mutate", OTHER_VGGS.values(), ids=OTHER_VGGS)
def test_the_check_sees_a_vgg_of_another_convention(mutate):
    model, x = randomise(VGG16(pool5a=True)), picture(1, 3, 24, 19)
    expected = reference_vgg(model.state_dict(), x, pool5a=True)
    mutate(model)
    with pytest.raises(AssertionError):
        assert_same_layers(model, expected, x)


def sizes(model, names, height, width):
    found = layer_outputs(model, names, torch.empty(1, 3, height, width, device="meta"))
    return [tuple(found[name].shape[2:]) for name in names]


# Size of the input, then at /2, /4 and /8.
RESNET_SIZES = [(1, 1, 1, 1), (7, 4, 3, 2), (41, 21, 11, 6), (320, 160, 81, 41), (321, 161, 81, 41)]
RESNET_SIZES += [(360, 180, 91, 46), (480, 240, 121, 61), (512, 256, 129, 65), (513, 257, 129, 65)]
VGG_SIZES = [(1, 1, 1, 1), (7, 4, 3, 2), (41, 21, 11, 6), (320, 161, 81, 41), (321, 161, 81, 41)]
VGG_SIZES += [(360, 181, 91, 46), (480, 241, 121, 61), (512, 257, 129, 65), (513, 257, 129, 65)]


@pytest.mark.parametrize("expected", RESNET_SIZES, ids=lambda sizes: str(sizes[0]))
def test_resnet_feature_sizes_round_up(expected):
    n, half, quarter, eighth = expected
    with torch.device("meta"):
        model = ResNet((1, 1, 1, 1), width=1, frozen_bn=True)
    found = sizes(model, ["conv1", "pool1", "layer2", "layer4"], n, 321)
    assert found == [(half, 161), (quarter, 81), (eighth, 41), (eighth, 41)]


@pytest.mark.parametrize("expected", VGG_SIZES, ids=lambda sizes: str(sizes[0]))
def test_vgg_feature_sizes_round_up(expected):
    n, half, quarter, eighth = expected
    with torch.device("meta"):
        model = VGG16(pool5a=True)
    found = sizes(model, ["pool1", "pool2", "pool3", "pool4", "pool5", "pool5a"], 321, n)
    assert found == [(161, half), (81, quarter), (41, eighth)] + [(41, eighth)] * 3


def test_frozen_batch_norm_is_batch_norm_in_evaluation_mode_whatever_the_mode():
    frozen = randomise(FrozenBatchNorm2d(5))
    norm = nn.BatchNorm2d(5).double().eval()
    norm.load_state_dict(frozen.state_dict())
    x = picture(4, 5, 3, 2)
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    for mode in (True, False):
        torch.testing.assert_close(frozen.train(mode)(x), norm(x))
        assert all(torch.equal(before[name], t) for name, t in frozen.state_dict().items())


def test_frozen_and_trained_networks_exchange_weights():
    frozen = randomise(ResNet((1, 1, 1, 1), width=2, frozen_bn=True))
    trained = ResNet((1, 1, 1, 1), width=2, frozen_bn=False).double().eval()
    trained.load_state_dict(frozen.state_dict())
    x = picture(1, 3, 17, 9)
    torch.testing.assert_close(trained(x), frozen(x))


def test_training_a_frozen_network_leaves_statistics_and_affine_alone():
    model = ResNet((1, 1, 1, 1), width=2, frozen_bn=True).train()
    norms = {n: t.clone() for n, t in model.state_dict().items() if "bn" in n or ".1." in n}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = model.conv1.weight.detach().clone()
    model(torch.randn(2, 3, 17, 17)).square().mean().backward()
    optimiser.step()
    assert not torch.equal(model.conv1.weight, before)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in norms.items())


def test_training_a_trained_network_moves_statistics_and_affine():
    model = ResNet((1, 1, 1, 1), width=2, frozen_bn=False).train()
    model(torch.randn(2, 3, 17, 17)).square().mean().backward()
    assert model.bn1.weight.grad is not None
    assert not torch.equal(model.bn1.running_mean, torch.zeros(2))
