"""crf.pydensecrf.densecrf: the interface of pydensecrf, and bad input."""

import inspect
import textwrap
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from densecrf_problems import FEATURES, LABELS, UNARY, Array, noisy_image, small_crf, with_two_terms

import crf.pydensecrf.densecrf as dcrf

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


# Bad input: how a DenseCRF2D of 4 x 3 pixels, or the module, is called, and what that raises.

IMAGE = np.zeros((3, 4, 3), np.uint8)
U = UNARY[:, :12]
UNARIES, GAUSSIAN, FILTER = "setUnaryEnergy", "addPairwiseGaussian", "addPairwiseEnergy"
BILATERAL = "addPairwiseBilateral"
Row = tuple[str, tuple[Any, ...], type[Exception], str]
AS_PYDENSECRF: list[Row] = [  # which raises the same exception
    (UNARIES, (UNARY.tolist(),), TypeError, "list"),
    (UNARIES, (None,), TypeError, "u must.*None"),
    (UNARIES, (UNARY[:2],), ValueError, "Need"),
    (UNARIES, (U.reshape(3, 3, 4),), ValueError, r"u must have 2 dimensions.*\(3, 3, 4\)"),
    (UNARIES, (U.astype(complex),), ValueError, "u must hold real numbers.*complex128"),
    ("ConstUnary", (None,), TypeError, "u must"),
    ("LogisticUnary", (UNARY, None), TypeError, "f must"),
    ("setUnary", (UNARY,), TypeError, "setUnaryEnergy|Unary"),
    (GAUSSIAN, (3, [1, 2]), TypeError, "list"),
    (GAUSSIAN, (3, None), TypeError, "None"),
    (GAUSSIAN, (3, np.ones((3, 3, 3), np.float32)), ValueError, "compat must have 1 or 2 dimensi"),
    (FILTER, (FEATURES[:, :7].copy(), 3), ValueError, r"Need \(\?, 12\), got \(2, 7\)"),
    (FILTER, (None, 3), TypeError, "feat"),
    (GAUSSIAN, ("a", 3), TypeError, "sxy"),
    (GAUSSIAN, (None, 3), TypeError, "sxy"),
    (BILATERAL, (3, 3, IMAGE / 255, 3), ValueError, "rgbim must be uint8.*float64"),
    (
        BILATERAL,
        (3, 3, np.zeros((4, 3, 3), np.uint8), 3),
        ValueError,
        r"Need \(3, 4, 3\).*got \(4, 3, 3\).*transposed",
    ),
    (BILATERAL, (3, 3, IMAGE[..., :1], 3), ValueError, "only works for RGB.*create_pairwise_b"),
    (BILATERAL, (3, 3, None, 3), TypeError, "rgbim"),
    ("stepInference", ([[1]], None, None), TypeError, "Q"),
    ("klDivergence", ([[1.0]],), TypeError, "Q"),
    ("DenseCRF", ("4", 2), TypeError, "nvar|integer"),
    ("DenseCRF", (None, 2), TypeError, "nvar|integer"),
]
HERE_ALONE: list[Row] = [  # pydensecrf goes wrong in silence
    (UNARIES, (np.full((3, 12), np.nan),), ValueError, "NaN"),
    (UNARIES, (np.full((3, 12), -np.inf),), ValueError, "-inf"),
    (UNARIES, (np.full((3, 12), np.inf),), ValueError, r"\+inf for all labels"),
    ("Unary", (), TypeError, "ConstUnary or a LogisticUnary"),
    ("setUnary", (dcrf.ConstUnary(UNARY),), ValueError, "Need"),
    ("LogisticUnary", (UNARY, FEATURES), ValueError, "do not fit"),
    (GAUSSIAN, (3, np.ones(4, np.float32)), ValueError, r"\(3,\) or \(3, 3\), not \(4,\)"),
    (GAUSSIAN, (3, np.ones((3, 2), np.float32)), ValueError, r"not \(3, 2\)"),
    (GAUSSIAN, (3, 3j), TypeError, "complex"),
    (GAUSSIAN, (3, np.nan), ValueError, "compat"),
    (FILTER, (np.full((1, 12), np.inf, np.float32), 3), ValueError, "features must be finite"),
    (GAUSSIAN, (0, 3), ValueError, "sxy .*positive.*0"),
    (GAUSSIAN, ((2, -3), 3), ValueError, "positive"),
    (GAUSSIAN, (np.nan, 3), ValueError, "positive"),
    (GAUSSIAN, ((3,), 3), ValueError, "2 of them"),
    (GAUSSIAN, (UNARY, 3), TypeError, "sxy must be"),
    (GAUSSIAN, (3, 3, 7), ValueError, "DIAG.*7"),
    (GAUSSIAN, (3, 3, UNARY), ValueError, "kernel must be one of"),
    (GAUSSIAN, (3, 3, 1, 4), ValueError, "NORMALIZE_SYMMETRIC.*not 4"),
    ("inference", (-1,), ValueError, "niter .*at least 0.*-1"),
    ("inference", (2.5,), ValueError, "niter .*2.5"),
    ("inference", (UNARY,), TypeError, "niter must be"),
    ("klDivergence", (UNARY,), ValueError, r"Q \(Need \(3, 12\)"),
    ("DenseCRF2D", (0, 3, 2), ValueError, "w must be.*at least 1"),
    ("DenseCRF", (4, 0), ValueError, "nlabels must be"),
    ("DenseCRF", (UNARY, 2), TypeError, "nvar must be"),
]


def call(module: Any, name: str, arguments: tuple[Any, ...]) -> None:
    crf = module.DenseCRF2D(4, 3, LABELS)
    getattr(crf if hasattr(crf, name) else module, name)(*arguments)


@pytest.mark.parametrize(("name", "arguments", "error", "message"), AS_PYDENSECRF + HERE_ALONE)
def test_bad_input_raises_an_error_that_names_it(name, arguments, error, message):
    with pytest.raises(error, match=message):
        call(dcrf, name, arguments)


@pytest.mark.parametrize(("name", "arguments", "error", "_message"), AS_PYDENSECRF)
def test_bad_input_raises_pydensecrfs_type_of_error(name, arguments, error, _message, pydensecrf):
    with pytest.raises(error):
        call(pydensecrf, name, arguments)


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
        return with_two_terms(dcrf, unary, image, (sigma_xy, sigma_rgb), 10).inference(10)

    assert benchmark(marginals).shape == unary.shape
