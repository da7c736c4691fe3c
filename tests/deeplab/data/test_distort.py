"""Rotation, colour jitter, blur and noise: what each does, and what it leaves alone."""

import numpy as np
import pytest

from deeplab.data.augment import MEAN_RGB
from deeplab.data.distort import distort, rotate

GREY = (0.299, 0.587, 0.114)


class Fixed:
    """A generator that draws these numbers in turn."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def uniform(self, low, high, size=None):
        number = self.numbers.pop(0)
        assert np.all((low <= np.asarray(number)) & (np.asarray(number) <= high))
        return np.asarray(number) if size else number


def picture(seed=0, side=9):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    return image, rng.integers(0, 3, (side, side), dtype=np.uint8)


@pytest.mark.parametrize(("angle", "turns"), [(90, 1), (-90, -1), (180, 2), (0, 0)])
def test_right_angles_turn_picture_and_labels_alike(angle, turns):
    image, labels = picture()
    turned, truth = rotate(image, labels, 180, Fixed(angle))
    assert np.array_equal(turned, np.rot90(image, turns))
    assert np.array_equal(truth, np.rot90(labels, turns))


def test_what_comes_from_beyond_a_turned_picture_is_filled_and_ignored():
    image, labels = picture(side=21)
    turned, truth = rotate(image, labels, 45, Fixed(45.0), fill=(10.4, 20.6, 30))
    assert truth[0, 0] == truth[0, -1] == truth[-1, 0] == truth[-1, -1] == 255
    assert (turned[truth == 255] == (10, 21, 30)).all()
    assert truth[10, 10] == labels[10, 10]
    assert set(np.unique(truth)) <= {0, 1, 2, 255}


def test_colour_jitter_changes_brightness_contrast_and_saturation_in_this_order():
    image, labels = picture()
    found = distort(image, labels, Fixed([0.9, 1.2, 0.7]), colour_jitter=0.4)
    x = 0.9 * image.astype(np.float64)
    mean = (x @ GREY).mean()
    x = mean + 1.2 * (x - mean)
    grey = (x @ GREY)[..., None]
    expected = np.clip(grey + 0.7 * (x - grey), 0, 255)
    assert np.abs(found - expected).max() <= 0.5 + 1e-3


def test_blur_keeps_a_flat_picture_and_spreads_a_point_as_its_sigma_says():
    flat, labels = np.full((63, 63, 3), 77, np.uint8), np.zeros((63, 63), np.uint8)
    assert np.array_equal(distort(flat, labels, Fixed(3.0), blur=4.0), flat)
    line = np.zeros((63, 63, 3), np.uint8)
    line[:, 32:] = 200  # a step, whose slope is the Gaussian
    slope = np.diff(distort(line, labels, Fixed(3.0), blur=4.0)[31, :, 0].astype(float))
    where = np.arange(len(slope)) + 0.5
    mean = (slope * where).sum() / slope.sum()
    variance = (slope * (where - mean) ** 2).sum() / slope.sum()
    assert variance == pytest.approx(9, rel=0.05)  # 8-bit levels
    assert np.array_equal(distort(line, labels, Fixed(0.0), blur=4.0), line)


def test_noise_has_the_standard_deviation_that_is_drawn():
    flat = np.full((200, 200, 3), 128, np.uint8)
    labels = np.zeros((200, 200), np.uint8)
    rng = np.random.default_rng(0)
    sigma = np.random.default_rng(0).uniform(0, 20)
    found = distort(flat, labels, rng, noise=20).astype(float) - 128
    assert found.std() == pytest.approx(np.sqrt(sigma**2 + 1 / 12), rel=0.01)
    assert abs(found.mean()) < 4 * sigma / np.sqrt(found.size)


def test_what_a_sample_is_filled_with_stays_and_nothing_is_drawn_for_what_is_not_asked():
    image, labels = picture()
    image[:, 6:], labels[:, 6:] = np.round(MEAN_RGB), 255
    image[0, 0] = np.round(MEAN_RGB)  # of the picture: it has a label
    options = {"colour_jitter": 0.5, "blur": 1.0, "noise": 30.0}
    found = distort(image, labels, np.random.default_rng(3), **options)
    assert np.array_equal(found[:, 6:], image[:, 6:])
    assert (found[:, :6] != image[:, :6]).any(-1).mean() > 0.9
    assert (found[0, 0] != image[0, 0]).any()
    assert np.array_equal(distort(image, labels, Fixed()), image)
