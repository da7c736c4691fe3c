"""crf.densecrf against pydensecrf: recorded results, the live module, and the formula itself."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import crf.densecrf as dcrf
import crf.utils
from kernels.gaussian import gaussian_filter

GOLDENS = (
    "anisotropic",
    "diagonal",
    "logistic",
    "matrix",
    "potts",
    "scattered_points",
    "unnormalised",
    "without_unary",
)
Array = np.ndarray[Any, Any]


def kl_per_step(crf: Any, steps: int) -> tuple[Array, list[float]]:
    """Q after `steps` updates by hand, and the divergence before each and after the last."""
    q, tmp1, tmp2 = crf.startInference()
    divergences = [crf.klDivergence(q)]
    for _ in range(steps):
        crf.stepInference(q, tmp1, tmp2)
        divergences.append(crf.klDivergence(q))
    return np.array(q), divergences


# Recorded results


def replay(record: Any) -> Any:
    (kind, size), *calls = json.loads(str(record["calls"]))
    crf = getattr(dcrf, kind)(*size)
    for method, arguments in calls:
        resolved = {k: record[v[1:]] if isinstance(v, str) else v for k, v in arguments.items()}
        getattr(crf, method)(**resolved)
    return crf


@pytest.mark.parametrize("name", GOLDENS)
def test_inference_meets_the_bar_on_recorded_results(
    name: str, golden: Path, assert_meets_bar: Callable[[Any, Any], None]
) -> None:
    record = np.load(golden / f"pydensecrf_{name}.npz")
    assert_meets_bar(replay(record).inference(10), record["marginals"])


@pytest.mark.parametrize("name", GOLDENS)
def test_start_and_divergences_match_recorded_results(name: str, golden: Path) -> None:
    record = np.load(golden / f"pydensecrf_{name}.npz")
    crf = replay(record)
    start, _, _ = crf.startInference()
    _, divergences = kl_per_step(crf, 5)
    np.testing.assert_allclose(start, record["start"], atol=1e-6)
    np.testing.assert_allclose(divergences, record["kl"], rtol=1e-4)


def test_every_recorded_result_is_tested(golden: Path) -> None:
    names = {path.stem.removeprefix("pydensecrf_") for path in golden.glob("pydensecrf_*.npz")}
    assert names == {*GOLDENS, "examples"}


# The live module


def noisy_image(rng: np.random.Generator, height: int, width: int) -> Array:
    level, noise = rng.choice([0, 20, 128]), rng.choice([4, 25])
    blocks = level + rng.integers(0, 100, (-(-height // 6), -(-width // 6), 3))
    image = np.kron(blocks, np.ones((6, 6, 1)))[:height, :width]
    return np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8)


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
def test_random_crf_meets_the_bar(
    form: str,
    normalization: int,
    seed: int,
    pydensecrf: ModuleType,
    assert_meets_bar: Callable[[Any, Any], None],
) -> None:
    ours = random_crf(dcrf, form, normalization, seed)
    theirs = random_crf(pydensecrf, form, normalization, seed)
    assert_meets_bar(ours.inference(10), theirs.inference(10))
    q, divergences = kl_per_step(ours, 3)
    q_reference, divergences_reference = kl_per_step(theirs, 3)
    assert_meets_bar(q, q_reference)
    np.testing.assert_allclose(divergences, divergences_reference, rtol=1e-4)


@pytest.mark.parametrize("sigmas", [(80, 13), (49, 5), (67, 3)], ids=str)
@pytest.mark.parametrize("number", [1, 3])
def test_photograph_with_21_labels_meets_the_bar(
    number: int,
    sigmas: tuple[int, int],
    photograph: Callable[[int], tuple[Array, Array]],
    pydensecrf: ModuleType,
    assert_meets_bar: Callable[[Any, Any], None],
) -> None:
    image = np.ascontiguousarray(photograph(number)[0][40:139, 30:188])
    height, width = image.shape[:2]
    noise = np.random.default_rng(number).normal(0, 1, (21, height // 9, -(-width // 9)))
    logits = np.kron(noise, np.ones((9, 9)))[:, :height, :width].reshape(21, -1)
    unary = crf.utils.unary_from_softmax(np.exp(2 * logits) / np.exp(2 * logits).sum(0))

    def marginals(module: ModuleType) -> Any:
        crf = module.DenseCRF2D(width, height, 21)
        crf.setUnaryEnergy(unary)
        crf.addPairwiseGaussian(sxy=3, compat=3)
        crf.addPairwiseBilateral(sxy=sigmas[0], srgb=sigmas[1], rgbim=image, compat=5)
        return crf.inference(10)

    assert_meets_bar(marginals(dcrf), marginals(pydensecrf))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_bar_is_met_on_any_number_of_threads(
    count: int,
    threads: Callable[[int], None],
    pydensecrf: ModuleType,
    assert_meets_bar: Callable[[Any, Any], None],
) -> None:
    rng = np.random.default_rng(5)
    points = 13_001  # enough for three threads, one in the last block of four
    unary = rng.gamma(2.0, 1.0, (4, points)).astype(np.float32)
    features = rng.normal(0, 3, (3, points)).astype(np.float32)

    def marginals(module: ModuleType) -> Any:
        crf = module.DenseCRF(points, 4)
        crf.setUnaryEnergy(unary)
        crf.addPairwiseEnergy(features, 4)
        return crf.inference(10)

    threads(count)
    assert_meets_bar(marginals(dcrf), marginals(pydensecrf))


# pydensecrf's own example: scribbles on a photograph


def example(
    densecrf: ModuleType, utils: ModuleType, image: Array, scribbles: Array, two_d: bool
) -> tuple[Array, list[float]]:
    """Labels that the example ends in, and the divergences that it prints."""
    values, labels = np.unique(
        scribbles.astype(np.uint32) @ np.array([1, 1 << 8, 1 << 16], np.uint32),
        return_inverse=True,
    )
    unsure = 0 in values
    n_labels = len(values) - int(unsure)
    height, width = image.shape[:2]
    if two_d:
        crf = densecrf.DenseCRF2D(width, height, n_labels)
    else:
        crf = densecrf.DenseCRF(width * height, n_labels)
    crf.setUnaryEnergy(utils.unary_from_labels(labels, n_labels, gt_prob=0.7, zero_unsure=unsure))
    types = {"kernel": densecrf.DIAG_KERNEL, "normalization": densecrf.NORMALIZE_SYMMETRIC}
    if two_d:
        crf.addPairwiseGaussian(sxy=(3, 3), compat=3, **types)
        crf.addPairwiseBilateral(sxy=(80, 80), srgb=(13, 13, 13), rgbim=image, compat=10, **types)
    else:
        features = utils.create_pairwise_gaussian(sdims=(3, 3), shape=image.shape[:2])
        crf.addPairwiseEnergy(features, compat=3, **types)
        features = utils.create_pairwise_bilateral(
            sdims=(80, 80), schan=(13, 13, 13), img=image, chdim=2
        )
        crf.addPairwiseEnergy(features, compat=10, **types)
    labels = np.argmax(crf.inference(5), axis=0).reshape(height, width)
    return labels, kl_per_step(crf, 5)[1]


@pytest.mark.parametrize("number", [1, 3])
def test_example_ends_in_the_recorded_labels(
    number: int, golden: Path, photograph: Callable[[int], tuple[Array, Array]]
) -> None:
    expected = np.load(golden / "pydensecrf_examples.npz")[f"im{number}"]
    labels, _ = example(dcrf, crf.utils, *photograph(number), two_d=False)
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("two_d", [False, True])
def test_example_prints_the_same_divergences_and_ends_in_the_same_labels(
    two_d: bool,
    photograph: Callable[[int], tuple[Array, Array]],
    pydensecrf: ModuleType,
    pydensecrf_utils: ModuleType,
) -> None:
    labels, divergences = example(dcrf, crf.utils, *photograph(1), two_d)
    expected, reference = example(pydensecrf, pydensecrf_utils, *photograph(1), two_d)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_allclose(divergences, reference, rtol=1e-4)


# The formula, in float64 and with the filter as a matrix

POINTS, LABELS = 24, 3  # whole blocks of four
UNARY = np.random.default_rng(0).gamma(2.0, 1.0, (LABELS, POINTS)).astype(np.float32)
FEATURES = np.random.default_rng(1).normal(0, 1, (2, POINTS)).astype(np.float32)
VECTOR = np.array([-1, -3, 0.5], np.float32)
MATRIX = np.array([[-2, 1, 0], [0, -1, 0.5], [3, 0, -4]], np.float32)
SIGNED = {  # what each form of compat does to the filtered marginals
    "number": (1.5, -1.5 * np.eye(LABELS)),
    "vector": (VECTOR, np.diag(VECTOR)),
    "matrix": (MATRIX, (MATRIX + MATRIX.T) / 2),
}


def normalised_filter(normalization: int) -> Array:
    """F with its normalisation as a matrix `[to, from]`."""
    features = torch.from_numpy(FEATURES.T.copy())[None].double()
    identity = torch.eye(POINTS, dtype=torch.float64)[None]
    filter = gaussian_filter(identity, features, method="permutohedral", impl="eager")[0].numpy()
    mass = filter.sum(axis=1)
    after, before = {
        dcrf.NO_NORMALIZATION: (np.ones(POINTS), np.ones(POINTS)),
        dcrf.NORMALIZE_BEFORE: (np.ones(POINTS), 1 / mass),
        dcrf.NORMALIZE_AFTER: (1 / mass, np.ones(POINTS)),
        dcrf.NORMALIZE_SYMMETRIC: (mass**-0.5, mass**-0.5),
    }[normalization]
    return after[:, None] * filter * before


def softmax(field: Array) -> Array:
    exponentials = np.exp(field - field.max(axis=0))
    return exponentials / exponentials.sum(axis=0)


@pytest.mark.parametrize("normalization", list(dcrf.NormalizationType), ids=lambda n: n.name)
@pytest.mark.parametrize("form", SIGNED)
def test_update_and_divergence_follow_the_formula(form: str, normalization: int) -> None:
    compat, penalty = SIGNED[form]
    matrix = normalised_filter(normalization)
    crf = dcrf.DenseCRF(POINTS, LABELS)
    crf.setUnaryEnergy(UNARY)
    crf.addPairwiseEnergy(FEATURES, compat, normalization=normalization)

    expected = softmax(-UNARY.astype(np.float64))
    for _ in range(4):
        expected = softmax(-UNARY - penalty @ (expected @ matrix.T))
    np.testing.assert_allclose(crf.inference(4), expected, atol=1e-5)

    pairwise = penalty @ (expected @ matrix.T)
    kl = (expected * (np.log(expected) + UNARY + pairwise)).sum()
    assert crf.klDivergence(expected) == pytest.approx(kl, rel=1e-5)


# What each call does


def small_crf() -> dcrf.DenseCRF:
    crf = dcrf.DenseCRF(POINTS, LABELS)
    crf.setUnaryEnergy(UNARY)
    crf.addPairwiseEnergy(FEATURES, MATRIX)
    return crf


def test_zero_iterations_give_the_softmax_of_the_negative_unary() -> None:
    np.testing.assert_allclose(small_crf().inference(0), softmax(-UNARY), atol=1e-6)


def test_steps_by_hand_give_what_inference_gives() -> None:
    q, _ = kl_per_step(small_crf(), 7)
    np.testing.assert_allclose(q, small_crf().inference(7), atol=1e-5)


def test_step_updates_any_float_array_in_place() -> None:
    crf = small_crf()
    q, tmp1, tmp2 = crf.startInference()
    double = np.asfortranarray(q, dtype=np.float64)
    crf.stepInference(double, tmp1, tmp2)
    crf.stepInference(q, tmp1, tmp2)
    np.testing.assert_array_equal(double.astype(np.float32), q)


def test_inference_returns_a_fresh_float32_array() -> None:
    crf = small_crf()
    first = crf.inference(3)
    copy = first.copy()
    first[:] = -1
    assert first.dtype == np.float32
    assert first.shape == (LABELS, POINTS)
    np.testing.assert_array_equal(crf.inference(3), copy)


def test_without_unary_inference_starts_uniform_and_steps_start_at_zero() -> None:
    crf = dcrf.DenseCRF(POINTS, LABELS)
    np.testing.assert_allclose(crf.inference(0), 1 / LABELS, rtol=1e-6)
    q, tmp1, tmp2 = crf.startInference()
    np.testing.assert_array_equal(q, 0)
    crf.stepInference(q, tmp1, tmp2)
    np.testing.assert_allclose(q, 1 / LABELS, rtol=1e-6)


def test_without_pairwise_terms_inference_is_the_softmax() -> None:
    crf = dcrf.DenseCRF(POINTS, LABELS)
    crf.setUnaryEnergy(UNARY)
    np.testing.assert_allclose(crf.inference(5), softmax(-UNARY), atol=1e-6)


def test_later_unary_replaces_the_earlier_one() -> None:
    crf = small_crf()
    crf.setUnaryEnergy(UNARY[::-1].copy())
    expected = dcrf.DenseCRF(POINTS, LABELS)
    expected.setUnaryEnergy(UNARY[::-1].copy())
    expected.addPairwiseEnergy(FEATURES, MATRIX)
    np.testing.assert_array_equal(crf.inference(5), expected.inference(5))


def test_changing_the_inputs_afterwards_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    given = [UNARY.copy(), FEATURES.copy(), MATRIX.copy(), image.copy()]
    results = []
    for spoil in (False, True):
        crf = dcrf.DenseCRF2D(6, 4, LABELS)
        unary, features, compat, picture = (array.copy() for array in given)
        crf.setUnaryEnergy(unary)
        crf.addPairwiseEnergy(features, compat)
        crf.addPairwiseBilateral(5, 10, picture, compat)
        if spoil:
            for array in (unary, features, compat, picture):
                array[:] = 1
        results.append(crf.inference(3))
    np.testing.assert_array_equal(*results)


def test_one_unary_serves_several_crfs() -> None:
    unary = dcrf.ConstUnary(UNARY)
    for _ in range(2):
        crf = dcrf.DenseCRF(POINTS, LABELS)
        crf.setUnary(unary)
        np.testing.assert_allclose(crf.inference(0), softmax(-UNARY), atol=1e-6)


def test_logistic_unary_is_weights_times_features() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 1, (LABELS, 5)).astype(np.float32)
    inputs = rng.normal(0, 1, (5, POINTS)).astype(np.float32)
    by_object, by_method = dcrf.DenseCRF(POINTS, LABELS), dcrf.DenseCRF(POINTS, LABELS)
    by_object.setUnary(dcrf.LogisticUnary(weights, inputs))
    by_method.setUnaryEnergy(weights, inputs)
    expected = softmax(-(weights.astype(np.float64) @ inputs))
    np.testing.assert_allclose(by_object.inference(0), expected, atol=1e-6)
    np.testing.assert_array_equal(by_method.inference(0), by_object.inference(0))


def test_impossible_label_stays_at_zero() -> None:
    unary = UNARY.copy()
    unary[1] = np.inf
    crf = dcrf.DenseCRF(POINTS, LABELS)
    crf.setUnaryEnergy(unary)
    crf.addPairwiseEnergy(FEATURES, 2)
    q = crf.inference(5)
    np.testing.assert_allclose(q[1], 0, atol=1e-30)
    np.testing.assert_allclose(q.sum(axis=0), 1, atol=1e-6)


def test_divergence_leaves_out_impossible_labels() -> None:
    unary = UNARY.copy()
    unary[1] = np.inf
    forbidding, nearly = dcrf.DenseCRF(POINTS, LABELS), dcrf.DenseCRF(POINTS, LABELS)
    forbidding.setUnaryEnergy(unary)
    nearly.setUnaryEnergy(np.minimum(unary, 200))  # exp(-200) is 0 in float32
    for crf_of in (forbidding, nearly):
        crf_of.addPairwiseEnergy(FEATURES, 2)
    q = forbidding.inference(5)
    assert forbidding.klDivergence(q) == pytest.approx(nearly.klDivergence(q), rel=1e-5)
    q[1] = 0
    assert forbidding.klDivergence(q) == pytest.approx(nearly.klDivergence(q), rel=1e-5)
    assert forbidding.klDivergence(np.full_like(q, 1 / LABELS)) == np.inf


def test_kernel_type_changes_nothing() -> None:
    results = []
    for kernel in dcrf.KernelType:
        crf = dcrf.DenseCRF(POINTS, LABELS)
        crf.setUnaryEnergy(UNARY)
        crf.addPairwiseEnergy(FEATURES, 2, kernel=kernel)
        results.append(crf.inference(3))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_sigma_of_infinity_ignores_a_dimension() -> None:
    image = np.zeros((3, 4, 3), np.uint8)
    unary = UNARY[:, :12]
    results = []
    for sxy in ((np.inf, 2), (1e30, 2)):
        crf = dcrf.DenseCRF2D(4, 3, LABELS)
        crf.setUnaryEnergy(unary)
        crf.addPairwiseBilateral(sxy, 10, image, 2)
        results.append(crf.inference(3))
    np.testing.assert_array_equal(*results)


def test_small_sigma_separates_all_pixels() -> None:
    """pydensecrf's 16-bit keys overflow here."""
    width, height = 200, 3
    unary = np.random.default_rng(0).gamma(2.0, 1.0, (2, width * height)).astype(np.float32)
    crf = dcrf.DenseCRF2D(width, height, 2)
    crf.setUnaryEnergy(unary)
    crf.addPairwiseGaussian(sxy=1e-3, compat=3)
    expected = softmax(-unary.astype(np.float64))
    for _ in range(5):
        expected = softmax(-unary + 3 * expected)  # the filter is the identity
    np.testing.assert_allclose(crf.inference(5), expected, atol=1e-5)


def test_two_runs_agree_bit_for_bit(threads: Callable[[int], None]) -> None:
    threads(2)
    rng = np.random.default_rng(0)
    image = noisy_image(rng, 70, 130)
    unary = rng.gamma(2.0, 1.0, (5, 70 * 130)).astype(np.float32)

    def marginals() -> Array:
        crf = dcrf.DenseCRF2D(130, 70, 5)
        crf.setUnaryEnergy(unary)
        crf.addPairwiseGaussian(3, 3)
        crf.addPairwiseBilateral(30, 8, image, 5)
        return crf.inference(5)

    np.testing.assert_array_equal(marginals(), marginals())


@pytest.mark.parametrize("change", ["device", "dtype"])
def test_torchs_defaults_for_new_tensors_change_nothing(change: str) -> None:
    def marginals() -> Any:
        crf_2d = dcrf.DenseCRF2D(5, 4, LABELS)
        crf_2d.setUnaryEnergy(UNARY[:, :20])
        crf_2d.addPairwiseBilateral(3, 20, np.arange(60, dtype=np.uint8).reshape(4, 5, 3), 3)
        return crf_2d.inference(3)

    expected = marginals()
    try:
        if change == "device":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(torch.float64)
        assert np.array_equal(marginals(), expected)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def test_subclass_may_extend_the_constructor() -> None:
    class Picture(dcrf.DenseCRF2D):
        def __init__(self, image: Array, labels: int) -> None:
            super().__init__(image.shape[1], image.shape[0], labels)

    crf = Picture(np.zeros((4, 6, 3), np.uint8), LABELS)
    crf.setUnaryEnergy(UNARY)
    assert crf.inference(1).shape == (LABELS, 24)


@pytest.mark.parametrize(
    "convert",
    [
        lambda a: a.astype(np.float64),
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        lambda a: a[::-1].copy()[::-1],
        torch.from_numpy,
        lambda a: torch.from_numpy(a).double().requires_grad_(),
        memoryview,
    ],
    ids=["float64", "fortran", "strided", "reversed", "torch", "requires_grad", "memoryview"],
)
def test_other_arrays_of_the_same_numbers_give_the_same_result(
    convert: Callable[[Array], Any],
) -> None:
    crf = dcrf.DenseCRF(POINTS, LABELS)
    crf.setUnaryEnergy(convert(UNARY.copy()))
    crf.addPairwiseEnergy(convert(FEATURES.copy()), convert(MATRIX.copy()))
    np.testing.assert_array_equal(crf.inference(3), small_crf().inference(3))


def test_image_may_have_any_strides_or_be_a_tensor() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    results = []
    for picture in (image, image[:, ::-1].copy()[:, ::-1], torch.from_numpy(image)):
        crf = dcrf.DenseCRF2D(6, 4, LABELS)
        crf.setUnaryEnergy(UNARY)
        crf.addPairwiseBilateral(5, 10, picture, 2)
        results.append(crf.inference(2))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_read_only_arrays_pass_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    unary, features, matrix = (array.copy() for array in (UNARY, FEATURES[:1], MATRIX))
    for array in (unary, features, matrix):
        array.flags.writeable = False
    crf = dcrf.DenseCRF(POINTS, LABELS)
    crf.setUnaryEnergy(unary)
    crf.addPairwiseEnergy(features, matrix)
    q = crf.inference(2)
    q.flags.writeable = False
    crf.klDivergence(q)
    assert not recwarn.list


def test_sizes_and_iterations_may_be_numpy_integers_or_whole_floats() -> None:
    crf = dcrf.DenseCRF2D(w=np.int64(6), h=4.0, nlabels=np.uint8(LABELS))
    crf.setUnaryEnergy(UNARY)
    assert crf.inference(2.0).shape == (LABELS, 24)


def test_sigmas_beyond_those_needed_are_not_used() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    results = []
    for sxy, srgb in (((2, 5), (9, 8, 7)), (np.array([2, 5, 1]), [9, 8, 7, 1])):
        crf = dcrf.DenseCRF2D(6, 4, LABELS)
        crf.setUnaryEnergy(UNARY)
        crf.addPairwiseBilateral(sxy, srgb, image, 3)
        results.append(crf.inference(3))
    np.testing.assert_array_equal(*results)


# The interface


def test_example_of_the_module_docstring_runs() -> None:
    assert dcrf.__doc__
    indented = dcrf.__doc__.split("nothing else:\n")[1].split("The model")[0]
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    names = {"image": image, "nlabels": 3, "softmax": np.full((3, 7, 9), 1 / 3)}
    exec(textwrap.dedent(indented), names)
    assert names["labels"].shape == (7, 9)


def test_every_public_name_of_pydensecrf_is_there(pydensecrf: ModuleType) -> None:
    foreign = {"Number", "eigen"}  # imported there, not defined
    names = {name for name in dir(pydensecrf) if not name.startswith("_")} - foreign
    assert names == set(dcrf.__all__)


@pytest.mark.parametrize("kind", ["KernelType", "NormalizationType"])
def test_enumeration_has_pydensecrfs_numbers(kind: str, pydensecrf: ModuleType) -> None:
    ours, theirs = getattr(dcrf, kind), getattr(pydensecrf, kind)
    assert {m.name: int(m) for m in ours} == {m.name: int(m) for m in theirs}
    assert all(getattr(dcrf, member.name) is member for member in ours)


@pytest.mark.parametrize("kind", ["DenseCRF", "DenseCRF2D"])
def test_every_method_of_pydensecrf_is_there(kind: str, pydensecrf: ModuleType) -> None:
    def public(cls: type) -> set[str]:
        return {name for name, _ in inspect.getmembers(cls) if not name.startswith("_")}

    assert public(getattr(pydensecrf, kind)) == public(getattr(dcrf, kind))


# Bad input. "pydensecrf": the same exception there; "here": it goes wrong in silence there.

IMAGE = np.zeros((3, 4, 3), np.uint8)
BAD: list[tuple[str, str, Callable[[Any, ModuleType], Any], type[Exception], str]] = [
    ("pydensecrf", "unary list", lambda c, m: c.setUnaryEnergy(UNARY.tolist()), TypeError, "list"),
    ("pydensecrf", "unary None", lambda c, m: c.setUnaryEnergy(None), TypeError, "u must.*None"),
    ("pydensecrf", "unary shape", lambda c, m: c.setUnaryEnergy(UNARY[:2]), ValueError, "Need"),
    (
        "pydensecrf",
        "unary 3-D",
        lambda c, m: c.setUnaryEnergy(UNARY[:, :12].reshape(3, 3, 4)),
        ValueError,
        r"u must have 2 dimensions.*\(3, 3, 4\)",
    ),
    (
        "pydensecrf",
        "unary complex",
        lambda c, m: c.setUnaryEnergy(UNARY[:, :12].astype(complex)),
        ValueError,
        "u must hold real numbers.*complex128",
    ),
    ("pydensecrf", "ConstUnary None", lambda c, m: m.ConstUnary(None), TypeError, "u must"),
    ("pydensecrf", "LogisticUnary", lambda c, m: m.LogisticUnary(UNARY, None), TypeError, "f must"),
    ("pydensecrf", "setUnary", lambda c, m: c.setUnary(UNARY), TypeError, "setUnaryEnergy|Unary"),
    ("pydensecrf", "compat list", lambda c, m: c.addPairwiseGaussian(3, [1, 2]), TypeError, "list"),
    ("pydensecrf", "compat None", lambda c, m: c.addPairwiseGaussian(3, None), TypeError, "None"),
    (
        "pydensecrf",
        "compat 3-D",
        lambda c, m: c.addPairwiseGaussian(3, np.ones((3, 3, 3), np.float32)),
        ValueError,
        "compat must have 1 or 2 dimensions",
    ),
    (
        "pydensecrf",
        "features shape",
        lambda c, m: c.addPairwiseEnergy(FEATURES[:, :7].copy(), 3),
        ValueError,
        r"Need \(\?, 12\), got \(2, 7\)",
    ),
    ("pydensecrf", "features None", lambda c, m: c.addPairwiseEnergy(None, 3), TypeError, "feat"),
    ("pydensecrf", "sxy string", lambda c, m: c.addPairwiseGaussian("a", 3), TypeError, "sxy"),
    ("pydensecrf", "sxy None", lambda c, m: c.addPairwiseGaussian(None, 3), TypeError, "sxy"),
    (
        "pydensecrf",
        "image float",
        lambda c, m: c.addPairwiseBilateral(3, 3, IMAGE / 255, 3),
        ValueError,
        "rgbim must be uint8.*float64",
    ),
    (
        "pydensecrf",
        "image transposed",
        lambda c, m: c.addPairwiseBilateral(3, 3, np.zeros((4, 3, 3), np.uint8), 3),
        ValueError,
        r"Need \(3, 4, 3\).*got \(4, 3, 3\).*transposed",
    ),
    (
        "pydensecrf",
        "image grey",
        lambda c, m: c.addPairwiseBilateral(3, 3, np.zeros((3, 4, 1), np.uint8), 3),
        ValueError,
        "only works for RGB.*create_pairwise_bilateral",
    ),
    (
        "pydensecrf",
        "no image",
        lambda c, m: c.addPairwiseBilateral(3, 3, None, 3),
        TypeError,
        "rgbim",
    ),
    ("pydensecrf", "step list", lambda c, m: c.stepInference([[1]], None, None), TypeError, "Q"),
    ("pydensecrf", "kl list", lambda c, m: c.klDivergence([[1.0]]), TypeError, "Q"),
    (
        "here",
        "unary NaN",
        lambda c, m: c.setUnaryEnergy(np.full((3, 12), np.nan)),
        ValueError,
        "NaN",
    ),
    (
        "here",
        "unary -inf",
        lambda c, m: c.setUnaryEnergy(np.full((3, 12), -np.inf)),
        ValueError,
        "-inf",
    ),
    (
        "here",
        "no label possible",
        lambda c, m: c.setUnaryEnergy(np.full((3, 12), np.inf)),
        ValueError,
        r"\+inf for all labels",
    ),
    ("here", "base unary", lambda c, m: m.Unary(), TypeError, "ConstUnary or a LogisticUnary"),
    ("here", "unary unfit", lambda c, m: c.setUnary(m.ConstUnary(UNARY)), ValueError, "Need"),
    ("here", "logistic", lambda c, m: m.LogisticUnary(UNARY, FEATURES), ValueError, "do not fit"),
    (
        "here",
        "compat vector length",
        lambda c, m: c.addPairwiseGaussian(3, np.ones(4, np.float32)),
        ValueError,
        r"compat .*\(3,\) or \(3, 3\), not \(4,\)",
    ),
    (
        "here",
        "compat not square",
        lambda c, m: c.addPairwiseGaussian(3, np.ones((3, 2), np.float32)),
        ValueError,
        r"not \(3, 2\)",
    ),
    ("here", "compat complex", lambda c, m: c.addPairwiseGaussian(3, 3j), TypeError, "complex"),
    ("here", "compat NaN", lambda c, m: c.addPairwiseGaussian(3, np.nan), ValueError, "compat"),
    (
        "here",
        "features Inf",
        lambda c, m: c.addPairwiseEnergy(np.full((1, 12), np.inf, np.float32), 3),
        ValueError,
        "features must be finite",
    ),
    ("here", "sigma 0", lambda c, m: c.addPairwiseGaussian(0, 3), ValueError, "sxy .*positive.*0"),
    ("here", "sigma < 0", lambda c, m: c.addPairwiseGaussian((2, -3), 3), ValueError, "positive"),
    ("here", "sigma NaN", lambda c, m: c.addPairwiseGaussian(np.nan, 3), ValueError, "positive"),
    ("here", "one of two", lambda c, m: c.addPairwiseGaussian((3,), 3), ValueError, "2 of them"),
    ("here", "kernel", lambda c, m: c.addPairwiseGaussian(3, 3, kernel=7), ValueError, "DIAG.*7"),
    (
        "here",
        "normalization",
        lambda c, m: c.addPairwiseGaussian(3, 3, normalization=4),
        ValueError,
        "NORMALIZE_SYMMETRIC.*not 4",
    ),
    ("here", "iterations", lambda c, m: c.inference(-1), ValueError, "niter .*at least 0.*-1"),
    ("here", "half iterations", lambda c, m: c.inference(2.5), ValueError, "niter .*2.5"),
    ("here", "kl shape", lambda c, m: c.klDivergence(UNARY), ValueError, r"Q \(Need \(3, 12\)"),
    ("pydensecrf", "text size", lambda c, m: m.DenseCRF("4", 2), TypeError, "nvar|integer"),
    ("pydensecrf", "no size", lambda c, m: m.DenseCRF(None, 2), TypeError, "nvar|integer"),
    ("here", "no width", lambda c, m: m.DenseCRF2D(0, 3, 2), ValueError, "w must be.*at least 1"),
    ("here", "no labels", lambda c, m: m.DenseCRF(4, 0), ValueError, "nlabels must be"),
]
SAME = [row for row in BAD if row[0] == "pydensecrf"]


@pytest.mark.parametrize("row", BAD, ids=lambda row: row[1])
def test_bad_input_raises_an_error_that_names_it(row: Any) -> None:
    _, _, call, error, message = row
    with pytest.raises(error, match=message):
        call(dcrf.DenseCRF2D(4, 3, LABELS), dcrf)


@pytest.mark.parametrize("row", SAME, ids=lambda row: row[1])
def test_bad_input_raises_pydensecrfs_type_of_error(row: Any, pydensecrf: ModuleType) -> None:
    _, _, call, error, _ = row
    with pytest.raises(error):
        call(pydensecrf.DenseCRF2D(4, 3, LABELS), pydensecrf)


def test_refused_term_is_not_added() -> None:
    crf = small_crf()
    with pytest.raises(ValueError, match="normalization"):
        crf.addPairwiseEnergy(FEATURES, 3, normalization=9)
    np.testing.assert_array_equal(crf.inference(2), small_crf().inference(2))


@pytest.mark.parametrize(("sigma_xy", "sigma_rgb"), [(80, 13), (49, 5)])
def test_benchmark_setup_and_inference(benchmark: Any, sigma_xy: int, sigma_rgb: int) -> None:
    rng = np.random.default_rng(0)
    image = noisy_image(rng, 188, 250)
    unary = rng.gamma(2.0, 1.0, (21, 188 * 250)).astype(np.float32)

    def marginals() -> Array:
        crf = dcrf.DenseCRF2D(250, 188, 21)
        crf.setUnaryEnergy(unary)
        crf.addPairwiseGaussian(3, 3)
        crf.addPairwiseBilateral(sigma_xy, sigma_rgb, image, 10)
        return crf.inference(10)

    assert benchmark(marginals).shape == unary.shape
