"""deeplab.model.preprocess: RGB 0-255 -> BGR minus the mean, and the mistakes made with it."""

import warnings

import numpy as np
import pytest
import torch

from deeplab.model.preprocess import preprocess


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
