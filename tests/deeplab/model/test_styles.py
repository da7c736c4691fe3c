"""Style "torchvision" against torchvision itself, in float64: backbones, DeepLab v3, the input.

The whole deeplab_v3_resnet50 is held against torchvision's in weights/test_checkpoints.py.

torchvision does not dilate basic blocks. What dilation is to do is told by the network without it:
at every fourth position of the map, the dilated network equals the one that strides there.
"""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import assert_equal, layer_outputs, picture, randomise, set_rate, set_strides
from torch import nn

from deeplab.model import DeepLab, build
from deeplab.model.heads import DeepLabV3Head
from deeplab.model.preprocess import preprocess
from deeplab.model.resnet import ResNet
from deeplab.model.vgg import VGG16

BLOCKS = (2, 1, 2, 2)
V3_HEAD = {  # ours: torchvision's, in classifier
    **{"pointwise": "0.convs.0.0", "pointwise_bn": "0.convs.0.1", "pooled": "0.convs.4.1"},
    **{"pooled_bn": "0.convs.4.2", "project": "0.project.0", "project_bn": "0.project.1"},
    **{"conv": "1", "conv_bn": "2", "classifier": "4"},
}


def stages(model, pool, x):
    """What the pool and the four stages give."""
    return list(layer_outputs(model, (pool, "layer1", "layer2", "layer3", "layer4"), x).values())


def dilated(torchvision, blocks, **options):
    """torchvision's ResNet of bottlenecks with output stride 8."""
    dilation, kind = [False, True, True], torchvision.resnet.Bottleneck
    return torchvision.resnet.ResNet(
        kind, list(blocks), replace_stride_with_dilation=dilation, **options
    )


@pytest.fixture(scope="module")
def bottlenecks(torchvision):
    """torchvision's dilated ResNet, and ours with its weights."""
    theirs = dilated(torchvision, BLOCKS, num_classes=1)
    return with_weights_of(randomise(theirs), BLOCKS), theirs


def with_weights_of(theirs, blocks, block="bottleneck"):
    """Our ResNet in torchvision's style."""
    mine = ResNet(blocks, frozen_bn=True, style="torchvision", block=block).double().eval()
    state = theirs.state_dict()
    mine.load_state_dict({name: state[name] for name in mine.state_dict()})
    return mine


@pytest.mark.parametrize("size", [(1, 1), (7, 40), (33, 24), (40, 39)])
def test_bottlenecks_equal_torchvisions_stage_by_stage(bottlenecks, size):
    mine, theirs = bottlenecks
    x = picture(2, 3, *size)
    assert_equal(stages(mine, "pool1", x), stages(theirs, "maxpool", x))


OTHER_RESNETS = {
    "pooling rounds up": lambda m: setattr(m.pool1, "ceil_mode", True),
    "stride on the 1x1": lambda m: set_strides(m.layer2[0], 2, 1),
    "new rate in the first block": lambda m: set_rate(m.layer4[0].conv2, 4),
    "old rate in the second block": lambda m: set_rate(m.layer3[1].conv2, 1),
}


@pytest.mark.parametrize("mutate", OTHER_RESNETS.values(), ids=OTHER_RESNETS)
def test_the_check_sees_a_network_of_another_convention(bottlenecks, mutate):
    mine, theirs = bottlenecks
    x, mine = picture(1, 3, 40, 40), copy.deepcopy(mine)
    mutate(mine)
    with pytest.raises(AssertionError):
        assert_equal(stages(mine, "pool1", x), stages(theirs, "maxpool", x))


def test_caffes_style_with_the_same_weights_is_another_network(bottlenecks):
    mine, theirs = bottlenecks
    caffe = ResNet(BLOCKS, frozen_bn=True).double().eval()
    caffe.load_state_dict(mine.state_dict())
    x = picture(1, 3, 33, 33)  # a size at which the maps have equal sizes: nothing would raise
    found, expected = stages(caffe, "pool1", x), stages(theirs, "maxpool", x)
    assert found[-1].shape == expected[-1].shape
    with pytest.raises(AssertionError):
        assert_equal(found[-1:], expected[-1:])


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_every_fourth_position_of_the_dilated_network_is_of_the_one_that_strides(torchvision, kind):
    block = {"basic": "BasicBlock", "bottleneck": "Bottleneck"}[kind]
    theirs = torchvision.resnet.ResNet(getattr(torchvision.resnet, block), [2, 2, 2, 2], 1)
    mine = with_weights_of(randomise(theirs), (2, 2, 2, 2), kind)
    x = picture(1, 3, 65, 97)
    ours, strided = stages(mine, "pool1", x), stages(theirs, "maxpool", x)
    assert_equal([ours[2], ours[3][..., ::2, ::2], ours[4][..., ::4, ::4]], strided[2:])
    for conv in (mine.layer4[0].conv1, mine.layer4[1].conv2):
        if conv.kernel_size == (3, 3):
            (before, _) = conv.dilation
            set_rate(conv, 3)
            with pytest.raises(AssertionError):
                assert_equal([stages(mine, "pool1", x)[4][..., ::4, ::4]], strided[4:])
            set_rate(conv, before)


def test_basic_blocks_in_caffes_style_have_the_rate_of_the_stage_everywhere():
    model = randomise(ResNet((1, 1, 1, 1), width=4, frozen_bn=True, block="basic"))
    state, x = model.state_dict(), picture(2, 3, 40, 33)
    expected = [F.max_pool2d(F.relu(model.bn1(model.conv1(x))), 3, 2, 1, ceil_mode=True)]
    for number, stride, rate in ((1, 1, 1), (2, 2, 1), (3, 1, 2), (4, 1, 4)):
        y = shortcut = expected[-1]
        for conv, s in ((1, stride), (2, 1)):
            weight = state[f"layer{number}.0.conv{conv}.weight"]
            y = F.conv2d(y, weight, stride=s, padding=rate, dilation=rate)
            y = getattr(getattr(model, f"layer{number}")[0], f"bn{conv}")(y)
            y = F.relu(y) if conv == 1 else y
        if number > 1:
            projection = getattr(model, f"layer{number}")[0].downsample
            shortcut = projection[1](F.conv2d(shortcut, projection[0].weight, stride=stride))
        expected.append(F.relu(y + shortcut))
    assert_equal(stages(model, "pool1", x), expected)


# Of the input, then at 1/2, 1/4 and 1/8, in torchvision's style.
SIZES = [(1, 1, 1, 1), (7, 4, 2, 1), (41, 21, 11, 6), (320, 160, 80, 40), (321, 161, 81, 41)]
SIZES += [(360, 180, 90, 45), (480, 240, 120, 60), (512, 256, 128, 64), (513, 257, 129, 65)]


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("expected", SIZES, ids=lambda sizes: str(sizes[0]))
def test_sizes_round_down_in_torchvisions_style(expected, block):
    n, half, quarter, eighth = expected
    with torch.device("meta"):
        model = ResNet((1, 1, 1, 1), width=1, frozen_bn=True, style="torchvision", block=block)
        vgg = VGG16(pool5a=True, style="torchvision")
        x = torch.empty(1, 3, n, 321)
    assert tuple(model.conv1(x).shape[2:]) == (half, 161)
    found = [tuple(y.shape[2:]) for y in stages(model, "pool1", x)]
    assert found == [(quarter, 81), (quarter, 81), *[(eighth, 41)] * 3]
    assert tuple(vgg(x).shape[2:]) == (eighth, 41)


def v3_state(theirs):
    """torchvision's state dict of DeepLab v3 under our names."""
    state = theirs.state_dict()
    mine = {name: value for name, value in state.items() if name.startswith("backbone.")}
    for ours, named in V3_HEAD.items():
        start = f"classifier.{named}."
        for name in (name for name in state if name.startswith(start)):
            mine[f"head.{ours}.{name.removeprefix(start)}"] = state[name]
    for ours, i in (("pyramid", 0), ("pyramid_bn", 1)):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            names = [f"classifier.0.convs.{k}.{i}.{leaf}" for k in (1, 2, 3)]
            if names[0] in state:
                mine[f"head.{ours}.{leaf}"] = torch.cat([state[name] for name in names])
    mine["head.pyramid_bn.num_batches_tracked"] = torch.tensor(0)
    return mine


@pytest.fixture(scope="module")
def v3(torchvision):
    """torchvision's DeepLab v3 on a ResNet of four blocks, and ours with its weights."""
    body = dilated(torchvision, [1, 1, 1, 1])
    theirs = randomise(torchvision.deeplabv3._deeplabv3_resnet(body, 5, None))
    mine = DeepLab(
        ResNet((1, 1, 1, 1), frozen_bn=False, style="torchvision"),
        DeepLabV3Head(2048, 5, (12, 24, 36), frozen_bn=False),
        config={"model": "v3", "num_classes": 5, "style": "torchvision"},
    )
    mine.load_state_dict(v3_state(theirs))
    return mine.double().eval(), theirs


@pytest.mark.parametrize("size", [(1, 1), (33, 40), (64, 57)])
def test_v3_with_torchvisions_weights_gives_torchvisions_output(v3, size):
    mine, theirs = v3
    x = picture(1, 3, *size)
    with torch.no_grad():
        assert_equal([mine(x)], [theirs(x)["out"]])


def test_deeplab_v3_resnet101_has_the_tensors_of_torchvisions(torchvision):
    with torch.device("meta"):
        make = torchvision.deeplabv3.deeplabv3_resnet101
        theirs = make(weights=None, weights_backbone=None, aux_loss=False)
        mine, expected = build("deeplab_v3_resnet101").state_dict(), v3_state(theirs)
    assert {n: t.shape for n, t in mine.items()} == {n: t.shape for n, t in expected.items()}


def swap_branches(model):
    model.head.pointwise, model.head.pooled = model.head.pooled, model.head.pointwise


OTHER_V3 = {
    "wrong rate": lambda m: setattr(m.head.pyramid, "rates", (12, 24, 35)),
    "aligned corners": lambda m: setattr(m, "style", "caffe"),
    "branches swapped": swap_branches,
    "norm left out": lambda m: m.head.pyramid_bn.running_mean.add_(0.1),
}


@pytest.fixture(scope="module")
def high_picture(v3):
    """As high as a rate of 35 has an effect, and what torchvision's network gives on it."""
    x = picture(1, 3, 300, 9)
    with torch.no_grad():
        return x, v3[1](x)["out"]


@pytest.mark.parametrize("mutate", OTHER_V3.values(), ids=OTHER_V3)
def test_the_check_sees_a_v3_of_another_convention(v3, high_picture, mutate):
    mine, (x, expected) = copy.deepcopy(v3[0]), high_picture
    mutate(mine)
    with torch.no_grad(), pytest.raises(AssertionError):
        assert_equal([mine(x)], [expected])


def heads(torchvision, frozen_bn=False, train=False):
    """torchvision's head on 8 channels, and ours with its weights."""
    theirs = randomise(torchvision.deeplabv3.DeepLabHead(8, 5)).train(train)
    mine = DeepLabV3Head(8, 5, (12, 24, 36), frozen_bn=frozen_bn, dropout=0.0).double()
    wrapped = nn.ModuleDict({"classifier": theirs})
    state = {name.removeprefix("head."): value for name, value in v3_state(wrapped).items()}
    mine.load_state_dict(state)
    return mine.train(train), theirs


@pytest.mark.parametrize("train", [False, True])
def test_the_gradients_of_the_v3_head_are_torchvisions(torchvision, train):
    mine, theirs = heads(torchvision, train=train)
    x = picture(2, 8, 9, 7)
    grads = []
    for head in (mine, theirs):
        head(x).square().sum().backward()
        named = nn.ModuleDict({"classifier": head}) if head is theirs else head
        for parameter in named.parameters():
            parameter.data = parameter.grad
        grads.append(v3_state(named) if head is theirs else head.state_dict(prefix="head."))
    for name in (name for name in grads[1] if name.endswith((".weight", ".bias"))):
        assert_equal([grads[0][name]], [grads[1][name]])


def test_training_the_v3_head_moves_its_statistics_as_torchvisions(torchvision):
    mine, theirs = heads(torchvision, train=True)
    x = picture(3, 8, 9, 7)
    mine(x), theirs(x)
    expected = v3_state(nn.ModuleDict({"classifier": theirs}))
    for name, value in mine.state_dict(prefix="head.").items():
        if name.endswith(("running_mean", "running_var")):
            assert_equal([value], [expected[name]])


def test_a_frozen_v3_head_gives_in_training_what_it_gives_in_evaluation(torchvision):
    mine, theirs = heads(torchvision, frozen_bn=True)
    x = picture(1, 8, 9, 7)
    assert_equal([mine.train()(x), mine.eval()(x)], [theirs(x)] * 2)


def test_a_batch_of_one_cannot_train_image_pooling_and_is_told_so(torchvision):
    mine, _ = heads(torchvision, train=True)
    with pytest.raises(ValueError, match=r"batch of one picture.*frozen_bn=True"):
        mine(picture(1, 8, 9, 7))


def test_the_v3_head_in_half_precision_stays_within_its_rounding_and_trains():
    head = randomise(DeepLabV3Head(8, 5, (1, 2), frozen_bn=True, channels=16)).float()
    x = torch.randn(2, 8, 9, 7)
    expected = head.double()(x.double())
    head.float()
    for recorded in (True, False):
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(recorded):
            y = head(x)
        error = (y.double() - expected).norm() / expected.norm()
        assert error < 8 * torch.finfo(torch.bfloat16).eps
        if recorded:
            y.sum().backward()
            assert torch.isfinite(head.pyramid.weight.grad).all()


def test_preprocessing_belongs_to_the_style():
    pixel = np.array([[[10, 20, 30]]], np.uint8)
    config = {"num_classes": 1, "style": "torchvision"}
    model = DeepLab(VGG16(pool5a=False), nn.Identity(), config=config)
    means, deviations = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    parts = zip((10, 20, 30), means, deviations, strict=True)
    expected = [(value / 255 - mean) / deviation for value, mean, deviation in parts]
    torch.testing.assert_close(model.preprocess(pixel).flatten(), torch.tensor(expected))
    torch.testing.assert_close(preprocess(pixel, "torchvision"), model.preprocess(pixel))
    with pytest.raises(ValueError, match="style must be one of caffe, torchvision, not 'keras'"):
        preprocess(pixel, "keras")
