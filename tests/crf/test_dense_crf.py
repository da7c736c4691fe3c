"""DenseCRF against mean field written out over all pairs, and against pydensecrf."""

import itertools
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense_crf_problems import NORMALIZATIONS, problem, without_terms
from densecrf_problems import assert_meets_bar, photograph
from torch import Tensor

import crf

# The reference: every pair of pixels, float64, one image


def kernel_matrix(features: list[tuple[float, ...]]) -> np.ndarray[Any, Any]:
    points = np.array(features, dtype=np.float64)
    return np.exp(-0.5 * ((points[:, None] - points[None]) ** 2).sum(-1))


def kernel_matrices(
    model: crf.DenseCRF, image: Tensor, features: dict[str, Tensor]
) -> list[tuple[float, np.ndarray[Any, Any]]]:
    """(weight, kernel `[N, N]`, normalised) of each term of a model with scalar sigmas."""
    pixels = list(itertools.product(range(image.shape[1]), range(image.shape[2])))
    terms = []
    if model.gaussian:
        s: Any = model.gaussian.sigma_xy
        terms.append((model.gaussian.weight, kernel_matrix([(x / s, y / s) for y, x in pixels])))
    if model.bilateral:
        s, c = model.bilateral.sigma_xy, model.bilateral.sigma_rgb  # type: ignore[assignment]
        colour = image.double() / c  # type: ignore[operator]
        points = [(x / s, y / s, *colour[:, y, x].tolist()) for y, x in pixels]  # type: ignore
        terms.append((model.bilateral.weight, kernel_matrix(points)))
    terms += [(term.weight, kernel_matrix(features[term.name].tolist())) for term in model.pairwise]
    normalised = []
    for weight, kernel in terms:
        mass = kernel.sum(1)
        root, one, how = mass**-0.5, 1 + 0 * mass, model.normalization
        before = {"symmetric": root, "before": 1 / mass}.get(how, one)
        after = {"symmetric": root, "after": 1 / mass}.get(how, one)
        normalised.append((weight, after[:, None] * kernel * before))
    return normalised


def mean_field(
    model: crf.DenseCRF, logits: Tensor, image: Tensor, features: dict[str, Tensor]
) -> np.ndarray[Any, Any]:
    """Marginals `[C, H, W]` by the update of Krähenbühl and Koltun, label by label."""
    classes = model.num_classes
    mu = model.compatibility
    mu = 1 - np.eye(classes) if mu is None else mu.double().numpy()
    scores = logits.double().numpy().reshape(classes, -1)
    unary = -scores + np.log(np.exp(scores).sum(0))
    terms = kernel_matrices(model, image, features)
    marginals = np.exp(-unary)
    for _ in range(model.iterations):
        energy = unary.copy()
        for weight, kernel in terms:
            filtered = marginals @ kernel.T
            for label, other in itertools.product(range(classes), repeat=2):
                energy[label] += weight * mu[label, other] * filtered[other]
        marginals = np.exp(-energy + energy.min(0))
        marginals /= marginals.sum(0)
    return marginals.reshape(logits.shape)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("compatibility", ["potts", "matrix"])
def test_exact_equals_mean_field_over_all_pairs(normalization, compatibility):
    logits, images = problem(dtype=torch.float64)
    features = {"depth": torch.rand(2, 42, 2, dtype=torch.float64)}
    terms = {"gaussian": crf.Gaussian(0.7, 2.0), "pairwise": [crf.Pairwise("depth", 0.4)]}
    terms |= {"bilateral": crf.Bilateral(1.3, 5.0, 20.0), "normalization": normalization}
    penalties = torch.rand(4, 4).double() if compatibility == "matrix" else "potts"
    model = crf.DenseCRF(4, **terms, iterations=3, method="exact", compatibility=penalties)
    marginals = model(logits, images, features)
    assert marginals.dtype == torch.float64
    for b in range(2):
        expected = mean_field(model, logits[b], images[b], {"depth": features["depth"][b]})
        np.testing.assert_allclose(marginals[b].numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (8, 1), (5, 6)])
def test_row_and_column_passes_equal_all_pairs(height, width):
    logits, images = problem(2, 3, height, width, torch.float64)
    term = crf.Gaussian(2.0, (1.5, 2.5))
    by_passes = without_terms(3, gaussian=term, method="exact")(logits, images)
    by_pairs = without_terms(3, pairwise=[crf.Pairwise("xy", 2.0)], method="exact")(
        logits, images, {"xy": term.features(images.double()).expand(2, -1, -1)}
    )
    torch.testing.assert_close(by_passes, by_pairs)


def test_a_part_with_its_origin_is_the_whole_away_from_edges():
    """On a lattice; without an origin its vertices lie elsewhere, and it approximates otherwise."""
    logits, images = problem(1, 3, 70, 90, torch.float64)
    terms = {"gaussian": crf.Gaussian(1.0, 1.0), "bilateral": crf.Bilateral(1.0, 2.0, 40.0)}
    model = crf.DenseCRF(3, **terms, iterations=2, method="permutohedral")
    y, x = slice(3, 70), slice(7, 90)
    inner = slice(32, None)
    whole = model(logits, images)[..., y, x][..., inner, inner]
    part = model(logits[..., y, x], images[..., y, x], origin=(3, 7))[..., inner, inner]
    torch.testing.assert_close(part, whole)
    elsewhere = model(logits[..., y, x], images[..., y, x])[..., inner, inner]
    assert float((elsewhere - whole).abs().max()) > 1e-3
    (listed,) = model([logits[0, :, y, x]], [images[0, :, y, x]], origin=(3, 7))
    torch.testing.assert_close(listed[..., inner, inner], whole[0])


def test_over_all_pairs_an_origin_changes_nothing():
    logits, images = problem(dtype=torch.float64)
    model = crf.DenseCRF(4, iterations=2, method="exact")
    torch.testing.assert_close(model(logits, images, origin=(300, 20)), model(logits, images))


def test_potts_and_its_matrix_give_the_same_marginals():
    logits, images = problem()
    for method in ("permutohedral", "exact"):
        potts = crf.DenseCRF(4, method=method)(logits, images)
        matrix = crf.DenseCRF(4, method=method, compatibility=1 - torch.eye(4))(logits, images)
        torch.testing.assert_close(matrix, potts, rtol=1e-4, atol=1e-5)


def test_both_methods_clean_noisy_labels_of_shaded_regions_alike():
    logits, images = problem(1, 4, 30, 40)
    truth = images[:, 0].long() // 64
    logits = logits + 1.5 * F.one_hot(truth, 4).permute(0, 3, 1, 2)
    bilateral = crf.Bilateral(4.0, 49.0, 20.0)
    by_lattice, by_pairs = (
        crf.DenseCRF(4, bilateral=bilateral, method=method)(logits, images).argmax(1)
        for method in ("permutohedral", "exact")
    )
    assert (by_lattice == by_pairs).float().mean() > 0.98
    assert (logits.argmax(1) == truth).float().mean() < 0.65
    assert (by_pairs == truth).float().mean() > 0.88


# pydensecrf


MATRIX = [[0, 1, 3], [1, 0, 2], [3, 2, 0.5]]
ANISOTROPIC = crf.Gaussian(2.0, (1.0, 4.0)), crf.Bilateral(3.0, (30.0, 15.0), (3.0, 9.0, 20.0))
WEAK = {"gaussian": crf.Gaussian(0.05, 3.0), "bilateral": crf.Bilateral(0.02, 30.0, 10.0)}
CASES: dict[str, dict[str, Any]] = {
    "defaults": {"size": (24, 32)},
    "wide": {"size": (30, 21), "classes": 3, "bilateral": crf.Bilateral(10.0, 80.0, 13.0)},
    "anisotropic": {"size": (17, 33), "gaussian": ANISOTROPIC[0], "bilateral": ANISOTROPIC[1]},
    "smooth": {"size": (19, 26), "bilateral": crf.Bilateral(5.0, 160.0, 20.0), "classes": 21},
    "sharp": {"size": (25, 25), "bilateral": crf.Bilateral(4.0, 1.0, 3.0)},
    "row": {"size": (1, 30)},
    "column": {"size": (45, 1)},
    "pixel": {"size": (1, 1), "classes": 2},
    "one class": {"size": (5, 6), "classes": 1},
    "only gaussian": {"size": (20, 20), "bilateral": None},
    "before": {"size": (20, 31), "normalization": "before"},
    "after": {"size": (20, 31), "normalization": "after"},
    "none": {"size": (12, 15), "normalization": "none", **WEAK},
    "matrix": {"size": (18, 27), "classes": 3, "compatibility": MATRIX},
}


def reference(
    pydensecrf: ModuleType, model: crf.DenseCRF, logits: Tensor, image: Tensor
) -> tuple[np.ndarray[Any, Any], list[float]]:
    """pydensecrf's marginals `[C, H*W]` and its divergence, at the start and after each step."""
    classes, height, width = logits.shape
    theirs = pydensecrf.DenseCRF2D(width, height, classes)
    theirs.setUnaryEnergy((-logits.log_softmax(0)).reshape(classes, -1).numpy())
    mode = {"symmetric": 3, "after": 2, "before": 1, "none": 0}[model.normalization]

    def compat(weight: float) -> Any:
        mu = model.compatibility
        return weight if mu is None else weight * mu.float().numpy()

    if model.gaussian:
        s, weight = model.gaussian.sigma_xy, model.gaussian.weight
        theirs.addPairwiseGaussian(s, compat(weight), normalization=mode)
    if model.bilateral:
        rgb = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        s, c = model.bilateral.sigma_xy, model.bilateral.sigma_rgb
        theirs.addPairwiseBilateral(s, c, rgb, compat(model.bilateral.weight), normalization=mode)
    q, tmp1, tmp2 = theirs.startInference()
    divergence = [theirs.klDivergence(q)]
    for _ in range(model.iterations):
        theirs.stepInference(q, tmp1, tmp2)
        divergence.append(theirs.klDivergence(q))
    return np.array(q), divergence


@pytest.mark.parametrize("case", CASES)
def test_the_lattice_meets_the_bar_of_pydensecrf_and_its_divergence(case, pydensecrf):
    options = dict(CASES[case])
    height, width = options.pop("size")
    classes = options.pop("classes", 5)
    logits, images = problem(1, classes, height, width)
    model = crf.DenseCRF(classes, **options)
    expected, divergence = reference(pydensecrf, model, logits[0], images[0])
    assert_meets_bar(model(logits, images)[0].flatten(1), expected)
    marginals, kl = model(logits, images, return_kl=True)
    assert_meets_bar(marginals[0].flatten(1), expected)
    np.testing.assert_allclose(kl[:, 0].numpy(), divergence, rtol=1e-4, atol=1e-5)


def test_a_photograph_meets_the_bar_of_pydensecrf(pydensecrf):
    rgb = photograph(1)[0][60:180, 60:220]
    image = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)
    logits = F.avg_pool2d(8 * torch.randn(1, 8, *image.shape[1:]), 5, 1, 2)
    model = crf.DenseCRF(8)
    expected, _ = reference(pydensecrf, model, logits[0], image)
    assert_meets_bar(model(logits, image[None])[0].flatten(1), expected)


# The divergence


def test_divergence_of_exact_is_the_sum_over_all_pairs():
    logits, images = problem(dtype=torch.float64)
    model = crf.DenseCRF(4, iterations=4, method="exact")
    marginals, kl = model(logits, images, return_kl=True)
    assert kl.shape == (5, 2)
    assert torch.equal(marginals, model(logits, images))
    unary = -logits.log_softmax(1)
    for b, step in itertools.product(range(2), (0, 2, 4)):
        shorter = crf.DenseCRF(4, iterations=step, method="exact")
        q = shorter(logits, images)[b].flatten(1).numpy()
        terms = kernel_matrices(model, images[b], {})
        pairwise = sum(-weight * np.sum(q * (q @ kernel.T)) for weight, kernel in terms)
        expected = np.sum(q * np.log(q)) + np.sum(q * unary[b].flatten(1).numpy()) + pairwise
        assert kl[step, b].item() == pytest.approx(expected, rel=1e-9)
