"""Terms of the CRF: features pixel by pixel, normalisation, penalties, order, bad parameters."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import crf
from crf import potentials

SIZES = [(1, 1), (1, 7), (5, 1), (4, 6), (33, 17), (40, 48)]


def random_images(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, height, width)).float()


# Features


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_gaussian_features_are_positions_over_sigma_pixel_by_pixel(height: int, width: int) -> None:
    features = crf.Gaussian(1.0, (3.0, 0.7)).features(random_images(2, height, width))
    assert features.shape == (1, height * width, 2)
    pixels = itertools.product(range(height), range(width))
    sigma = np.float32([3.0, 0.7])
    expected = [(np.float32(x) / sigma[0], np.float32(y) / sigma[1]) for y, x in pixels]
    assert features[0].tolist() == np.array(expected).tolist()  # bit by bit, as pydensecrf divides


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_bilateral_features_are_position_and_colour_pixel_by_pixel(height: int, width: int) -> None:
    images = random_images(2, height, width)
    features = crf.Bilateral(1.0, (49.0, 30.0), (5.0, 13.0, 7.0)).features(images)
    assert features.shape == (2, height * width, 5)
    sigmas = np.float32([49.0, 30.0, 5.0, 13.0, 7.0])
    for b, y, x in itertools.product(range(2), range(height), range(width)):
        expected = np.float32([x, y, *images[b, :, y, x].tolist()]) / sigmas
        assert features[b, y * width + x].tolist() == expected.tolist()


def test_one_sigma_stands_for_all_dimensions() -> None:
    images = random_images(1, 4, 5)
    one, each = crf.Bilateral(1, 8, 3), crf.Bilateral(1, (8, 8), (3, 3, 3))
    assert torch.equal(one.features(images), each.features(images))
    assert one.features(images.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: crf.Gaussian(10**400, 3), ValueError, "weight must be finite"),
        (lambda: crf.Gaussian(3, 1e39), ValueError, "sigma_xy must be finite"),
        (lambda: crf.Gaussian(float("nan"), 3), ValueError, "weight must be finite"),
        (lambda: crf.Gaussian("3", 3), TypeError, "weight must be a number, not '3'"),
        (lambda: crf.Gaussian(True, 3), TypeError, "weight must be a number"),
        (lambda: crf.Gaussian(3, 0), ValueError, "sigma_xy must be positive, not 0"),
        (lambda: crf.Gaussian(3, (3, -1)), ValueError, "sigma_xy must be positive"),
        (lambda: crf.Gaussian(3, (3, 3, 3)), ValueError, "sigma_xy must be one number or 2"),
        (lambda: crf.Gaussian(3, "33"), ValueError, "sigma_xy must be one number or 2"),
        (lambda: crf.Gaussian(3, None), TypeError, "sigma_xy must be a number, not None"),
        (lambda: crf.Bilateral(3, 49, float("inf")), ValueError, "sigma_rgb must be finite"),
        (lambda: crf.Bilateral(3, 49, (5, 5)), ValueError, "sigma_rgb must be one number or 3"),
        (lambda: crf.Pairwise("", 3), ValueError, "name must be a non-empty string"),
        (lambda: crf.Pairwise("depth", float("inf")), ValueError, "weight must be finite"),
    ],
)
def test_bad_parameters_are_named(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


# Compatibility


def test_the_potts_compatibility_differs_from_its_matrix_by_what_all_labels_pay() -> None:
    marginals = torch.rand(6, 4, dtype=torch.float64).softmax(1)
    diagonal = potentials.weighted_compatibility(2.5, None, like=marginals)
    full = potentials.weighted_compatibility(2.5, 1 - torch.eye(4), like=marginals)
    difference = marginals @ full.T - marginals * diagonal
    torch.testing.assert_close(difference, torch.full_like(difference, 2.5))


def test_a_compatibility_matrix_is_copied_and_keeps_its_entries() -> None:
    matrix = np.arange(9.0).reshape(3, 3)
    kept = potentials.compatibility_matrix(matrix, 3)
    matrix[0, 0] = 7
    assert kept is not None
    assert kept.tolist() == np.arange(9.0).reshape(3, 3).tolist()
    assert potentials.compatibility_matrix("potts", 3) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("pots", 'must be "potts" or a matrix'),
        (torch.eye(4), r"must have shape \(3, 3\).* not \(4, 4\)"),
        ([1.0, 2.0, 3.0], r"must have shape \(3, 3\)"),
        ([[1.0, 2.0], [3.0]], r"matrix of shape \(3, 3\), not \[\[1.0"),
        (None, "matrix of shape .* not None"),
        (torch.full((3, 3), torch.nan), "must be finite"),
    ],
)
def test_a_bad_compatibility_is_named(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        potentials.compatibility_matrix(value, 3)


def test_weights_and_sigmas_may_be_integers_of_any_length_that_float32_holds() -> None:
    long, logits = 2**70, torch.randn(1, 3, 4, 5)
    terms = (crf.Gaussian(weight, long) for weight in (long, 2.0**70))
    given = [crf.DenseCRF(3, gaussian=term, bilateral=None)(logits) for term in terms]
    assert torch.equal(*given)


@pytest.mark.parametrize("term", [crf.Gaussian(1.0, 3.0), crf.Bilateral(1.0, (49.0, 30.0), 5.0)])
def test_a_part_with_its_origin_has_the_features_of_the_whole(term):
    images = random_images(2, 7, 9)
    whole = term.features(images).unflatten(1, (7, 9))[:, 2:, 3:].flatten(1, 2)
    assert torch.equal(term.features(images[..., 2:, 3:], origin=(2, 3)), whole)
    with pytest.raises(ValueError, match=r"origin must be 2 integers, .* not \(1,\)"):
        term.features(images, origin=(1,))


def test_a_part_of_a_volume_has_the_features_of_the_whole():
    values = torch.rand(1, 1, 4, 5, 6)
    for options in ({}, {"values": values, "sigma_values": 2.0}):
        whole = crf.grid_features((4, 5, 6), 3.0, **options).unflatten(1, (4, 5, 6))
        if options:
            options["values"] = values[:, :, 1:, 2:, 3:]
        part = crf.grid_features((3, 3, 3), 3.0, **options, origin=(1, 2, 3))
        assert torch.equal(part, whole[:, 1:, 2:, 3:].flatten(1, 3))
