"""The operators of the separable filter: their contract with PyTorch's compilers, and gradients."""

from typing import Any

import pytest
import torch
from opchecks import OPCHECKS
from torch import Tensor

import kernels
from kernels.separable import factors, ops


def apply_arguments(values: Tensor, features: Tensor) -> tuple[Any, ...]:
    s = kernels.build_separable(features)
    tensors = s.landmarks, s.mixing, s.axes, s.shape, s.order, s.colours, s.fractions, s.diagonal
    return values, *tensors, s.pieces, s.starts, "reference", "ieee"


@pytest.mark.parametrize("strided", [False, True])
def test_opchecks_of_apply_pass(strided: bool) -> None:
    values = torch.randn(3, 30).T if strided else torch.randn(30, 3)
    arguments = apply_arguments(values.requires_grad_(), torch.randn(30, 4))
    torch.library.opcheck(ops.separable_apply_reference, arguments, test_utils=OPCHECKS)


def test_only_what_waits_for_a_gpu_is_kept_out_of_cuda_graphs() -> None:
    operators = ops.separable_apply, ops.separable_apply_reference, ops.separable_filter
    unsafe = [torch.Tag.cudagraph_unsafe in each._opoverload.tags for each in operators]
    assert unsafe == [False, True, True]


@pytest.mark.parametrize("shape", [(2, 30), (0, 5), (1, 1)])
def test_opchecks_of_filter_pass(shape: tuple[int, int]) -> None:
    values = torch.randn(*shape, 3).requires_grad_()
    arguments = values, torch.randn(*shape, 4), 2, 0.1, 100, "reference", "ieee"
    torch.library.opcheck(ops.separable_filter, arguments, test_utils=OPCHECKS)


def test_gradients_are_those_of_finite_differences_twice() -> None:
    features, values = torch.randn(8, 4).double(), torch.randn(8, 2).double().requires_grad_()
    separable = kernels.build_separable(features)

    def apply(v: Tensor) -> Tensor:
        return kernels.apply_separable(separable, v)

    def filter(v: Tensor) -> Tensor:
        return kernels.gaussian_filter(v[None], features[None], method="separable")[0]

    for function in (apply, filter):
        assert torch.autograd.gradcheck(function, (values,))
        assert torch.autograd.gradgradcheck(lambda v: function(v).pow(3), (values,))  # noqa: B023


def test_the_gradient_is_by_the_factors_of_the_forward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = []
    build = factors.build
    monkeypatch.setattr(factors, "build", lambda *a: built.append(a) or build(*a))
    values = torch.randn(2, 12, 3).requires_grad_()
    kernels.gaussian_filter(values, torch.randn(2, 12, 4), method="separable").sum().backward()
    assert len(built) == 2  # one for each image


def test_a_gradient_without_strides_is_taken() -> None:
    separable = kernels.build_separable(torch.randn(12, 4))
    values = torch.randn(12, 2).requires_grad_()
    kernels.apply_separable(separable, values).sum().backward()
    expected = kernels.apply_separable(separable, torch.ones(12, 2))
    torch.testing.assert_close(values.grad, expected)


def test_a_gradient_to_features_is_refused_in_the_backward_too() -> None:
    features = torch.randn(1, 12, 4).requires_grad_()
    output = ops.separable_filter(torch.randn(1, 12, 2), features, 2, 0.1, 100, "reference", "ieee")
    with pytest.raises(RuntimeError, match='method="exact" to differentiate'):
        output.sum().backward()


def test_apply_can_be_compiled_whole() -> None:
    separable = kernels.build_separable(torch.randn(30, 4))
    values = torch.randn(30, 3)
    compiled = torch.compile(kernels.apply_separable, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(separable, values), kernels.apply_separable(separable, values))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_lower_the_precision(dtype: torch.dtype) -> None:
    features, values = torch.randn(1, 40, 4), torch.randn(1, 40, 3)
    plain = kernels.gaussian_filter(values, features, method="separable")
    with torch.autocast("cpu", dtype):
        assert torch.equal(plain, kernels.gaussian_filter(values, features, method="separable"))
        separable = kernels.build_separable(features[0])
        assert torch.equal(plain[0], kernels.apply_separable(separable, values[0]))
