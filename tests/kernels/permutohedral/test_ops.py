"""The custom operators: their contract with PyTorch's compilers, and their gradients."""

from typing import Any

import pytest
import torch
from opchecks import OPCHECKS, any_layout, normal
from torch import Tensor

import kernels
from kernels.permutohedral import ops, reference


def apply_arguments(values: Tensor, features: Tensor, reverse: bool) -> tuple[Any, ...]:
    lattice = kernels.build_lattice(features)
    tensors = lattice.corners, lattice.weights, lattice.neighbours, lattice.ghosts, lattice.parts
    return values, *tensors, lattice.chains, reverse


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_opchecks_of_apply_pass(strided: bool, reverse: bool) -> None:
    values = normal(30, 3, strided=strided).requires_grad_()
    arguments = apply_arguments(values, normal(30, 4), reverse)
    torch.library.opcheck(ops.permutohedral_apply, arguments, test_utils=OPCHECKS)


@any_layout
def test_opchecks_of_filter_pass(shape: tuple[int, int], strided: bool) -> None:
    values = normal(*shape, 3, strided=strided).requires_grad_()
    arguments = values, normal(*shape, 4, strided=strided), False
    torch.library.opcheck(ops.permutohedral_filter, arguments, test_utils=OPCHECKS)


@pytest.mark.parametrize("reverse", [False, True])
def test_apply_and_filter_compute_the_eager_lattice_and_its_gradient(reverse: bool) -> None:
    values, features = normal(40, 3).double(), normal(40, 5)
    lattice = reference.build(features.double())
    truth = reference.filter(lattice, values, reverse)
    gradient = reference.filter(lattice, truth, not reverse)
    for single in (
        lambda v: ops.permutohedral_apply(*apply_arguments(v, features, reverse)),
        lambda v: ops.permutohedral_filter(v[None], features[None], reverse)[0],
    ):
        leaf = values.float().requires_grad_()
        output = single(leaf)
        torch.testing.assert_close(output.double(), truth, rtol=1e-4, atol=1e-5)
        output.backward(truth.float())
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad.double(), gradient, rtol=1e-4, atol=1e-5)


def test_apply_can_be_differentiated_twice():
    features, leaf = normal(20, 3), normal(20, 2).requires_grad_()
    lattice = reference.build(features)
    seconds = []
    for output in (
        ops.permutohedral_apply(*apply_arguments(leaf, features, False)),
        reference.filter(lattice, leaf),
    ):
        (first,) = torch.autograd.grad(output.pow(3).sum(), leaf, create_graph=True)
        seconds += torch.autograd.grad(first.sum(), leaf)
    torch.testing.assert_close(*seconds, rtol=1e-4, atol=1e-4)


def test_filter_refuses_a_gradient_to_the_features() -> None:
    output = ops.permutohedral_filter(normal(1, 5, 2), normal(1, 5, 3).requires_grad_(), False)
    with pytest.raises(RuntimeError, match='method="exact"'):
        output.sum().backward()


def test_filter_refuses_features_that_are_not_finite_when_it_runs() -> None:
    compiled = torch.compile(kernels.gaussian_filter, fullgraph=True, backend="aot_eager")
    features = normal(1, 5, 3)
    features[0, 2, 1] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        compiled(normal(1, 5, 2), features)
