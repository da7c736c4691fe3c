"""crf.pydensecrf.utils equals pydensecrf.utils bit for bit, or is right by hand without it."""

import warnings
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from crf.pydensecrf import utils

LABELS = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
IMAGE = np.random.default_rng(0).integers(0, 256, (6, 7, 3)).astype(np.uint8)
VOLUME = np.random.default_rng(1).normal(0, 40, (4, 5, 6)).astype(np.float32)
SOFTMAX = np.random.default_rng(2).dirichlet(np.ones(4), (5, 6)).transpose(2, 0, 1)

LABELLED, SOFTENED = "unary_from_labels", "unary_from_softmax"
GAUSSIAN, BILATERAL = "create_pairwise_gaussian", "create_pairwise_bilateral"
CALLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "labels": ("unary_from_labels", (LABELS, 3, 0.7), {}),
    "labels, none unsure": ("unary_from_labels", (LABELS, 4, 0.9), {"zero_unsure": False}),
    "labels, 21": ("unary_from_labels", (LABELS.T, 21, 0.51), {"zero_unsure": True}),
    "labels, int32": ("unary_from_labels", (LABELS.astype(np.int32), 3, 0.25), {}),
    "labels, numpy probability": ("unary_from_labels", (LABELS, 3, np.float32(0.6)), {}),
    "compute_unary": ("compute_unary", (LABELS, 3), {}),
    "compute_unary, probability": ("compute_unary", (LABELS, 3), {"GT_PROB": 0.8}),
    "softmax": ("unary_from_softmax", (SOFTMAX,), {}),
    "softmax, float32": ("unary_from_softmax", (SOFTMAX.astype(np.float32),), {}),
    "softmax, scale": ("unary_from_softmax", (SOFTMAX, 0.7), {}),
    "softmax, scale 1, float32": (SOFTENED, (SOFTMAX.astype(np.float32),), {"scale": 1}),
    "softmax, clip": ("unary_from_softmax", (SOFTMAX,), {"clip": 0.2}),
    "softmax, no clip": ("unary_from_softmax", (SOFTMAX,), {"clip": None}),
    "softmax, flat": ("unary_from_softmax", (SOFTMAX.reshape(4, 30),), {}),
    "softmax_to_unary": ("softmax_to_unary", (SOFTMAX,), {}),
    "softmax_to_unary, probability": ("softmax_to_unary", (SOFTMAX, 0.5), {}),
    "gaussian": ("create_pairwise_gaussian", ((3, 5.5), (6, 7)), {}),
    "gaussian, 3-D": ("create_pairwise_gaussian", ([2, 3, 4], [4, 5, 6]), {}),
    "gaussian, 1-D": ("create_pairwise_gaussian", ((2,), (9,)), {}),
    "gaussian, numpy sigma": ("create_pairwise_gaussian", (np.array([3.3, 0.7]), (6, 7)), {}),
    "bilateral": ("create_pairwise_bilateral", ((80, 60), (13, 7, 5), IMAGE), {"chdim": 2}),
    "bilateral, one number": ("create_pairwise_bilateral", ((8, 6), 13, IMAGE), {"chdim": 2}),
    "bilateral, numpy number": (BILATERAL, ((8, 6), np.float64(1.3), IMAGE), {"chdim": 2}),
    "bilateral, channels first": (
        BILATERAL,
        ((8, 6), (1, 2, 3), IMAGE.transpose(2, 0, 1)),
        {"chdim": 0},
    ),
    "bilateral, grey": ("create_pairwise_bilateral", ((8, 6), (0.01,), IMAGE[..., 0]), {}),
    "bilateral, volume": ("create_pairwise_bilateral", ((2, 3, 4), (9,), VOLUME), {"chdim": -1}),
    "bilateral, few sigmas": ("create_pairwise_bilateral", ((8,), (9,), IMAGE), {"chdim": 2}),
}


@pytest.mark.parametrize("name", CALLS)
def test_result_equals_pydensecrf_bit_for_bit(name: str, pydensecrf_utils: ModuleType) -> None:
    function, args, kwargs = CALLS[name]
    expected = getattr(pydensecrf_utils, function)(*args, **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        result = getattr(utils, function)(*args, **kwargs)
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(result, expected)


def test_every_public_function_of_pydensecrf_is_there(pydensecrf_utils):
    theirs = vars(pydensecrf_utils).items()
    own = [n for n, f in theirs if getattr(f, "__module__", None) == pydensecrf_utils.__name__]
    assert {name for name in own if name[0] != "_"} == set(utils.__all__)


def test_unary_from_labels_is_the_negative_log_of_the_stated_probabilities() -> None:
    wrong, right, unsure = 0.2 / 2, 0.8, 1 / 3
    expected = [
        [unsure, right, wrong, wrong, wrong, wrong, right, unsure],
        [unsure, wrong, right, wrong, wrong, right, wrong, unsure],
        [unsure, wrong, wrong, right, right, wrong, wrong, unsure],
    ]
    unary = utils.unary_from_labels(LABELS, 3, gt_prob=0.8)
    np.testing.assert_allclose(np.exp(-unary), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.int16])
def test_labels_of_any_integer_type_give_the_same_unary(dtype: type) -> None:
    expected = utils.unary_from_labels(LABELS, 3, 0.7)
    np.testing.assert_array_equal(utils.unary_from_labels(LABELS.astype(dtype), 3, 0.7), expected)


def test_boolean_labels_are_classes_zero_and_one() -> None:
    mask = np.array([[True, False], [False, False]])
    unary = utils.unary_from_labels(mask, 2, 0.9, zero_unsure=False)
    np.testing.assert_allclose(np.exp(-unary[1]), [0.9, 0.1, 0.1, 0.1], rtol=1e-6)


def test_labels_are_not_changed() -> None:
    labels = LABELS.astype(np.int64)
    utils.unary_from_labels(labels, 3, 0.7)
    np.testing.assert_array_equal(labels, LABELS)


def test_unary_from_softmax_without_clipping_makes_zeros_impossible() -> None:
    with np.errstate(divide="ignore"):
        unary = utils.unary_from_softmax(np.array([[1.0, 0.5], [0.0, 0.5]]), clip=None)
    np.testing.assert_allclose(unary, [[0, np.log(2)], [np.inf, np.log(2)]], atol=1e-7)


def test_features_are_row_then_column_then_colour() -> None:
    features = utils.create_pairwise_bilateral((2, 4), (10, 20, 40), IMAGE, chdim=2)
    row, column = 3, 5
    expected = [row / 2, column / 4, *(IMAGE[row, column] / np.array([10, 20, 40]))]
    np.testing.assert_allclose(features[:, row * 7 + column], expected, rtol=1e-6)
    smooth = utils.create_pairwise_gaussian((2, 4), IMAGE.shape[:2])
    np.testing.assert_array_equal(smooth, features[:2])


def test_one_sigma_for_all_channels_may_be_any_kind_of_number() -> None:
    image = np.arange(24.0).reshape(2, 4, 3)
    expected = utils.create_pairwise_bilateral((3, 3), 5, image, chdim=2)
    for sigma in (np.float32(5), np.array(5.0)):
        found = utils.create_pairwise_bilateral((3, 3), sigma, image, chdim=2)
        assert np.array_equal(found, expected)


def test_image_is_not_changed() -> None:
    volume = VOLUME.copy()
    utils.create_pairwise_bilateral((2, 3, 4), (9,), volume)
    np.testing.assert_array_equal(volume, VOLUME)


@pytest.mark.parametrize(
    ("call", "instead"),
    [
        (lambda: utils.compute_unary(LABELS, 3), "unary_from_labels"),
        (lambda: utils.softmax_to_unary(SOFTMAX), "unary_from_softmax"),
    ],
)
def test_deprecated_function_names_its_successor(call: Any, instead: str) -> None:
    with pytest.warns(DeprecationWarning, match=instead):
        call()


bilateral = utils.create_pairwise_bilateral
BAD = {
    "gt_prob": (lambda: utils.unary_from_labels(LABELS, 3, 1.0), r"gt_prob .*\(0, 1\).*1\.0"),
    "gt_prob nan": (lambda: utils.unary_from_labels(LABELS, 3, float("nan")), "gt_prob"),
    "one label": (lambda: utils.unary_from_labels(LABELS, 1, 0.7), "n_labels .*at least 2"),
    "label too large": (lambda: utils.unary_from_labels(LABELS, 2, 0.7), r"0 \.\.\. 2.*0 to 3"),
    "label too large, no unsure": (
        lambda: utils.unary_from_labels(LABELS, 3, 0.7, zero_unsure=False),
        r"0 \.\.\. 2.*zero_unsure=False.*0 to 3",
    ),
    "negative label": (lambda: utils.unary_from_labels(LABELS - 1, 3, 0.7), "from -1 to 2"),
    "float labels": (lambda: utils.unary_from_labels(LABELS * 1.0, 3, 0.7), "integers.*float64"),
    "scale": (lambda: utils.unary_from_softmax(SOFTMAX, scale=1.5), r"scale .*\(0, 1\].*1\.5"),
    "single number": (lambda: utils.unary_from_softmax(0.5), "sm must have shape"),
    "sdims": (lambda: utils.create_pairwise_gaussian((3,), (6, 7)), "sdims .* 2 dim.*not 1"),
    "zero sigma": (lambda: utils.create_pairwise_gaussian((3, 0), (6, 7)), "sdims .*positive.*0"),
    "many sdims": (lambda: bilateral((1, 2, 3), 1, IMAGE, 2), "sdims has 3 entries for 2 dim"),
    "many schan": (lambda: bilateral((1, 2), (1, 2), IMAGE[..., 0]), "schan has 2 .* 1 channels"),
    "negative schan": (lambda: bilateral((1, 2), -3, IMAGE, 2), "schan .*positive.*-3"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_argument_raises_value_error_that_says_what_came(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()
