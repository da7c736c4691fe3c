"""crf.pydensecrf.densecrf: the interface of pydensecrf, and bad input."""

import inspect
import textwrap
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from densecrf_problems import FEATURES, LABELS, UNARY, Array, noisy_image, small_crf

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
    ("here", "array of sizes", lambda c, m: m.DenseCRF(UNARY, 2), TypeError, "nvar must be"),
    ("here", "array of steps", lambda c, m: c.inference(UNARY), TypeError, "niter must be"),
    ("here", "2-D sigmas", lambda c, m: c.addPairwiseGaussian(UNARY, 3), TypeError, "sxy must be"),
    (
        "here",
        "array of kernels",
        lambda c, m: c.addPairwiseGaussian(3, 3, kernel=UNARY),
        ValueError,
        "kernel must be one of",
    ),
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
