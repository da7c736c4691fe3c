"""deeplab.model.preprocess: RGB 0-255 -> BGR minus the mean, and the mistakes made with it."""

import math
import warnings

import numpy as np
import pytest
import torch

from deeplab.model import build
from deeplab.model.preprocess import preprocess
from deeplab.model.table import MODELS


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_a_pixel_becomes_bgr_minus_the_caffe_mean():
    red_green_blue = np.array([[[10, 20, 30]]], np.uint8)
    x = preprocess(red_green_blue)
    assert x.shape == (1, 3, 1, 1)
    assert x.dtype == torch.float32
    expected = torch.tensor([30 - 104.008, 20 - 116.669, 10 - 122.675])
    torch.testing.assert_close(x.flatten(), expected)


def test_arrays_and_tensors_of_every_layout_agree(image):
    expected = preprocess(image)
    channels_first = torch.from_numpy(image).permute(2, 0, 1)
    for same in (
        image.astype(np.float64),
        np.asfortranarray(image),
        channels_first,
        channels_first[None],
        channels_first.float(),
    ):
        torch.testing.assert_close(preprocess(same), expected, rtol=0, atol=0)
    torch.testing.assert_close(preprocess(image[:, ::-1]), expected.flip(3), rtol=0, atol=0)


def test_a_batch_keeps_its_order(image):
    first = torch.from_numpy(image).permute(2, 0, 1)
    batch = torch.stack([first, 255 - first])
    assert torch.equal(preprocess(batch)[1:], preprocess(255 - first))


def test_the_input_is_left_as_it_was_and_a_read_only_array_is_welcome(image):
    before = image.copy()
    image.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        preprocess(image)
    assert np.array_equal(image, before)


def test_an_image_in_0_to_1_is_warned_of(image):
    with pytest.warns(UserWarning, match=r"0-255 is expected.*multiply it by 255"):
        preprocess(image / 255.0)


@pytest.mark.parametrize("level", [0.0, 2.0])
def test_a_dark_image_in_0_to_255_is_not_warned_of(level):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        preprocess(torch.full((3, 2, 2), level))


@pytest.mark.parametrize(
    ("bad", "error", "said"),
    [
        (np.zeros((4, 4), np.uint8), ValueError, r"\[H, W, 3\].*not shape \[4, 4\]"),
        (np.zeros((4, 4, 4), np.uint8), ValueError, r"convert\('RGB'\)"),
        (np.zeros((3, 4, 4), np.uint8), ValueError, r"not shape \[3, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "at least one pixel"),
        (np.zeros((4, 4, 3), np.int32), TypeError, "uint8 or floating point.*int32"),
        (torch.zeros(4, 4, 3), ValueError, "channels come first"),
        (torch.zeros(2, 1, 4, 4), ValueError, r"not shape \[2, 1, 4, 4\]"),
        (torch.zeros(3, 0, 4), ValueError, "at least one pixel"),
        (torch.zeros(3, 4, 4, dtype=torch.bool), TypeError, "uint8 or floating point.*bool"),
        ("photo.jpg", TypeError, "not str"),
    ],
)
def test_bad_images_are_refused_with_the_mend(bad, error, said):
    with pytest.raises(error, match=said):
        preprocess(bad)


MEANS = (1.0, 2.0, 1000.0, 0.5, 7.0)
DEVIATIONS = (0.5, 4.0, 300.0, 1.0, 2.0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("bands", [1, 2, 3, 5])
def test_given_statistics_whiten_each_band_in_its_own_units(bands, dtype):
    mean, deviation = MEANS[:bands], DEVIATIONS[:bands]
    model = build("deeplab_v2_small", 2, in_channels=bands, mean=mean, deviation=deviation)
    picture = np.random.default_rng(0).uniform(0, np.iinfo(np.uint8).max, (4, 5, bands))
    picture = picture.astype(dtype)
    expected = (picture.astype(np.float64) - mean) / deviation
    found = model.preprocess(picture)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[0].permute(1, 2, 0), expected, rtol=1e-6, atol=1e-6)
    batch = torch.from_numpy(picture).permute(2, 0, 1)[None]
    torch.testing.assert_close(model.preprocess(batch), found)
    colour = np.float32(model.preprocessing.mean_colour())[None, None]
    assert model.preprocess(colour).abs().max() == 0
    how = model.preprocessing.described()
    assert how["channels"] == ("RGB" if bands == 3 else bands)
    np.testing.assert_allclose(
        (picture * how["scale"] - how["mean"]) / how["deviation"], expected, rtol=1e-12
    )


def test_fractions_are_what_given_statistics_may_be_of():
    model = build("deeplab_v2_small", 2, mean=(0.5,) * 3, deviation=(0.25,) * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.preprocess(torch.full((3, 2, 2), 0.75)).unique().tolist() == [1.0]


@pytest.mark.parametrize("name", MODELS)
def test_every_network_takes_any_number_of_bands(name):
    with torch.device("meta"):
        statistics = {"mean": MEANS, "deviation": DEVIATIONS}
        model, usual = build(name, 4, in_channels=5, **statistics).eval(), build(name, 4)
        scores = model(torch.zeros(1, 5, 41, 49))
    assert scores.shape == (1, 4, 41, 49)
    theirs = usual.state_dict()
    wider = [n for n, tensor in model.state_dict().items() if tensor.shape != theirs[n].shape]
    taps = 1 if MODELS[name].taps else 0
    assert len(wider) == 1 + taps
    assert {model.state_dict()[n].shape[1] for n in wider} == {5}
    with pytest.raises(ValueError, match=r"batch \[B, 5, H, W\], not shape \[1, 3, 8, 8\]"):
        model(torch.zeros(1, 3, 8, 8, device="meta"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"in_channels": 4}, r"mean, deviation must be given where in_channels is 4.*data check"),
        ({"mean": (1, 2, 3)}, "must both be given, or neither"),
        ({"deviation": (1, 2, 3)}, "must both be given, or neither"),
        ({"in_channels": 0}, "in_channels must be an integer from 1 up, not 0"),
        ({"in_channels": True}, "in_channels must be an integer from 1 up, not True"),
        ({"mean": (1, 2), "deviation": (1, 1, 1)}, "mean must be 3 numbers.*not \\(1, 2\\)"),
        ({"mean": (1, 2, math.nan), "deviation": (1, 1, 1)}, "mean must be 3 numbers"),
        ({"mean": (1, 2, 3), "deviation": (1, 0, 1)}, "deviation must be 3 positive numbers"),
        ({"mean": (1, 2, 3), "deviation": 1.0}, "deviation must be 3 positive numbers.*not 1.0"),
    ],
)
def test_statistics_that_make_no_preprocessing_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        build("deeplab_v2_small", 2, **options)


def test_pictures_of_another_number_of_bands_are_refused():
    model = build("deeplab_v2_small", 2, in_channels=2, mean=(0, 0), deviation=(1, 1))
    with pytest.raises(ValueError, match=r"\[H, W, 2\], not shape \[4, 4, 3\]; the model takes"):
        model.preprocess(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"\[2, H, W\] or \[B, 2, H, W\], not shape \[3, 4, 4\]"):
        model.preprocess(torch.zeros(3, 4, 4))
    with pytest.raises(TypeError, match="uint8, uint16 or floating point, not int32"):
        model.preprocess(np.zeros((4, 4, 2), np.int32))
