"""The CRF alone: that pydensecrf's example is met, and what the settings are."""

from pathlib import Path

import numpy as np
import pytest
from commands import done
from densecrf_problems import example
from picture_files import save
from PIL import Image

from crf import Bilateral, Gaussian
from deeplab.crf_settings import CRFSettings
from deeplab.data.annotations import Annotation, read_colours
from deeplab.data.images import read_image
from deeplab.errors import InputError
from deeplab.refine import refine_probabilities, refine_scribbles

EXAMPLES = Path(__file__).parents[3] / "shared" / "data" / "pydensecrf"
SMALL = CRFSettings(4, Gaussian(3.0, 2.0), Bilateral(5.0, 12.0, 10.0))


def two_halves(height: int = 24, width: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """A noisy picture, dark on the left and bright on the right, and its labels."""
    labels = np.zeros((height, width), np.int64)
    labels[:, width // 2 + 3 :] = 1
    noise = np.random.default_rng(1).normal(0, 6, (height, width, 3))
    image = np.where(labels[..., None] == 1, 190, 60) + noise
    return image.clip(0, 255).astype(np.uint8), labels


def colours_of_example(image: np.ndarray, annotation: np.ndarray) -> np.ndarray:
    """What pydensecrf's example gives each pixel of a picture with an annotation, both RGB."""
    dcrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed")
    from pydensecrf import utils

    colours, model = example(dcrf, utils, image, annotation)
    return colours[np.argmax(model.inference(5), axis=0)].reshape(image.shape)


@pytest.mark.parametrize("number", [1, 3])
def test_scribbles_on_photographs_give_the_labels_of_pydensecrfs_example(tmp_path, number):
    photo, marks = EXAMPLES / f"im{number}.png", EXAMPLES / f"anno{number}.png"
    if not photo.is_file():
        pytest.skip(f"{photo} is not there: the example photographs are not part of this project")
    image, _ = read_image(photo)
    expected = colours_of_example(image, np.asarray(Image.open(marks).convert("RGB")))
    annotation = read_colours(marks, image.shape[:2])
    found = refine_scribbles(annotation, image)
    assert np.array_equal(annotation.colours[found.labels], expected)
    done("refine", photo, marks, "--out", tmp_path)
    with Image.open(tmp_path / f"im{number}_labels.png") as written:
        assert np.array_equal(np.asarray(written.convert("RGB")), expected)


@pytest.mark.parametrize("unsure", [True, False], ids=["with unsure pixels", "all marked"])
def test_scribbles_on_a_generated_picture_give_the_labels_of_the_example(tmp_path, unsure):
    image, truth = two_halves()
    marks = np.array([[0, 60, 200], [250, 1, 0]], np.uint8)[truth]
    marks[5:9, 5:25] = marks[5:9, 24:4:-1]  # some are wrong
    if unsure:
        marks[10:, 3:28] = 0
    expected = colours_of_example(image, marks)
    annotation = read_colours(save(tmp_path / "a.png", marks), image.shape[:2])
    found = refine_scribbles(annotation, image)
    assert np.array_equal(annotation.colours[found.labels], expected)
    assert np.array_equal(np.unique(found.labels), [0, 1])


def test_scribbles_spread_to_the_edges_of_the_picture_they_lie_on():
    image, truth = two_halves()
    marks = np.zeros_like(truth)
    marks[12, 2:6], marks[12, 24:28] = 1, 2
    found = refine_scribbles(Annotation(marks, 2), image, SMALL)
    assert np.array_equal(found.labels, truth)
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)


def test_a_higher_gt_prob_holds_marks_against_the_picture():
    image, truth = two_halves()
    marks = truth + 1
    marks[10:12, 4:6] = 2  # a mistake on the dark side
    trusting = refine_scribbles(Annotation(marks, 2), image, SMALL, gt_prob=0.999999)
    doubting = refine_scribbles(Annotation(marks, 2), image, SMALL, gt_prob=0.6)
    assert (trusting.labels[10:12, 4:6] == 1).all()
    assert (doubting.labels[10:12, 4:6] == 0).all()


@pytest.mark.parametrize("gt_prob", [0.5, 1.0, 0.2, float("nan")])
def test_a_gt_prob_that_says_nothing_is_refused(gt_prob):
    image, truth = two_halves()
    with pytest.raises(InputError, match="gt_prob"):
        refine_scribbles(Annotation(truth + 1, 2), image, SMALL, gt_prob)


def test_refined_probabilities_follow_the_edges_of_the_picture():
    image, truth = two_halves()
    blurred = np.clip((np.arange(30) - 14.5) / 16 + 0.5, 0, 1)  # the edge is off by 3, and soft
    ones = np.broadcast_to(blurred, truth.shape)
    given = np.stack([1 - ones, ones]).astype(np.float32)
    assert not np.array_equal(given.argmax(0), truth)
    found = refine_probabilities(given, image, SMALL)
    assert np.array_equal(found.labels, truth)
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)


def test_refining_probabilities_is_pydensecrfs_recipe_with_unary_from_softmax():
    dcrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed")
    from pydensecrf.utils import unary_from_softmax

    image, _ = two_halves()
    given = np.random.default_rng(0).random((3, *image.shape[:2]), dtype=np.float32)
    given /= given.sum(0)
    given[:, 0, 0] = [1, 0, 0]  # a zero must not rule a label out
    height, width = image.shape[:2]
    model = dcrf.DenseCRF2D(width, height, 3)
    model.setUnaryEnergy(unary_from_softmax(given))
    model.addPairwiseGaussian(sxy=2.0, compat=3.0)
    model.addPairwiseBilateral(sxy=12.0, srgb=10.0, rgbim=image, compat=5.0)
    expected = np.array(model.inference(4)).reshape(3, height, width)
    found = refine_probabilities(given, image, SMALL)
    np.testing.assert_allclose(found.probabilities, expected, atol=2e-3)
