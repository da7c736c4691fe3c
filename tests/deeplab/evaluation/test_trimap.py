"""The trimap curve against a search of every window, pixel by pixel."""

import csv
import io

import numpy as np
import pytest
import torch

from deeplab.evaluation.metrics import ConfusionMatrix
from deeplab.evaluation.trimap import TrimapTally, band_index, curves_csv

WIDTHS = (1, 2, 5)


def picture(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of classes with void pixels between some of them, and a prediction."""
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, 3, (3, 4)), np.ones((7, 6), int)).astype(np.int64)
    labels[6:8, 3:15] = 255
    labels[0, -1] = 255
    predicted = np.where(rng.random(labels.shape) < 0.7, labels, rng.integers(0, 3, labels.shape))
    return labels, np.where(predicted == 255, 0, predicted)


def band(labels: np.ndarray, width: int, around: str) -> np.ndarray:
    """Whether the window of each pixel that counts holds a void pixel, or another label."""
    found = np.zeros(labels.shape, bool)
    for y, x in np.argwhere(labels != 255):
        window = labels[max(y - width, 0) : y + width + 1, max(x - width, 0) : x + width + 1]
        found[y, x] = (window == 255).any() if around == "void" else (window != labels[y, x]).any()
    return found


@pytest.mark.parametrize("around", ["void", "boundary"])
def test_bands_equal_a_search_of_every_window(around):
    labels, _ = picture()
    index = band_index(torch.from_numpy(labels), WIDTHS, around).numpy()
    for k, width in enumerate(WIDTHS):
        expected = band(labels, width, around)
        assert 0 < expected.sum() < expected.size
        np.testing.assert_array_equal((index <= k) & (labels != 255), expected)


@pytest.mark.parametrize("around", ["void", "boundary"])
@pytest.mark.parametrize("absent", ["skip", "zero"])
def test_curve_scores_the_pixels_of_each_band_over_all_pictures(around, absent):
    tally = TrimapTally(4, WIDTHS, around, absent=absent)
    for seed in range(3):
        tally.add(*(torch.from_numpy(x) for x in picture(seed)))
    curve = tally.curve()
    assert curve.widths == WIDTHS
    for k, width in enumerate(WIDTHS):
        expected = ConfusionMatrix(4, absent=absent)
        for seed in range(3):
            labels, predicted = picture(seed)
            inside = band(labels, width, around)
            expected.update(labels[inside], predicted[inside])
        assert curve.miou[k] == expected.miou()
        assert curve.pixel_accuracy[k] == expected.pixel_accuracy()


def test_a_set_without_void_labels_has_an_empty_void_curve():
    tally = TrimapTally(3, WIDTHS, "void")
    labels = torch.zeros(9, 9, dtype=torch.int64)
    tally.add(labels, labels)
    assert tally.curve().miou == (None,) * 3
    assert curves_csv({"network": tally.curve()}).splitlines()[1] == "1,,"


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2)])
def test_bands_wider_than_the_picture_hold_all_of_it(size):
    labels = torch.zeros(size, dtype=torch.int64)
    assert (band_index(labels, (50,), "boundary") == 1).all()
    labels[0, 0] = 255
    assert (band_index(labels, (50,), "void") == (1 if size == (1, 1) else 0)).all()


def test_csv_has_a_row_for_each_width_and_columns_for_each_curve():
    tally = TrimapTally(3, WIDTHS, "boundary")
    tally.add(*(torch.from_numpy(x) for x in picture()))
    curve = tally.curve()
    rows = list(csv.DictReader(io.StringIO(curves_csv({"network": curve, "crf": curve}))))
    assert [int(row["width"]) for row in rows] == list(WIDTHS)
    for k, row in enumerate(rows):
        assert float(row["crf miou"]) == pytest.approx(curve.miou[k], abs=1e-6)
        accuracy = pytest.approx(curve.pixel_accuracy[k], abs=1e-6)
        assert float(row["network pixel_accuracy"]) == accuracy


@pytest.mark.parametrize("widths", [(), (0, 1), (2, 2), (3, 1)])
def test_widths_that_do_not_rise_from_1_are_refused(widths):
    with pytest.raises(ValueError, match="trimap must be rising widths"):
        TrimapTally(3, widths, "void")
