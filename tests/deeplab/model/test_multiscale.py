"""MSC (several scales, fused by maximum) and MSc (taps): sizes, values, training."""

import pytest
import torch
import torch.nn.functional as F
from networks import SCALES, tiny

from deeplab.model import DeepLab, build
from deeplab.model.heads import MultiScaleTaps
from deeplab.model.multiscale import interp_size

pytestmark = pytest.mark.processors


def single(model):
    """The same network at one scale."""
    return DeepLab(model.backbone, model.head, config=model.config | {"scales": None}).eval()


def aligned(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


SIZES = [(1, 1, 1), (7, 4, 4), (41, 31, 21), (320, 238, 160), (321, 241, 161)]
SIZES += [(360, 268, 180), (480, 358, 240), (512, 382, 256), (513, 385, 257)]


@pytest.mark.parametrize(("n", "three_quarters", "half"), SIZES)
def test_sizes_are_those_of_caffes_interp(n, three_quarters, half):
    assert interp_size(n, 0.75) == three_quarters  # shrink by 4, then zoom by 3
    assert interp_size(n, 0.5) == half
    assert interp_size(n, 1.0) == n


@pytest.mark.parametrize("k", [1, 5, 40, 64])
def test_at_8k_plus_1_the_half_is_every_second_pixel(k):
    x = torch.randn(1, 1, 8 * k + 1, 9)
    half = aligned(x, [interp_size(8 * k + 1, 0.5), interp_size(9, 0.5)])
    torch.testing.assert_close(half, x[:, :, ::2, ::2])


@pytest.mark.parametrize("size", [(1, 1), (7, 40), (33, 33), (64, 41)])
def test_scores_of_scales_are_the_networks_at_each_scale_and_their_maximum(size):
    model = tiny("msc").double()
    alone, x = single(model), torch.randn(2, 3, *size, dtype=torch.float64)
    fused, full, middle, small = model.forward_scales(x)
    expected = alone(x, upsample=False)
    shrunk = [aligned(x, [interp_size(n, scale) for n in size]) for scale in SCALES[1:]]
    three_quarters, half = (alone(y, upsample=False) for y in shrunk)
    torch.testing.assert_close(full, expected)
    torch.testing.assert_close(middle, aligned(three_quarters, expected.shape[2:]))
    torch.testing.assert_close(small, half)
    at_one = [full, middle, aligned(half, expected.shape[2:])]
    torch.testing.assert_close(fused, torch.stack(at_one).amax(0))
    torch.testing.assert_close(model(x, upsample=False), fused)
    torch.testing.assert_close(model(x), aligned(fused, size))


def test_every_scale_has_a_say_in_the_maximum():
    fused, *scales = tiny("msc").forward_scales(torch.randn(1, 3, 65, 65))
    brought = [aligned(scores, fused.shape[2:]) for scores in scales]
    winners = torch.stack(brought).argmax(0)
    assert set(winners.unique().tolist()) == {0, 1, 2}


def test_four_losses_train_shared_weights():
    model = tiny("msc").train()
    x, labels = torch.randn(2, 3, 33, 33), torch.randint(3, (2, 33, 33))
    fused, full, middle, half = model.forward_scales(x)
    eighth, sixteenth = labels[:, ::8, ::8], labels[:, ::16, ::16]
    for scores, target in ((fused, eighth), (full, eighth), (middle, eighth), (half, sixteenth)):
        F.cross_entropy(scores, target).backward(retain_graph=True)
    assert all(parameter.grad.abs().max() > 0 for parameter in model.head.parameters())
    names = {name for name, _ in model.named_parameters()}
    assert names == {name for name, _ in single(model).named_parameters()}


def test_other_scales_give_one_output_each_and_their_maximum():
    outputs = tiny("msc", scales=(1.0, 0.5)).forward_scales(torch.randn(1, 3, 33, 33))
    assert [tuple(y.shape[2:]) for y in outputs] == [(5, 5), (5, 5), (3, 3)]


def test_a_model_of_one_scale_has_no_outputs_of_scales():
    with pytest.raises(ValueError, match=r"build it with scales=\(1\.0, 0\.75, 0\.5\)"):
        tiny().forward_scales(torch.zeros(1, 3, 9, 9))


@pytest.mark.parametrize("scales", [(), (1.0,), (0.75, 0.5), (1, 0.5, 0.5), (1, 0), 2, "msc"])
def test_bad_scales_are_refused(scales):
    with pytest.raises(ValueError, match=r"scales must be None, or 1\.0 and at least one"):
        build("deeplab_v2_small", scales=scales)


def reference_taps(state, image, pools):
    """One F.conv2d for each layer; a map too wide for the stride has its input padded to it."""
    size = pools[-1].shape[2:]
    y, names = 0, ("image", "pool1", "pool2", "pool3", "pool4")
    for name, stride, x in zip(names, (8, 4, 2, 1, 1), (image, *pools), strict=True):

        def conv(z, layer, name=name, **options):
            weight, bias = (state[f"{name}.{layer}.{part}"] for part in ("weight", "bias"))
            return F.conv2d(z, weight, bias, **options)

        wanted = [stride * (m - 1) + 1 for m in size]
        x = F.pad(x, (0, wanted[1] - x.shape[3], 0, wanted[0] - x.shape[2]))
        z = conv(x, "conv1", stride=stride, padding=1).clamp(min=0)
        y = y + conv(conv(z, "conv2").clamp(min=0), "classifier")
    return y


def taps_case(height, width):
    """Taps with weights that matter, and maps of the sizes that pools rounding up give."""
    torch.manual_seed(0)
    taps = MultiScaleTaps(5).double().eval()
    for parameter in taps.parameters():
        parameter.data.normal_(0, 0.1)
    image, size, pools = torch.randn(2, 3, height, width).double(), (height, width), []
    for channels, halved in ((64, True), (128, True), (256, True), (512, False)):
        size = tuple(n // 2 + 1 for n in size) if halved else size
        pools.append(torch.randn(2, channels, *size).double())
    return taps, image, pools


@pytest.mark.parametrize("size", [(1, 1), (2, 33), (7, 41), (40, 39), (64, 65)])
def test_taps_are_the_sum_of_their_convolutions_at_any_size(size):
    taps, image, pools = taps_case(*size)
    expected = reference_taps(taps.state_dict(), image, pools)
    torch.testing.assert_close(taps(image, pools, pools[-1].shape[2:]), expected)


@pytest.mark.parametrize("name", ["image", "pool1", "pool2", "pool3", "pool4"])
def test_the_check_sees_a_tap_left_out(name):
    taps, image, pools = taps_case(33, 33)
    expected = reference_taps(taps.state_dict(), image, pools)
    getattr(taps, name).classifier.weight.data.zero_()
    with pytest.raises(AssertionError):
        torch.testing.assert_close(taps(image, pools, pools[-1].shape[2:]), expected)


@pytest.mark.parametrize("style", ["caffe", "torchvision"])
def test_msc_of_v1_is_largefov_plus_its_taps(style):
    model = build("deeplab_v1_msc_largefov", num_classes=2, style=style).eval()
    x = torch.randn(1, 3, 40, 39)
    for tap in model.taps.children():
        tap.classifier.weight.data.normal_(0, 0.5)
    with torch.no_grad():
        pools, _, features = model.backbone.all_maps(x)
        assert [pool.shape[1] for pool in pools] == [64, 128, 256, 512]
        expected = model.head(features) + model.taps(x, pools, features.shape[2:])
        torch.testing.assert_close(model(x, upsample=False), expected)
        assert (model.taps(x, pools, features.shape[2:])).abs().max() > 1e-3


def test_dropout_follows_both_convolutions_of_a_tap_in_training_only():
    taps, image, pools = taps_case(9, 9)
    assert {tap.drop1.p for tap in taps.children()} == {tap.drop2.p for tap in taps.children()}
    taps.train()
    size = pools[-1].shape[2:]
    assert not torch.equal(taps(image, pools, size), taps(image, pools, size))
    for tap in taps.children():
        tap.drop1.p, tap.drop2.p = 0.0, 1.0
    biases = sum(tap.classifier.bias for tap in taps.children()).view(1, 5, 1, 1)
    torch.testing.assert_close(taps(image, pools, size), biases.expand(2, 5, 2, 2))
