"""Generated scenes: reproducible, complete, and masks that fit their pictures."""

import hashlib
import itertools

import numpy as np
import pytest
from PIL import Image, ImageFilter
from several_processes import run_python

from deeplab.data import scenes
from deeplab.data.scenes import CLASSES, PALETTE, Scene, ScenesDataset, scene
from deeplab.data.scenes import view as painting


def test_same_seed_gives_the_same_bytes_in_another_process():
    here = scene(7, 65)
    code = (
        "import hashlib; from deeplab.data.scenes import scene; s = scene(7, 65); "
        "print(hashlib.sha256(s.image.tobytes() + s.labels.tobytes()).hexdigest())"
    )
    bytes_here = here.image.tobytes() + here.labels.tobytes()
    assert run_python("-c", code).strip() == hashlib.sha256(bytes_here).hexdigest()


def test_scene_does_not_depend_on_what_was_generated_before():
    first = scene(3, 65)
    for other in range(5):
        scene(other, 33)
    again = scene(3, 65)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)


def test_seeds_give_different_scenes():
    pictures = {scene(seed, 33).image.tobytes() for seed in range(20)}
    assert len(pictures) == 20


def test_same_seed_at_another_size_is_the_same_scene():
    fine, coarse = scene(5, 321), scene(5, 161)
    assert np.mean(fine.labels[::2, ::2] == coarse.labels) > 0.97


@pytest.mark.parametrize("size", [16, 17, 65, (16, 90), (120, 41)])
def test_any_size_gives_uint8_arrays_of_that_size(size):
    height, width = (size, size) if isinstance(size, int) else size
    for seed in range(8):
        image, labels = scene(seed, size)
        assert image.shape == (height, width, 3)
        assert labels.shape == (height, width)
        assert image.dtype == labels.dtype == np.uint8
        assert labels.max() < len(CLASSES)


def test_default_size_is_321():
    assert scene(0).labels.shape == (321, 321)


def test_every_class_occurs_in_a_fair_share_of_scenes():
    seeds = range(40)
    present = np.zeros(len(CLASSES), int)
    for seed in seeds:
        present[np.unique(scene(seed, 65).labels)] += 1
    assert not [name for name, n in zip(CLASSES, present, strict=True) if n < len(seeds) // 4]


def test_there_are_at_least_eight_classes_each_of_its_own_colour():
    assert len(CLASSES) == len(set(CLASSES)) >= 8
    assert PALETTE.shape == (256, 3)
    assert PALETTE.dtype == np.uint8
    assert len(np.unique(PALETTE[: len(CLASSES)], axis=0)) == len(CLASSES)


def test_mask_edges_lie_on_image_edges():
    """Shifting the mask by two pixels must lose contrast across its borders.

    The mean colour step across the borders of the true mask is compared with that across the
    borders of the mask moved; a mask off by some pixels would score best elsewhere.
    """

    def contrast(image, labels):
        step = np.abs(np.diff(image.astype(float), axis=1)).sum(2)
        return step[np.diff(labels.astype(int), axis=1) != 0].mean()

    best = dict.fromkeys(range(-3, 4), 0.0)
    for seed in range(12):
        image, labels = scene(seed, 161)
        for shift in best:
            moved = np.roll(labels, shift, axis=1)[:, 4:-4]
            best[shift] += contrast(image[:, 4:-4], moved)
    assert max(best, key=best.__getitem__) == 0
    assert best[0] > 2 * max(best[-2], best[2])


def view_of(width):
    return painting.View.random(
        np.random.default_rng(0), np.random.default_rng(1), scenes.DEFAULT_SIZE, width
    )


def test_coverage_is_the_area_of_the_shape_inside_each_pixel():
    """Against areas computed by hand: a rectangle that cuts pixels in known shares."""
    rows, columns, alpha = view_of(400).coverage([painting.box(10.25, 20.0, 13.0, 22.5)])
    whole = np.zeros((scenes.DEFAULT_SIZE, 400))
    whole[rows, columns] = alpha
    expected = np.zeros_like(whole)
    expected[20:23, 10:13] = np.outer([1, 1, 0.5], [0.75, 1, 1])
    assert np.abs(whole - expected).max() <= 0.25 + 1e-6  # one of four samples a side
    assert abs(whole.sum() - expected.sum()) <= 0.15 * expected.sum()


def test_mask_of_a_disc_is_exact_to_half_a_pixel():
    view, ball = view_of(321), CLASSES.index("ball")
    view.paint(ball, [painting.ellipse(100.3, 90.6, 30, 30, n=200)], np.full(3, 200, np.float32))
    centres = np.arange(321) + 0.5
    radius = np.hypot(centres - 100.3, centres[:, None] - 90.6)
    assert (view.labels[radius < 29.5] == ball).all()
    assert (view.labels[radius > 30.5] != ball).all()


def test_thin_structures_are_common():
    """Pixels of a class that a 5x5 opening of its mask removes: the failure case of the papers."""
    thin = dict.fromkeys(CLASSES, 0)
    for seed in range(8):
        labels = scene(seed, 321).labels
        for c, name in enumerate(CLASSES):
            mask = Image.fromarray((labels == c).astype(np.uint8))
            opened = mask.filter(ImageFilter.MinFilter(5)).filter(ImageFilter.MaxFilter(5))
            thin[name] += int((np.asarray(mask) & ~np.asarray(opened) & 1).sum())
    assert min(thin[name] for name in ("tree", "pole", "fence", "cart", "chair", "animal")) > 200


def test_classes_share_colours_so_that_colour_alone_does_not_tell_them():
    """A lookup of the most frequent class of each coarse colour errs on a good part of pixels."""
    table = np.zeros((16**3, len(CLASSES)), int)

    def cells(image):
        r, g, b = (image.reshape(-1, 3) // 16).astype(int).T
        return (r * 16 + g) * 16 + b

    for seed in range(30):
        image, labels = scene(seed, 65)
        np.add.at(table, (cells(image), labels.ravel()), 1)
    found = np.zeros(len(CLASSES))
    total = np.zeros(len(CLASSES))
    for seed in range(scenes.VALIDATION_START, scenes.VALIDATION_START + 10):
        image, labels = scene(seed, 65)
        right = table.argmax(1)[cells(image)] == labels.ravel()
        np.add.at(found, labels.ravel(), right)
        np.add.at(total, labels.ravel(), 1)
    assert (found / np.maximum(total, 1)).mean() < 0.5


def test_dataset_is_a_range_of_seeds():
    dataset = ScenesDataset(start=100, length=3, size=33)
    assert len(dataset) == 3
    for i in range(3):
        expected = scene(100 + i, 33)
        assert isinstance(dataset[i], Scene)
        np.testing.assert_array_equal(dataset[i].image, expected.image)
        np.testing.assert_array_equal(dataset[i][1], expected.labels)
    assert len(list(dataset)) == 3
    with pytest.raises(IndexError):
        dataset[3]


def test_splits_do_not_overlap():
    starts = (scenes.TRAIN_START, scenes.VALIDATION_START, scenes.TEST_START)
    assert all(b - a >= 1_000_000 for a, b in itertools.pairwise(starts))


def test_bad_arguments_say_what_was_expected():
    for seed, size, message in (
        (0, 15, r"size must be at least 16 .* not 15x15"),
        (0, (200, 8), r"size .*not 200x8"),
        (-1, 33, "seed must be a non-negative integer, not -1"),
    ):
        with pytest.raises(ValueError, match=message):
            scene(seed, size)
    with pytest.raises(ValueError, match="length"):
        ScenesDataset(length=-1)
