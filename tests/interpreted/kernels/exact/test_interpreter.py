"""The exact filter's Triton kernels in the interpreter: gradients, compilers, what is refused."""

from __future__ import annotations

import pytest
import torch
from exact_problems import SMALL_SHAPES, Problem, problem
from opchecks import OPCHECKS

import kernels
from kernels.exact import ops, tiles

EPS = torch.finfo(torch.float32).eps
any_shape = pytest.mark.parametrize("shape", SMALL_SHAPES)
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
@any_eps
def test_values_and_gradients_are_those_of_the_eager_twin(shape, eps):
    p = problem(*SMALL_SHAPES[shape])
    grad = torch.randn_like(p.values)
    double = Problem(p.values.double(), p.features.double())
    truths = filtered_by(double, "reference", eps, grad=grad.double())
    eager = filtered_by(p, "reference", eps, grad=grad)
    for ours, theirs, truth in zip(
        filtered_by(p, "triton", eps, grad=grad), eager, truths, strict=True
    ):
        assert_within_budget(ours, theirs, truth)


def test_far_from_the_origin_nothing_cancels():
    p = problem(40, 3, 2)
    moved = Problem(p.values, p.features + 1000.0)
    grad = torch.randn_like(p.values)
    _, _, gradient = filtered_by(moved, "triton", 0.0, grad=grad)
    assert moved.error(filtered_by(moved, "triton", 1e-7)) <= 1e-5
    _, expected = moved.gradients(grad)
    assert (gradient - expected).abs().max() <= 1e-5 * expected.abs().max()


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
        _, order, kept, *_ = ops.exact_build_tiles(*arguments)
    points, rest = tiles.place(features, order), (order, kept, "triton", "ieee")
    backward = values, values, points, *rest
    torch.library.opcheck(ops.exact_apply_tiles_backward, backward, test_utils=OPCHECKS)
    leaves = values.requires_grad_(), points.requires_grad_(), *rest
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
