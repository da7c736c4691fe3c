"""crf.pydensecrf.densecrf: the formula in float64, and what each call does."""

import numpy as np
import pytest
import torch
from densecrf_problems import (
    FEATURES,
    LABELS,
    MATRIX,
    POINTS,
    UNARY,
    Array,
    kl_per_step,
    noisy_image,
    on_a_picture,
    small_crf,
    with_two_terms,
)

import crf.pydensecrf.densecrf as dcrf
from kernels.gaussian import gaussian_filter

# The formula, in float64 and with the filter as a matrix

VECTOR = np.array([-1, -3, 0.5], np.float32)
SIGNED = {  # what each form of compat does to the filtered marginals
    "number": (1.5, -1.5 * np.eye(LABELS)),
    "vector": (VECTOR, np.diag(VECTOR)),
    "matrix": (MATRIX, (MATRIX + MATRIX.T) / 2),
}


def normalised_filter(normalization: int) -> Array:
    """F with its normalisation as a matrix `[to, from]`."""
    features = torch.from_numpy(FEATURES.T.copy())[None].double()
    identity = torch.eye(POINTS, dtype=torch.float64)[None]
    how = {"method": "permutohedral", "impl": "reference"}
    filter = gaussian_filter(identity, features, **how)[0].numpy()
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
def test_update_and_divergence_follow_the_formula(form, normalization):
    compat, penalty = SIGNED[form]
    matrix = normalised_filter(normalization)
    crf = small_crf(compat=compat, normalization=normalization)

    expected = softmax(-UNARY.astype(np.float64))
    for _ in range(4):
        expected = softmax(-UNARY - penalty @ (expected @ matrix.T))
    np.testing.assert_allclose(crf.inference(4), expected, atol=1e-5)

    pairwise = penalty @ (expected @ matrix.T)
    kl = (expected * (np.log(expected) + UNARY + pairwise)).sum()
    assert crf.klDivergence(expected) == pytest.approx(kl, rel=1e-5)


# What each call does


def test_zero_iterations_give_the_softmax_of_the_negative_unary():
    np.testing.assert_allclose(small_crf().inference(0), softmax(-UNARY), atol=1e-6)


def test_steps_by_hand_give_what_inference_gives():
    q, _ = kl_per_step(small_crf(), 7)
    np.testing.assert_allclose(q, small_crf().inference(7), atol=1e-5)


def test_step_updates_any_float_array_in_place():
    crf = small_crf()
    q, tmp1, tmp2 = crf.startInference()
    double = np.asfortranarray(q, dtype=np.float64)
    crf.stepInference(double, tmp1, tmp2)
    crf.stepInference(q, tmp1, tmp2)
    np.testing.assert_array_equal(double.astype(np.float32), q)


def test_inference_returns_a_fresh_float32_array():
    crf = small_crf()
    first = crf.inference(3)
    copy = first.copy()
    first[:] = -1
    assert first.dtype == np.float32
    assert first.shape == (LABELS, POINTS)
    np.testing.assert_array_equal(crf.inference(3), copy)


def test_without_unary_inference_starts_uniform_and_steps_start_at_zero():
    crf = dcrf.DenseCRF(POINTS, LABELS)
    np.testing.assert_allclose(crf.inference(0), 1 / LABELS, rtol=1e-6)
    q, tmp1, tmp2 = crf.startInference()
    np.testing.assert_array_equal(q, 0)
    crf.stepInference(q, tmp1, tmp2)
    np.testing.assert_allclose(q, 1 / LABELS, rtol=1e-6)


def test_without_pairwise_terms_inference_is_the_softmax():
    crf = dcrf.DenseCRF(POINTS, LABELS)
    crf.setUnaryEnergy(UNARY)
    np.testing.assert_allclose(crf.inference(5), softmax(-UNARY), atol=1e-6)


def test_later_unary_replaces_the_earlier_one():
    crf, other = small_crf(), UNARY[::-1].copy()
    crf.setUnaryEnergy(other)
    np.testing.assert_array_equal(crf.inference(5), small_crf(other).inference(5))


def test_changing_the_inputs_afterwards_changes_nothing():
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


def test_one_unary_serves_several_crfs():
    unary = dcrf.ConstUnary(UNARY)
    for _ in range(2):
        crf = dcrf.DenseCRF(POINTS, LABELS)
        crf.setUnary(unary)
        np.testing.assert_allclose(crf.inference(0), softmax(-UNARY), atol=1e-6)


def test_logistic_unary_is_weights_times_features():
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 1, (LABELS, 5)).astype(np.float32)
    inputs = rng.normal(0, 1, (5, POINTS)).astype(np.float32)
    by_object, by_method = dcrf.DenseCRF(POINTS, LABELS), dcrf.DenseCRF(POINTS, LABELS)
    by_object.setUnary(dcrf.LogisticUnary(weights, inputs))
    by_method.setUnaryEnergy(weights, inputs)
    expected = softmax(-(weights.astype(np.float64) @ inputs))
    np.testing.assert_allclose(by_object.inference(0), expected, atol=1e-6)
    np.testing.assert_array_equal(by_method.inference(0), by_object.inference(0))


def test_impossible_label_stays_at_zero():
    unary = UNARY.copy()
    unary[1] = np.inf
    q = small_crf(unary, compat=2).inference(5)
    np.testing.assert_allclose(q[1], 0, atol=1e-30)
    np.testing.assert_allclose(q.sum(axis=0), 1, atol=1e-6)


def test_divergence_leaves_out_impossible_labels():
    unary = UNARY.copy()
    unary[1] = np.inf
    forbidding = small_crf(unary, compat=2)
    nearly = small_crf(np.minimum(unary, 200), compat=2)  # exp(-200) is 0 in float32
    q = forbidding.inference(5)
    assert forbidding.klDivergence(q) == pytest.approx(nearly.klDivergence(q), rel=1e-5)
    q[1] = 0
    assert forbidding.klDivergence(q) == pytest.approx(nearly.klDivergence(q), rel=1e-5)
    assert forbidding.klDivergence(np.full_like(q, 1 / LABELS)) == np.inf


def test_kernel_type_changes_nothing():
    first, *others = (small_crf(kernel=kernel).inference(3) for kernel in dcrf.KernelType)
    assert [np.array_equal(first, other) for other in others] == [True, True]


def test_sigma_of_infinity_ignores_a_dimension():
    image = np.zeros((3, 4, 3), np.uint8)
    results = (on_a_picture((first, 2), 10, image) for first in (np.inf, 1e30))
    np.testing.assert_array_equal(*results)


def test_small_sigma_separates_all_pixels():
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


def test_two_runs_agree_bit_for_bit(set_threads):
    set_threads(2)
    rng = np.random.default_rng(0)
    image = noisy_image(rng, 70, 130)
    unary = rng.gamma(2.0, 1.0, (5, 70 * 130)).astype(np.float32)
    first, second = (with_two_terms(dcrf, unary, image, (30, 8)).inference(5) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_torchs_defaults_for_new_tensors_change_nothing(other_default):
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    expected = on_a_picture(3, 20, image)
    other_default()
    assert np.array_equal(on_a_picture(3, 20, image), expected)


def test_subclass_may_extend_the_constructor():
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
def test_other_arrays_of_the_same_numbers_give_the_same_result(convert):
    crf = small_crf(*(convert(array.copy()) for array in (UNARY, FEATURES, MATRIX)))
    np.testing.assert_array_equal(crf.inference(3), small_crf().inference(3))


def test_image_may_have_any_strides_or_be_a_tensor():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    expected = on_a_picture(5, 10, image)
    for picture in (image[:, ::-1].copy()[:, ::-1], torch.from_numpy(image)):
        np.testing.assert_array_equal(on_a_picture(5, 10, picture), expected)


def test_read_only_arrays_pass_without_a_warning(recwarn):
    given = [array.copy() for array in (UNARY, FEATURES[:1], MATRIX)]
    for array in given:
        array.flags.writeable = False
    crf = small_crf(*given)
    q = crf.inference(2)
    q.flags.writeable = False
    crf.klDivergence(q)
    assert not recwarn.list


def test_sizes_and_iterations_may_be_numpy_integers_or_whole_floats():
    crf = dcrf.DenseCRF2D(w=np.int64(6), h=4.0, nlabels=np.uint8(LABELS))
    crf.setUnaryEnergy(UNARY)
    assert crf.inference(2.0).shape == (LABELS, 24)


def test_sigmas_beyond_those_needed_are_not_used():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    sigmas = (((2, 5), (9, 8, 7)), (np.array([2, 5, 1]), [9, 8, 7, 1]))
    np.testing.assert_array_equal(*(on_a_picture(*pair, image) for pair in sigmas))


def test_one_label_is_taken_in_silence(recwarn):
    crf = dcrf.DenseCRF2D(5, 4, 1)
    crf.setUnaryEnergy(np.zeros((1, 20), np.float32))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=9, srgb=9, rgbim=np.zeros((4, 5, 3), np.uint8), compat=3)
    np.testing.assert_array_equal(crf.inference(2), np.ones((1, 20), np.float32))
    assert not recwarn.list
