"""deeplab.weights.bands: weights for RGB in models of other bands."""

import warnings

import pytest
import torch
from checkpoints import BLOCKS, kazuto1011, small_network
from torch.testing import assert_close
from weights_files import assert_same_state, refused, small

from deeplab.export import TOLERANCE
from deeplab.model import DeepLab, build
from deeplab.model.preprocess import DEVIATION_RGB, MEAN_BGR, MEAN_RGB
from deeplab.model.resnet import ResNet
from deeplab.weights import load_model, load_weights, save_weights
from deeplab.weights.bands import adapted

LEVELS = [255 * deviation for deviation in DEVIATION_RGB]
PICTURE = torch.randint(0, 256, (1, 3, 33, 41), generator=torch.Generator().manual_seed(0))
PICTURE = PICTURE.to(torch.uint8)


def of_bands(bands: int, mean: list[float], style: str = "caffe") -> DeepLab:
    statistics = {"mean": mean * (bands // 3), "deviation": LEVELS * (bands // 3)}
    return build("deeplab_v2_small", 2, style=style, in_channels=bands, **statistics)


def loaded(model: DeepLab, path) -> DeepLab:
    with pytest.warns(UserWarning, match="of three channels adapted to"):
        load_weights(model, path)
    return model.eval()


def of_rgb(path, style: str = "caffe") -> DeepLab:
    model = small(2, style=style).eval()
    save_weights(model, path)
    return model


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5, 6, 7])
def test_weights_are_summed_over_rgb_or_repeated_and_scaled(bands):
    weight = torch.rand(2, 3, 5, 5)
    found = adapted(weight, bands, grey_levels=False)
    assert found.shape == (2, bands, 5, 5)
    for i in range(bands):
        expected = weight.sum(1) if bands == 1 else weight[:, i % 3] * 3 / bands
        assert_close(found[:, i], expected)


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 7])
def test_adapted_weights_are_those_of_timm(bands, torchvision):
    timm = pytest.importorskip("timm.models._manipulate", reason="timm is not installed")
    weight = torch.rand(2, 3, 5, 5)
    expected = timm.adapt_input_conv(bands, weight)
    assert torch.equal(adapted(weight, bands, grey_levels=False), expected)


@pytest.mark.parametrize("bands", [3, 6])
@pytest.mark.parametrize(
    ("style", "mean"),
    [("caffe", list(MEAN_BGR[::-1])), ("torchvision", [255 * m for m in MEAN_RGB])],
)
def test_bands_that_repeat_rgb_give_the_scores_of_rgb(tmp_path, style, mean, bands):
    theirs = of_rgb(tmp_path / "rgb.safetensors", style)
    ours = of_bands(bands, mean, style)
    if bands == 3 and style == "torchvision":  # nothing to adapt: the input is the same
        load_weights(ours, tmp_path / "rgb.safetensors")
    else:
        loaded(ours, tmp_path / "rgb.safetensors")
    repeated = PICTURE.repeat(1, bands // 3, 1, 1)
    with torch.no_grad():
        scores = ours.eval()(ours.preprocess(repeated))
        expected = theirs(theirs.preprocess(PICTURE))
    assert (scores - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_a_file_of_another_project_is_adapted_with_its_order_of_colours(tmp_path):
    theirs = small_network(1)
    torch.save(kazuto1011(theirs), tmp_path / "theirs.pth")
    usual = small_network(2)
    body = ResNet(BLOCKS, width=4, frozen_bn=True, in_channels=5)
    statistics = {"in_channels": 5, "mean": [0] * 5, "deviation": [1] * 5}
    ours = loaded(
        DeepLab(body, usual.head, config=usual.config | statistics), tmp_path / "theirs.pth"
    )
    first = theirs.backbone.conv1.weight.flip(1) * torch.tensor(LEVELS).view(3, 1, 1)
    found = ours.backbone.conv1.weight
    for band in range(5):
        assert_close(found[:, band], first[:, band % 3] * 3 / 5)
    assert torch.equal(ours.backbone.layer4[0].conv1.weight, theirs.backbone.layer4[0].conv1.weight)


def test_the_tap_on_the_picture_is_adapted_too(tmp_path):
    path = tmp_path / "msc.safetensors"
    with torch.device("meta"):
        theirs = build("deeplab_v1_msc_largefov", 2)
    theirs = theirs.to_empty(device="cpu")
    for parameter in theirs.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    save_weights(theirs, path)
    ours = build("deeplab_v1_msc_largefov", 2, in_channels=1, mean=[0], deviation=[1])
    with pytest.warns(UserWarning, match=r"conv1_1.weight, taps.image.conv1.weight of three"):
        load_weights(ours, path)
    for layer in (ours.backbone.conv1_1, ours.taps.image.conv1):
        assert_close(layer.weight, torch.full_like(layer.weight, sum(LEVELS) / 2))


def test_a_model_of_bands_comes_back_and_its_weights_fit_no_other_number(tmp_path):
    path, mean = tmp_path / "bands.safetensors", [1.0] * 6
    model = of_bands(6, mean[:3])
    save_weights(model, path)
    found = load_model(path)
    assert_same_state(found, model)
    assert found.config == model.config
    assert found.in_channels == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_weights(of_bands(6, mean[:3]), path)
    with pytest.warns(
        UserWarning, match=r"trained with mean \[1.0, .*\], and this model has others"
    ):
        load_weights(of_bands(6, [2.0] * 3), path)
    said = refused(lambda: load_weights(of_bands(9, mean[:3]), path))
    assert "backbone.conv1.weight [16, 6, 7, 7] instead of [16, 9, 7, 7]" in said


def test_weights_of_a_mean_of_their_own_fit_no_model_without(tmp_path):
    path = tmp_path / "own.safetensors"
    save_weights(of_bands(3, [1.0] * 3), path)
    assert "this model has mean None" in refused(lambda: load_weights(small(2), path))
