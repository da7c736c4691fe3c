"""The lattice operators around the Triton kernels: opcheck, compile, export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from opchecks import OPCHECKS
from torch import Tensor

import kernels
from kernels.permutohedral import ops


def apply_arguments(reverse: bool) -> tuple[Any, ...]:
    lattice = kernels.build_lattice(torch.randn(9, 2), impl="triton")
    tensors = lattice.corners, lattice.weights, lattice.neighbours, lattice.ghosts, lattice.parts
    tables = lattice.entries, lattice.pieces, lattice.sums
    return *tensors, lattice.chains, reverse, *tables, "triton"


@pytest.mark.parametrize("reverse", [False, True])
def test_opcheck_of_apply_passes(reverse: bool) -> None:
    values = torch.randn(9, 3).requires_grad_()
    arguments = values, *apply_arguments(reverse)
    torch.library.opcheck(ops.permutohedral_apply, arguments, test_utils=OPCHECKS)


@pytest.mark.parametrize("shape", [(2, 5), (0, 3)])
def test_opcheck_of_filter_passes(shape: tuple[int, int]) -> None:
    values = torch.randn(*shape, 3).requires_grad_()
    arguments = values, torch.randn(*shape, 2), False, "triton"
    torch.library.opcheck(ops.permutohedral_filter, arguments, test_utils=OPCHECKS)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_takes_forward_and_backward_whole(dynamic: bool) -> None:
    def loss(values: Tensor, features: Tensor) -> Tensor:
        return kernels.gaussian_filter(values, features, impl="triton").square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for count in (6, 9)[: 1 + dynamic]:
        values, features = torch.randn(2, count, 3, requires_grad=True), torch.randn(2, count, 2)
        (expected,) = torch.autograd.grad(loss(values, features), values)
        (found,) = torch.autograd.grad(compiled(values, features), values)
        torch.testing.assert_close(found, expected)


def test_an_exported_program_serves_other_sizes() -> None:
    class Filter(torch.nn.Module):
        def forward(self, values: Tensor, features: Tensor) -> Tensor:
            return kernels.gaussian_filter(values, features, impl="triton")

    shapes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("count")}
    example = torch.randn(2, 6, 3), torch.randn(2, 6, 2)
    program = torch.export.export(Filter(), example, dynamic_shapes=(shapes, shapes))
    values, features = torch.randn(3, 4, 3), torch.randn(3, 4, 2)
    expected = kernels.gaussian_filter(values, features, impl="triton")
    assert torch.equal(program.module()(values, features), expected)


def test_cuda_graphs_are_told_of_the_operator_that_waits() -> None:
    if not hasattr(torch.Tag, "cudagraph_unsafe"):
        pytest.skip("this PyTorch has no such tag")
    assert torch.Tag.cudagraph_unsafe in torch.ops.kernels.permutohedral_filter.default.tags
    assert torch.Tag.cudagraph_unsafe not in torch.ops.kernels.permutohedral_apply.default.tags
