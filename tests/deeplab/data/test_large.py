"""What is shown and counted of large pictures, against the whole of it at once."""

import numpy as np
import pytest

from deeplab.data import large
from deeplab.data.large import class_areas, reduced


def labelled(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, rng.integers(0, 5, (height, width), dtype=np.uint8)


def test_what_is_not_too_large_stays_as_it_is() -> None:
    image, labels = labelled(20, 30)
    shown, of_them = reduced(image, labels, most=600)
    assert shown is image
    assert of_them is labels


@pytest.mark.parametrize(("most", "k"), [(599, 2), (150, 2), (149, 3), (60, 4)])
def test_blocks_become_their_mean_and_their_middle_label(most: int, k: int) -> None:
    image, labels = labelled(20, 30)
    shown, of_them = reduced(image, labels, most)
    height, width = 20 // k, 30 // k
    assert shown.shape == (height, width, 3)
    assert of_them.shape == (height, width)
    for y in range(height):
        for x in range(width):
            block = image[y * k : (y + 1) * k, x * k : (x + 1) * k]
            assert np.abs(shown[y, x] - block.mean((0, 1))).max() <= 0.5
            assert of_them[y, x] == labels[y * k + k // 2, x * k + k // 2]


@pytest.mark.parametrize("size", [(1, 300), (300, 1)])
def test_thin_pictures_keep_a_pixel_of_either_side(size: tuple[int, int]) -> None:
    shown, of_them = reduced(*labelled(*size), most=50)
    assert shown.shape[:2] == of_them.shape
    assert 0 < shown.shape[0] * shown.shape[1] <= 150


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_areas_are_counted_a_few_rows_at_a_time(monkeypatch, dtype: type) -> None:
    monkeypatch.setattr(large, "ROWS", 3)
    labels = np.sort(labelled(20, 30)[1], axis=0).astype(dtype)  # the last classes come last
    assert class_areas(labels).tolist() == np.bincount(labels.ravel()).tolist()
