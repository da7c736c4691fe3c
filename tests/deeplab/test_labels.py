"""The class of the highest score, against argmax."""

import numpy as np
import pytest
import torch

from deeplab.predict import predictor
from deeplab.predict.labels import STRIP, most_probable


@pytest.mark.parametrize(
    "shape",
    [(21, 7, 9), (1, 3, 4), (2, 1, 1), (256, 5, 3), (3, 2, STRIP // 2 + 3), (2, 0, 4), (2, 4, 0)],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_labels_are_those_of_argmax_with_ties(shape, dtype):
    scores = np.random.default_rng(1).integers(-4, 4, shape).astype(dtype)  # many are equal
    scores[0] = -np.inf
    found = most_probable(scores)
    assert found.dtype == np.uint8
    assert np.array_equal(found, scores.argmax(axis=0))


def test_labels_of_scores_that_lie_pixel_by_pixel_or_mirrored():
    scores = np.random.default_rng(2).normal(size=(30, 40, 5)).transpose(2, 0, 1)[..., ::-1]
    assert np.array_equal(most_probable(scores), scores.argmax(axis=0))


@pytest.mark.parametrize("classes", [2, 256, 257])
def test_a_prediction_holds_them_as_bytes_up_to_256_classes(classes):
    scores = torch.randn(classes, 3, 4, generator=torch.Generator().manual_seed(3))
    scores[-1, 0] = 9.0
    found = predictor.decided(scores, None)
    assert found.dtype == (np.uint8 if classes <= 256 else np.int64)
    assert np.array_equal(found, scores.argmax(0).numpy())
