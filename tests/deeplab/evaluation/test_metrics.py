"""The scores against a brute force that counts pixels class by class."""

import numpy as np
import pytest
import torch

from deeplab.evaluation.metrics import ConfusionMatrix


def brute_force(true, pred, num_classes, ignore):
    """IoU, accuracy and presence of each class from sets of pixels, in plain Python."""
    pairs = zip(true.ravel(), pred.ravel(), strict=True)
    pixels = [(int(t), int(p)) for t, p in pairs if t != ignore]
    iou, accuracy = [], []
    for c in range(num_classes):
        own = {i for i, (t, _) in enumerate(pixels) if t == c}
        found = {i for i, (_, p) in enumerate(pixels) if p == c}
        iou.append(len(own & found) / len(own | found) if own | found else float("nan"))
        accuracy.append(len(own & found) / len(own) if own else float("nan"))
    right = sum(t == p for t, p in pixels) / len(pixels)
    return iou, accuracy, right


@pytest.mark.parametrize("num_classes", [1, 2, 5, 21])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (2, 9, 11)])
def test_scores_equal_a_brute_force_over_sets_of_pixels(num_classes, shape):
    rng = np.random.default_rng(num_classes)
    true = rng.integers(0, num_classes, shape).astype(np.uint8)
    pred = rng.integers(0, num_classes, shape)
    true.ravel()[1::4] = 255
    confusion = ConfusionMatrix(num_classes)
    confusion.update(true, pred)
    iou, accuracy, right = brute_force(true, pred, num_classes, 255)
    np.testing.assert_allclose(confusion.iou().numpy(), iou, rtol=1e-12)
    assert confusion.miou() == pytest.approx(np.nanmean(iou), rel=1e-12)
    assert confusion.mean_accuracy() == pytest.approx(np.nanmean(accuracy), rel=1e-12)
    assert confusion.pixel_accuracy() == pytest.approx(right, rel=1e-12)


def test_one_matrix_over_the_set_is_not_the_mean_over_pictures():
    first = (np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1]))
    second = (np.array([1]), np.array([1]))
    whole = ConfusionMatrix(2)
    means = []
    for true, pred in (first, second):
        whole.update(true, pred)
        one = ConfusionMatrix(2)
        one.update(true, pred)
        means.append(one.miou())
    assert whole.miou() == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert np.mean(means) == pytest.approx((3 / 4 / 2 + 1) / 2)


def test_updates_in_parts_equal_one_update():
    rng = np.random.default_rng(0)
    true, pred = rng.integers(0, 4, (2, 50))
    whole, parts = ConfusionMatrix(4), ConfusionMatrix(4)
    whole.update(true, pred)
    for i in range(0, 50, 7):
        parts.update(torch.from_numpy(true[i : i + 7]), torch.from_numpy(pred[i : i + 7]))
    assert torch.equal(whole.matrix, parts.matrix)
    assert whole.matrix.sum() == 50


@pytest.mark.parametrize(("absent", "miou", "accuracy"), [("skip", 1.0, 1.0), ("zero", 0.5, 0.5)])
def test_absent_class_is_left_out_or_counts_zero_as_asked(absent, miou, accuracy):
    confusion = ConfusionMatrix(2, absent=absent)
    confusion.update(np.zeros(3, int), np.zeros(3, int))
    assert confusion.miou() == miou
    assert confusion.mean_accuracy() == accuracy


def test_class_predicted_but_never_true_scores_zero_and_is_not_absent():
    confusion = ConfusionMatrix(3)
    confusion.update(np.array([0, 0]), np.array([0, 2]))
    assert confusion.iou()[2] == 0
    assert torch.isnan(confusion.iou()[1])
    assert confusion.miou() == pytest.approx(0.25)


def test_ignored_pixels_may_have_any_prediction_and_count_nowhere():
    confusion = ConfusionMatrix(2)
    confusion.update(np.array([255, 255, 1]), np.array([200, 0, 1]))
    assert confusion.matrix.tolist() == [[0, 0], [0, 1]]


def test_empty_matrix_has_no_score_rather_than_a_wrong_one():
    confusion = ConfusionMatrix(2)
    confusion.update(np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8))
    assert np.isnan(confusion.miou())
    assert np.isnan(confusion.pixel_accuracy())


@pytest.mark.parametrize(
    ("true", "pred", "error", "message"),
    [
        (np.zeros((2, 2), int), np.zeros(4, int), ValueError, r"labels_pred.*\(2, 2\).*\(4,\)"),
        (np.array([0, 3]), np.array([0, 0]), ValueError, "labels_true must be 0 .. 2, not 3"),
        (np.array([0, 0]), np.array([-1, 0]), ValueError, "labels_pred must be 0 .. 2, not -1"),
        (np.array([0.0]), np.array([0]), TypeError, "labels_true must be integer"),
        (np.array([0]), torch.tensor([0.0]), TypeError, "labels_pred must be integer"),
    ],
)
def test_wrong_labels_raise_and_leave_the_matrix_unchanged(true, pred, error, message):
    confusion = ConfusionMatrix(3)
    with pytest.raises(error, match=message):
        confusion.update(true, pred)
    assert confusion.matrix.sum() == 0


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="num_classes"):
        ConfusionMatrix(0)
    with pytest.raises(ValueError, match="ignore: 3 is one of"):
        ConfusionMatrix(5, ignore=3)
    with pytest.raises(ValueError, match="absent"):
        ConfusionMatrix(5, absent="mean")  # type: ignore[arg-type]
