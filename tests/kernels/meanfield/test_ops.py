"""The operator of the mean field, and its gradients, against composed differentiable filters."""

from typing import Any, cast

import pytest
import torch
from opchecks import OPCHECKS
from torch import Tensor

import crf
import kernels
from kernels.meanfield import ops
from kernels.meanfield.build import FilterSettings
from kernels.meanfield.term import normalizers

METHODS = ("permutohedral", "exact", "separable", "auto")

any_method = pytest.mark.parametrize("method", METHODS)


def problem(matrix: bool = True) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Unary energies, features and compatibilities of two images of 5 x 4 pixels and 3 labels."""
    images = 255 * torch.rand(2, 3, 5, 4)
    terms = [crf.Gaussian(3.0, 3.0), crf.Bilateral(4.0, 9.0, 90.0)]
    features = [term.features(images) for term in terms]
    compatibilities = [torch.full((3,), -3.0), 4 * torch.rand(3, 3) if matrix else torch.rand(3)]
    return -torch.randn(2, 3, 20).log_softmax(1), features, compatibilities


def settings(method: str, **changed: Any) -> FilterSettings:
    known = {
        "method": method, "normalization": "after", "iterations": 2, "precision": "ieee",
        "eps": 0.0, "tolerance": 1e-3, "width": 4, "has_gaussian": True, "spatial_dims": 2,
        "marginals": True,
    }  # fmt: skip
    return FilterSettings(**known | changed)


def numbers(of: FilterSettings) -> tuple[Any, ...]:
    return tuple(vars(of).values())


@pytest.mark.parametrize(("method", "marginals"), zip(METHODS, [True, False] * 2, strict=True))
def test_opchecks_of_the_operators_pass(method: str, marginals: bool) -> None:
    unary, features, compatibilities = problem()
    rest = features, compatibilities, *numbers(settings(method, marginals=marginals))
    grad = torch.randn_like(unary)
    torch.library.opcheck(
        ops.mean_field_backward_operator, (grad, unary, *rest), test_utils=OPCHECKS
    )
    for tensor in (unary, *compatibilities):
        tensor.requires_grad_()
    torch.library.opcheck(ops.mean_field_operator, (unary, *rest), test_utils=OPCHECKS)


@any_method
@pytest.mark.parametrize("iterations", [0, 2])
def test_the_fake_of_the_operator_has_its_strides_for_any_layout(
    method: str, iterations: int
) -> None:
    unary = torch.randn(2, 20, 3).transpose(1, 2)  # as of logits in channels_last
    _, features, compatibilities = problem()
    for marginals in (False, True):
        how = numbers(settings(method, iterations=iterations, marginals=marginals))
        arguments = unary, features, compatibilities, *how
        torch.library.opcheck(ops.mean_field_operator, arguments, test_utils="test_faketensor")


@any_method
@pytest.mark.parametrize("matrix", [False, True])
@pytest.mark.parametrize("normalization", ["symmetric", "before"])
@pytest.mark.parametrize("marginals", [False, True])
def test_gradients_of_the_operator_are_those_of_composed_filters(
    method: str, matrix: bool, normalization: str, marginals: bool
) -> None:
    unary, features, compatibilities = (
        (t.double() if isinstance(t, Tensor) else [x.double() for x in t]) for t in problem(matrix)
    )
    how = settings(method, normalization=normalization, marginals=marginals)
    wanted = [unary.requires_grad_(), *(p.requires_grad_() for p in compatibilities)]
    composed = ops.infer(unary, features, compatibilities, how)
    operator = ops.mean_field_operator(unary, features, compatibilities, *numbers(how))
    torch.testing.assert_close(operator, composed)
    grad = torch.randn_like(composed)
    expected = torch.autograd.grad(composed, wanted, grad)
    found = torch.autograd.grad(operator, wanted, grad)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("normalization", ["symmetric", "before", "after", "none"])
def test_exact_that_leaves_out_a_ten_millionth_is_within_a_hundred_thousandth(
    normalization: str,
) -> None:
    """Of mean field over all pairs in float64, after each update."""
    generator = torch.Generator().manual_seed(1)
    images = 255 * torch.rand(1, 3, 18, 20, generator=generator)
    unary = -torch.randn(1, 3, 360, generator=generator).log_softmax(1)
    term = crf.Bilateral(1.0, 3.0, 40.0)
    for iterations in (1, 2, 3):
        how = settings(
            "exact", iterations=iterations, eps=1e-7, width=20, has_gaussian=False,
            normalization=normalization,
        )  # fmt: skip
        compatibility = torch.full((3,), -0.5)
        found = ops.infer(unary, [term.features(images)], [compatibility], how)
        features = term.features(images.double())[0]
        kernel = (features[:, None] - features).square().sum(2).mul(-0.5).exp()
        mass = kernel.sum(1, keepdim=True)
        before, after = normalizers(mass, cast(Any, normalization))
        marginals = (-unary[0].T.double()).softmax(1)
        for _ in range(iterations):
            filtered = kernel @ (marginals if before is None else marginals * before)
            filtered = filtered if after is None else filtered * after
            marginals = (-unary[0].T.double() + 0.5 * filtered).softmax(1)
        assert (found[0].T.double() - marginals).abs().max() < 1e-5


def test_auto_decides_for_each_image_and_runs_the_lattice_as_the_lattice_runs() -> None:
    """One image of few colours, and one of noise that takes too many landmarks."""
    generator = torch.Generator().manual_seed(2)
    images = torch.full((2, 3, 40, 40), 90.0)
    images[1] = 255 * torch.rand(3, 40, 40, generator=generator)
    terms = [crf.Gaussian(3.0, 3.0), crf.Bilateral(4.0, 9.0, 2.0)]
    features = [term.features(images) for term in terms]
    unary = -torch.randn(2, 3, 1600, generator=generator).log_softmax(1)
    compatibilities = [torch.full((3,), -3.0), torch.full((3,), -4.0)]

    def run(method: str, b: int | slice, **changed: Any) -> Tensor:
        b = slice(b, b + 1) if isinstance(b, int) else b
        points = [features[0], features[1][b]]
        how = settings(method, tolerance=0.1, width=40, **changed)
        return ops.infer(unary[b], points, compatibilities, how)

    found = run("auto", slice(0, 2))
    assert torch.equal(found[:1], run("separable", 0))
    torch.testing.assert_close(found[1:], run("permutohedral", 1))
    with pytest.raises(kernels.NotSeparable):
        run("separable", 1)

    unary.requires_grad_()
    both = run("auto", slice(0, 2))
    torch.testing.assert_close(both, found)
    grad = torch.randn_like(both)
    (expected,) = torch.autograd.grad(both, unary, grad)
    how = numbers(settings("auto", tolerance=0.1, width=40))
    operator = ops.mean_field_operator(unary, features, compatibilities, *how)
    (gradient,) = torch.autograd.grad(operator, unary, grad)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    marginals, divergence = ops.infer_with_divergence(
        unary.detach(), features, compatibilities, settings("auto", tolerance=0.1, width=40)
    )
    torch.testing.assert_close(marginals, found)
    assert divergence.shape == (3, 2)
