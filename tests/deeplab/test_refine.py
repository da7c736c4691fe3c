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
from deeplab.data.cams import CAMs
from deeplab.data.images import read_image
from deeplab.errors import InputError
from deeplab.refine import Background, refine_cams, refine_probabilities, refine_scribbles
from kernels import memory

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


def test_probabilities_in_a_read_only_view_are_refined_and_left_as_they_are():
    image, truth = two_halves()
    given = np.stack([truth == 1, truth == 0]).astype(np.float32)[::-1]
    given.flags.writeable = False
    found = refine_probabilities(given, image, SMALL)
    assert np.array_equal(found.labels, truth)
    assert set(np.unique(given)) == {0, 1}  # none raised to what the CRF takes


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


def activation_maps() -> tuple[np.ndarray, CAMs]:
    """A picture of three grey parts, and soft maps of the classes 4 and 2 on two of them."""
    random = np.random.default_rng(2)
    height, width = 30, 45
    parts = np.repeat([0, 1, 2], 15)[None].repeat(height, axis=0)
    image = np.array([40, 120, 210])[parts][..., None] + random.normal(0, 6, (height, width, 3))
    x = np.arange(width)
    bumps = [np.exp(-(((x - centre) / 7.0) ** 2)) for centre in (20, 40)]
    maps = np.stack([np.broadcast_to(b, (height, width)) for b in bumps])
    noisy = (maps + random.normal(0, 0.08, maps.shape)).clip(0, 1).astype(np.float32)
    return image.clip(0, 255).astype(np.uint8), CAMs(noisy, np.array([4, 2]))


def labels_of_pipeline(image: np.ndarray, cams: CAMs, by: str, number: float) -> np.ndarray:
    """What irn (a threshold) and psa (a power) compute, through pydensecrf2: 0, 3 and 5."""
    dcrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed")
    from pydensecrf import utils

    height, width = image.shape[:2]
    model = dcrf.DenseCRF2D(width, height, 3)
    if by == "threshold":
        scores = np.pad(cams.maps, ((1, 0), (0, 0), (0, 0)), constant_values=number)
        unary = utils.unary_from_labels(scores.argmax(0), 3, gt_prob=0.7, zero_unsure=False)
        sigma_xy, sigma_rgb = 50, 5
    else:
        background = (1 - cams.maps.max(0, keepdims=True)) ** number
        unary = utils.unary_from_softmax(np.concatenate([background, cams.maps]))
        sigma_xy, sigma_rgb = 80, 13
    model.setUnaryEnergy(np.ascontiguousarray(unary))
    model.addPairwiseGaussian(sxy=3, compat=3)
    model.addPairwiseBilateral(sxy=sigma_xy, srgb=sigma_rgb, rgbim=image, compat=10)
    winners = np.argmax(model.inference(10), axis=0).reshape(height, width)
    return np.array([0, 5, 3])[winners]


def test_what_does_not_fit_into_memory_is_refused_before_it_is_computed(monkeypatch):
    image, truth = two_halves()
    given = np.stack([truth == 0, truth == 1]).astype(np.float32)
    monkeypatch.setattr(memory, "available", lambda device: 150_000)  # least are 178_560
    for refused in (
        lambda: refine_probabilities(given, image),
        lambda: refine_scribbles(Annotation(truth + 1, 2), image),
        lambda: refine_cams(CAMs(given[:1], np.array([0])), image, Background("power", [2.0])),
    ):
        with pytest.raises(MemoryError, match="CRF over 720 pixels with 2 labels needs"):
            refused()


@pytest.mark.parametrize(
    ("by", "numbers"), [("threshold", (0.3, 0.05)), ("power", (1.5, 12.0))], ids=["irn", "psa"]
)
def test_activation_maps_give_the_labels_of_their_pipelines(by, numbers):
    image, cams = activation_maps()
    strong, weak = (labels_of_pipeline(image, cams, by, number) for number in numbers)
    assert not np.array_equal(strong, weak)
    assert set(np.unique(strong)) == {0, 3, 5}
    found = [refine_cams(cams, image, Background(by, [number])) for number in numbers]
    assert np.array_equal(found[0].labels, strong)
    assert np.array_equal(found[1].labels, weak)
    assert found[0].probabilities.shape == (6, *strong.shape)
    assert np.array_equal(found[0].probabilities.argmax(0), strong)
    assert found[0].probabilities[[1, 2, 4]].max() == 0
    both = refine_cams(cams, image, Background(by, numbers[::-1]), num_classes=21)
    expected = np.where(strong > 0, strong, np.where(weak > 0, 255, 0))
    assert np.array_equal(both.labels, expected)
    assert 255 in both.labels
    assert len(both.probabilities) == 21


def test_a_picture_without_tags_is_background():
    image, _ = activation_maps()
    none = CAMs(np.empty((0, *image.shape[:2]), np.float32), np.empty(0, np.int64))
    found = refine_cams(none, image, Background("power", [4.0, 32.0]))
    assert not found.labels.any()
    assert np.array_equal(found.probabilities, np.ones((1, *image.shape[:2])))


def test_backgrounds_that_say_nothing_are_refused():
    for by, numbers, message in (
        ("threshold", [0.3, 0.3], "one number, or two different ones"),
        ("threshold", [], "one number, or two"),
        ("power", [1.0, 2.0, 3.0], "one number, or two"),
        ("threshold", [1.0], "between 0 and 1"),
        ("power", [0.0], "above 0"),
        ("power", [float("nan")], "above 0"),
    ):
        with pytest.raises(InputError, match=message):
            Background(by, numbers)
    image, cams = activation_maps()
    with pytest.raises(InputError, match="class 4 is out of range for 5 classes"):
        refine_cams(cams, image, Background("power", [4.0]), num_classes=5)
    with pytest.raises(InputError, match="gt_prob must be more than 1/labels"):
        refine_cams(cams, image, Background("threshold", [0.3]), gt_prob=0.3)
