"""Augmentation: the same values for the same generator, the papers' geometry, padding, labels."""

import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deeplab.data.augment import CAFFE_SCALES, MEAN_RGB, augment, shrink_labels
from deeplab.data.datasets.labels import IGNORE


def sample(image, labels, seed, **options):
    options = {"crop": 33, "scales": (0.5, 1.5), "mirror": True} | options
    return augment(image, labels, rng=np.random.default_rng(seed), **options)


def texture(side):
    """A picture and labels without structure that a wrong window could share with the right one."""
    y, x = np.indices((side, side))
    image = np.stack([(y * y * 7 + x * 13) % 256, (x * x * 5 + y) % 256, (x * y) % 256], -1)
    return image.astype(np.uint8), ((y * 3 + x * x) % 11).astype(np.uint8)


def coordinates(height, width):
    """A picture whose red is its row and green its column, and labels that are its column."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.arange(height)[:, None]
    image[..., 1] = np.arange(width)
    image[..., 2] = 200
    return image, np.broadcast_to(np.arange(width, dtype=np.uint8), (height, width)).copy()


def test_continuous_samples_keep_the_values_that_the_shipped_weights_were_trained_on():
    image, labels = texture(97)
    digest = hashlib.sha256()
    for seed in range(20):
        crop, target = sample(image, labels, seed, crop=65)
        digest.update(crop.tobytes())
        digest.update(target.tobytes())
    assert digest.hexdigest() == "5c3fb1905c9d5fea8d54361d9169de3ae68bf7ca4a22298d854c1f5d0b5cfe51"


@pytest.mark.parametrize(("mode", "scales"), [("continuous", (0.5, 1.5)), ("discrete", [0.5, 1.5])])
def test_a_sample_follows_from_its_generator_alone(mode, scales):
    image, labels = texture(64)
    first = sample(image, labels, 7, mode=mode, scales=scales)
    again = sample(image, labels, 7, mode=mode, scales=scales)
    other = sample(image, labels, 8, mode=mode, scales=scales)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert (first[0].dtype, first[0].shape) == (np.uint8, (33, 33, 3))
    assert (first[1].dtype, first[1].shape) == (np.int64, (33, 33))


@pytest.mark.parametrize("mode", ["continuous", "discrete"])
def test_scale_one_is_a_plain_crop_and_a_mirror_image_of_half_of_them(mode):
    image, labels = coordinates(60, 80)
    flipped = 0
    for seed in range(40):
        crop, target = sample(image, labels, seed, mode=mode, scales=(1.0, 1.0))
        assert np.array_equal(crop[..., 1], target)
        step = int(crop[0, 1, 1]) - int(crop[0, 0, 1])
        flipped += step == -1
        top, left = int(crop[0, 0, 0]), int(crop[..., 1].min())
        expected = image[top : top + 33, left : left + 33]
        assert np.array_equal(crop, expected[:, ::step])
    assert 10 < flipped < 30
    unflipped = [sample(image, labels, s, mode=mode, scales=(1, 1), mirror=False) for s in range(9)]
    assert all(crop[0, 1, 1] > crop[0, 0, 1] for crop, _ in unflipped)


def test_discrete_windows_reach_every_place_and_no_other():
    image, labels = coordinates(35, 33)
    drawn = (sample(image, labels, seed, mode="discrete", scales=[1])[0] for seed in range(60))
    assert {int(crop[0, 0, 0]) for crop in drawn} == {0, 1, 2}


def test_discrete_pads_bottom_and_right_with_the_mean_and_255():
    image, labels = coordinates(20, 30)
    for scale in CAFFE_SCALES[:3]:
        height, width = int(20 * scale), int(30 * scale)  # rounded down
        options = {"scales": [scale], "mirror": False, "fill": (1.6, 2, 3)}
        crop, target = sample(image, labels, 1, mode="discrete", **options)
        assert (target[:height, :width] < 30).all()
        assert (target[height:] == IGNORE).all()
        assert (target[:, width:] == IGNORE).all()
        assert (crop[height:] == (2, 2, 3)).all()
        assert (crop[:, width:] == (2, 2, 3)).all()
        assert (crop[:height, :width, 2] == 200).all()


def test_discrete_scales_are_the_ones_of_the_list():
    image, labels = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.uint8)
    options = {"crop": 99, "mode": "discrete", "scales": CAFFE_SCALES}
    targets = (sample(image, labels, seed, **options)[1] for seed in range(60))
    sides = {int((target == 0).any(axis=0).sum()) for target in targets}
    assert sides == {20, 30, 40, 50, 60}


def test_the_default_colour_is_the_one_that_preprocessing_turns_into_zero():
    image, labels = coordinates(10, 10)
    crop, target = sample(image, labels, 0, mode="discrete", scales=[1.0])
    assert (crop[target == IGNORE] == np.round(MEAN_RGB)).all()
    assert MEAN_RGB == (122.675, 116.669, 104.008)


@pytest.mark.parametrize("mode", ["continuous", "discrete"])
def test_labels_are_never_blended(mode):
    image = np.zeros((50, 50, 3), np.uint8)
    labels = np.where(np.indices((50, 50)).sum(0) % 2, 200, 3).astype(np.uint8)
    for seed in range(10):
        _, target = sample(image, labels, seed, mode=mode, scales=(0.5, 1.5))
        assert set(np.unique(target)) <= {3, 200, IGNORE}


@pytest.mark.parametrize(
    ("mode", "scales"), [("continuous", (0.5, 1.5)), ("discrete", CAFFE_SCALES)]
)
def test_labels_stay_where_the_picture_shows_them_at_every_scale(mode, scales):
    image, labels = coordinates(120, 150)
    compared = 0
    for seed in range(60):
        crop, target = sample(image, labels, seed, crop=65, mode=mode, scales=scales)
        rows, columns = np.nonzero(target != IGNORE)
        inner = np.s_[rows.min() + 2 : rows.max() - 1, columns.min() + 2 : columns.max() - 1]
        assert (np.abs(crop[..., 1] - target)[inner] <= 1).all()
        compared += target[inner].size
    assert compared > 100_000


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (500, 2)])
@pytest.mark.parametrize("mode", ["continuous", "discrete"])
def test_pictures_of_any_shape_and_tiny_scales_give_whole_samples(mode, shape):
    image, labels = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8)
    for seed, scales in enumerate([(0.01, 0.02), (0.5, 1.5), (1.5, 1.5)]):
        crop, target = sample(image, labels, seed, mode=mode, scales=scales)
        assert (crop.shape, target.shape) == ((33, 33, 3), (33, 33))
        assert set(np.unique(target)) <= {0, IGNORE}


def test_shrunken_labels_lie_where_align_corners_puts_the_scores():
    ramp = torch.arange(41, dtype=torch.float64)
    grid = ramp[None, None, None].expand(1, 1, 41, 41)
    expected = F.interpolate(grid, (6, 6), mode="bilinear", align_corners=True)
    assert torch.allclose(shrink_labels(grid), expected)
    labels = np.arange(33 * 17).reshape(33, 17)
    assert np.array_equal(shrink_labels(labels, 16), labels[::16, ::16])
    with pytest.raises(ValueError, match=r"8k \+ 1 pixels, not 320 x 321"):
        shrink_labels(np.zeros((320, 321)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "caffe"}, "mode must be 'continuous' or 'discrete'"),
        ({"scales": (1.5, 0.5)}, r"scales must be \(smallest, largest\)"),
        ({"scales": [0.5, 1, 1.5]}, r"scales must be \(smallest, largest\)"),
        ({"scales": [0.0, 1.0], "mode": "discrete"}, "scales must be positive numbers"),
    ],
)
def test_senseless_options_are_refused(options, message):
    image, labels = coordinates(10, 10)
    with pytest.raises(ValueError, match=message):
        sample(image, labels, 0, **options)


def test_sizes_that_differ_are_refused():
    image, labels = coordinates(10, 10)
    with pytest.raises(ValueError, match="must have one size"):
        sample(image, labels[:9], 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("mode", ["continuous", "discrete"])
def test_bands_of_any_values_are_sampled_as_each_alone_would_be(mode, dtype):
    rng = np.random.default_rng(5)
    image = rng.uniform(0, 250, (20, 30, 5)).astype(dtype)
    labels = rng.integers(0, 9, (20, 30))
    fill = (1.0, 2.25, 3.0, 4.0, 5.0)

    def drawn(bands):
        options = {"crop": 41, "scales": [0.5, 1.7], "mode": mode, "rng": np.random.default_rng(1)}
        return augment(image[..., bands], labels, fill=[fill[band] for band in bands], **options)

    crop, target = drawn(range(5))
    assert crop.dtype == dtype
    assert crop.shape == (41, 41, 5)
    for band in range(5):
        alone, same = drawn([band])
        assert np.array_equal(crop[..., band], alone[..., 0])
        assert np.array_equal(target, same)
    if mode == "discrete":
        expected = np.asarray(fill) if dtype == np.float32 else np.round(fill)
        assert (crop[target == IGNORE] == expected).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_bands_are_resized_as_rgb_is(dtype):
    """Pillow rounds 8 bits to whole levels; wider values keep what lies between."""
    rgb = np.random.default_rng(2).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    options = {"crop": 33, "scales": [1.5], "mode": "discrete", "mirror": False, "fill": (0, 0, 0)}
    labels = np.zeros((20, 30), int)
    narrow, _ = augment(rgb, labels, rng=np.random.default_rng(0), **options)
    wide, _ = augment(rgb.astype(dtype), labels, rng=np.random.default_rng(0), **options)
    assert np.abs(wide.astype(float) - narrow).max() <= 1
