"""crf.pydensecrf.densecrf against pydensecrf: recorded results and the live module."""

import json
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from densecrf_problems import (
    assert_meets_bar,
    example,
    kl_per_step,
    noisy_image,
    photograph,
    with_two_terms,
)

import crf.pydensecrf.densecrf as dcrf
import crf.pydensecrf.utils

pytestmark = pytest.mark.processors

GOLDENS = ("anisotropic", "diagonal", "logistic", "matrix", "potts", "scattered_points")
GOLDENS += ("unnormalised", "without_unary")


# Recorded results


def replay(record: Any) -> Any:
    (kind, size), *calls = json.loads(str(record["calls"]))
    crf = getattr(dcrf, kind)(*size)
    for method, arguments in calls:
        resolved = {k: record[v[1:]] if isinstance(v, str) else v for k, v in arguments.items()}
        getattr(crf, method)(**resolved)
    return crf


@pytest.mark.parametrize("name", GOLDENS)
def test_inference_meets_the_bar_on_recorded_results(name, golden):
    record = np.load(golden / f"pydensecrf_{name}.npz")
    assert_meets_bar(replay(record).inference(10), record["marginals"])


@pytest.mark.parametrize("name", GOLDENS)
def test_start_and_divergences_match_recorded_results(name, golden):
    record = np.load(golden / f"pydensecrf_{name}.npz")
    crf = replay(record)
    start, _, _ = crf.startInference()
    _, divergences = kl_per_step(crf, 5)
    np.testing.assert_allclose(start, record["start"], atol=1e-6)
    np.testing.assert_allclose(divergences, record["kl"], rtol=1e-4)


def test_every_recorded_result_is_tested(golden):
    names = {path.stem.removeprefix("pydensecrf_") for path in golden.glob("pydensecrf_*.npz")}
    assert names == {*GOLDENS, "examples"}


# The live module


def random_crf(module: ModuleType, form: str, normalization: int, seed: int) -> Any:
    """A CRF of random size, labels, sigmas and weights; the same for every module."""
    rng = np.random.default_rng([seed, normalization, len(form)])
    width, height = (int(size) for size in rng.integers(1, 41, 2))
    width, height = [(width, height), (1, height), (width, 1)][seed % 3]
    labels = int(rng.choice([1, 2, 5, 8, 21]))  # two row widths: each one compiles
    weight = rng.uniform(1, 6) * (0.02 if normalization == 0 else 1)
    mixed = rng.normal(0, 0.3, (labels, labels)) - np.eye(labels)
    compat = {
        "number": weight,
        "vector": (-weight * rng.random(labels)).astype(np.float32),
        "matrix": (weight * mixed).astype(np.float32),
    }[form]
    crf = module.DenseCRF2D(width, height, labels)
    unary = rng.gamma(2.0, 1.0, (labels, width * height)).astype(np.float32)
    crf.setUnaryEnergy(unary)
    smooth, near = rng.uniform(1, 20), np.exp(rng.uniform(0, np.log(160)))
    crf.addPairwiseGaussian((smooth, near), compat, normalization=normalization)
    image = noisy_image(rng, height, width)
    crf.addPairwiseBilateral(near, rng.uniform(3, 20), image, compat, 1, normalization)
    if seed == 0:
        features = rng.normal(0, 2, (3, width * height)).astype(np.float32)
        crf.addPairwiseEnergy(features, compat, normalization=normalization)
    return crf


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("normalization", list(dcrf.NormalizationType), ids=lambda n: n.name)
@pytest.mark.parametrize("form", ["number", "vector", "matrix"])
def test_random_crf_meets_the_bar(form, normalization, seed, pydensecrf):
    ours = random_crf(dcrf, form, normalization, seed)
    theirs = random_crf(pydensecrf, form, normalization, seed)
    assert_meets_bar(ours.inference(10), theirs.inference(10))
    q, divergences = kl_per_step(ours, 3)
    q_reference, divergences_reference = kl_per_step(theirs, 3)
    assert_meets_bar(q, q_reference)
    np.testing.assert_allclose(divergences, divergences_reference, rtol=1e-4)


@pytest.mark.parametrize("sigmas", [(80, 13), (49, 5), (67, 3)], ids=str)
@pytest.mark.parametrize("number", [1, 3])
def test_photograph_of_21_labels_meets_the_bar(number, sigmas, pydensecrf):
    image = np.ascontiguousarray(photograph(number)[0][40:139, 30:188])
    height, width = image.shape[:2]
    noise = np.random.default_rng(number).normal(0, 1, (21, height // 9, -(-width // 9)))
    logits = np.kron(noise, np.ones((9, 9)))[:, :height, :width].reshape(21, -1)
    unary = crf.pydensecrf.utils.unary_from_softmax(np.exp(2 * logits) / np.exp(2 * logits).sum(0))
    ours, theirs = (with_two_terms(m, unary, image, sigmas) for m in (dcrf, pydensecrf))
    assert_meets_bar(ours.inference(10), theirs.inference(10))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_bar_is_met_on_any_number_of_threads(count, set_threads, pydensecrf):
    rng = np.random.default_rng(5)
    points = 13_001  # enough for three threads, one in the last block of four
    unary = rng.gamma(2.0, 1.0, (4, points)).astype(np.float32)
    features = rng.normal(0, 3, (3, points)).astype(np.float32)

    def marginals(module: ModuleType) -> Any:
        crf = module.DenseCRF(points, 4)
        crf.setUnaryEnergy(unary)
        crf.addPairwiseEnergy(features, 4)
        return crf.inference(10)

    set_threads(count)
    assert_meets_bar(marginals(dcrf), marginals(pydensecrf))


# pydensecrf's own example: scribbles on a photograph


def outcome(densecrf, utils, image, scribbles, two_d):
    """Labels that the example ends in, and the divergences that it prints."""
    _, crf = example(densecrf, utils, image, scribbles, two_d)
    labels = np.argmax(crf.inference(5), axis=0).reshape(image.shape[:2])
    return labels, kl_per_step(crf, 5)[1]


@pytest.mark.parametrize("number", [1, 3])
def test_example_ends_in_the_recorded_labels(number, golden):
    expected = np.load(golden / "pydensecrf_examples.npz")[f"im{number}"]
    labels, _ = outcome(dcrf, crf.pydensecrf.utils, *photograph(number), two_d=False)
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("two_d", [False, True])
def test_example_prints_the_same_divergences_and_ends_in_the_same_labels(
    two_d, pydensecrf, pydensecrf_utils
):
    labels, divergences = outcome(dcrf, crf.pydensecrf.utils, *photograph(1), two_d)
    expected, reference = outcome(pydensecrf, pydensecrf_utils, *photograph(1), two_d)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_allclose(divergences, reference, rtol=1e-4)
