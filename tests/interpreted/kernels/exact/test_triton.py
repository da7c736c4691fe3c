"""The exact filter's Triton kernels in the interpreter, against float64 and the eager twin."""

from __future__ import annotations

import pytest
import torch
from exact_problems import Problem, problem
from opchecks import OPCHECKS

import kernels
from kernels.exact import ops, tiles
from kernels.exact.ops import over_tiles

EPS = torch.finfo(torch.float32).eps
SHAPES = {  # points, dimensions, channels
    "one point": (1, 1, 1),
    "less than a tile": (7, 2, 3),
    "a tile": (16, 5, 21),
    "one point more": (17, 6, 2),
    "channels of two blocks": (33, 3, 40),
    "ragged": (50, 4, 5),
    "many dimensions": (20, 11, 1),
}
PRECISIONS = ("ieee", "tf32")  # the interpreter computes both as float32
any_shape = pytest.mark.parametrize("shape", SHAPES)
any_eps = pytest.mark.parametrize("eps", [0.0, 1e-7, 1e-2])


def filtered_by(p: Problem, impl: str, eps: float, precision="ieee", grad=None):
    """The filtered values and, for a `grad`, the gradients to values and features."""
    leaves = [tensor.detach()[None].requires_grad_() for tensor in (p.values, p.features)]
    output = kernels.gaussian_filter(
        *leaves, method="exact", impl=impl, eps=eps, precision=precision
    )
    if grad is None:
        return output[0].detach()
    return output[0].detach(), *(g[0] for g in torch.autograd.grad(output[0], leaves, grad))


def assert_within_budget(ours, eager, truth):
    """Off by no more than twice what eager is off in float32, and a rounding of the largest."""
    budget = 2 * (eager - truth).abs().max() + 4 * EPS * truth.abs().max()
    assert (ours - truth).abs().max() <= budget


@any_shape
@pytest.mark.parametrize("eps", [0.0, 1e-7])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_filter_is_the_sum_over_all_pairs(shape, eps, precision):
    p = problem(*SHAPES[shape])
    assert p.error(filtered_by(p, "triton", eps, precision)) <= 1e-5


@any_shape
@any_eps
def test_values_and_gradients_are_those_of_the_eager_twin(shape, eps):
    p = problem(*SHAPES[shape])
    grad = torch.randn_like(p.values)
    double = Problem(p.values.double(), p.features.double())
    truths = filtered_by(double, "reference", eps, grad=grad.double())
    eager = filtered_by(p, "reference", eps, grad=grad)
    for ours, theirs, truth in zip(
        filtered_by(p, "triton", eps, grad=grad), eager, truths, strict=True
    ):
        assert_within_budget(ours, theirs, truth)


@pytest.mark.parametrize("eps", [1e-1, 1e-2, 1e-4, 1e-7])
def test_no_row_loses_more_than_eps(eps):
    p = problem(150, 2, 2, spread=12.0)
    built = kernels.build_tiles(p.features, eps=eps, impl="triton")
    assert built.share < 1
    assert built.bound <= eps
    error = p.error(kernels.apply_tiles(built, p.values, impl="triton"))
    assert error <= built.bound + 1e-6
    torch.testing.assert_close(built.mass.double(), p.mass, rtol=1e-5, atol=0)


@pytest.mark.parametrize("count", [1, 16, 45, 64])
def test_masses_of_tiles_are_those_of_the_eager_twin(count):
    features = problem(count, 3, spread=8.0).features
    points = tiles.place(features[None], tiles.sort(features)[None])[0]
    bounds = tiles._bounds_by_distance(points)
    tables = [bounds.clone(), bounds.clone()]
    ours, theirs = (
        over_tiles(name).masses(points, table, count, 1e-6)
        for name, table in zip(("triton", "reference"), tables, strict=True)
    )
    rounding = {"rtol": tiles._rounding(torch.float32, 3, len(bounds)), "atol": 0}
    torch.testing.assert_close(ours, theirs, **rounding)
    torch.testing.assert_close(*tables, **rounding)


def test_tiles_of_either_implementation_serve_the_other():
    p = problem(70, 2, 3, spread=8.0)
    for built_by in ("reference", "triton"):
        built = kernels.build_tiles(p.features, eps=1e-3, impl=built_by)
        ours, theirs = (
            kernels.apply_tiles(built, p.values, impl=impl) for impl in ("triton", "reference")
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_two_runs_give_the_same_bits_and_a_batch_those_of_its_images():
    p = problem(66, 3, 4)
    values, features = p.values.view(2, 33, 4), p.features.view(2, 33, 3)
    for eps in (0.0, 1e-3):
        options = {"method": "exact", "impl": "triton", "eps": eps}
        both = kernels.gaussian_filter(values, features, **options)
        assert torch.equal(both, kernels.gaussian_filter(values, features, **options))
        for b in range(2):
            one = kernels.gaussian_filter(values[b : b + 1], features[b : b + 1], **options)
            assert torch.equal(both[b], one[0])


def test_far_from_the_origin_nothing_cancels():
    p = problem(40, 3, 2)
    moved = Problem(p.values, p.features + 1000.0)
    grad = torch.randn_like(p.values)
    _, _, gradient = filtered_by(moved, "triton", 0.0, grad=grad)
    assert moved.error(filtered_by(moved, "triton", 1e-7)) <= 1e-5
    _, expected = moved.gradients(grad)
    assert (gradient - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_empty_batches_are_filtered(shape):
    values, features = torch.randn(*shape, 3), torch.randn(*shape, 4).requires_grad_()
    for eps in (0.0, 1e-3):
        filtered = kernels.gaussian_filter(values, features, method="exact", impl="triton", eps=eps)
        assert filtered.shape == values.shape
        filtered.sum().backward()


def test_values_and_gradients_of_any_strides_are_taken():
    p = problem(20, 3, 4)
    built = kernels.build_tiles(p.features, eps=1e-3, impl="triton")
    expected = kernels.apply_tiles(built, p.values, impl="triton")
    strided = p.values.T.contiguous().T.requires_grad_()
    found = kernels.apply_tiles(built, strided, impl="triton")
    assert torch.equal(found, expected)
    found.sum().backward()  # a gradient of stride 0
    ones = kernels.apply_tiles(built, torch.ones_like(p.values), impl="triton")
    assert torch.equal(strided.grad, ones)


def test_values_are_differentiated_twice():
    p = problem(20, 3, 2)
    built = kernels.build_tiles(p.features, eps=1e-3, impl="triton")

    def second(impl):
        leaf = p.values.detach().clone().requires_grad_()
        cubed = kernels.apply_tiles(built, leaf, impl=impl).pow(3).sum()
        (first,) = torch.autograd.grad(cubed, leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    expected = second("reference")
    assert (second("triton") - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_what_the_interpreter_cannot_compute_is_refused():
    p = problem(10)
    with pytest.raises(ValueError, match="interpreter cannot compute in bf16"):
        filtered_by(p, "triton", 0.0, "bf16")
    with pytest.raises(ValueError, match=r"'triton' computes in torch\.float32 only"):
        kernels.build_tiles(p.features.double(), impl="triton")


@pytest.mark.parametrize("pruned", [False, True])
def test_opchecks_pass(pruned):
    p = problem(20, 2, 2)
    values, features = p.values[None], p.features[None]
    order = kept = None
    if pruned:
        arguments = features, 1e-2, "triton"
        torch.library.opcheck(ops.exact_build_tiles, arguments, test_utils=OPCHECKS)
        order, kept, *_ = ops.exact_build_tiles(*arguments)
    rest = order, kept, "triton", "ieee"
    backward = values, values, features, *rest
    torch.library.opcheck(ops.exact_apply_tiles_backward, backward, test_utils=OPCHECKS)
    leaves = values.requires_grad_(), features.requires_grad_(), *rest
    torch.library.opcheck(ops.exact_apply_tiles, leaves, test_utils=OPCHECKS)


@pytest.mark.parametrize("eps", [0.0, 1e-2])
def test_compiled_whole_gives_the_same(eps):
    def loss(values, features):
        options = {"method": "exact", "impl": "triton", "eps": eps}
        return kernels.gaussian_filter(values, features, **options).square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    p = problem(20, 2, 2)
    leaves = p.values[None].requires_grad_(), p.features[None].requires_grad_()
    ours = torch.autograd.grad(compiled(*leaves), leaves)
    theirs = torch.autograd.grad(loss(*leaves), leaves)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
