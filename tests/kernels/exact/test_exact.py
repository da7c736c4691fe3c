"""The exact filter against the sum written in one piece: values, gradients, memory, rounding."""

from collections.abc import Callable

import pytest
import torch
from exact_problems import LargestTensor, all_pairs
from torch import Tensor

from kernels.exact import reference as exact

pytestmark = pytest.mark.processors

SHAPES = [(1, 1, 1, 1), (2, 37, 3, 5), (1, 64, 21, 2), (3, 5, 1, 7), (0, 4, 2, 2), (2, 0, 3, 2)]


def problem(batch: int, count: int, channels: int, dims: int) -> tuple[Tensor, Tensor]:
    values = torch.randn(batch, count, channels, dtype=torch.float64)
    return values, 1.5 * torch.randn(batch, count, dims, dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block_bytes", [1, 700, 2**24])
def test_filter_is_the_sum_over_all_pairs_whatever_the_block(
    shape: tuple[int, ...], block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "BLOCK_BYTES", block_bytes)
    values, features = problem(*shape)
    torch.testing.assert_close(
        exact.filter(values, features), all_pairs(values, features), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if 0 not in shape])
@pytest.mark.parametrize("block_bytes", [700, 2**24])
def test_gradients_are_those_of_the_sum_in_one_piece(
    shape: tuple[int, ...], block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "BLOCK_BYTES", block_bytes)
    inputs = [tensor.requires_grad_() for tensor in problem(*shape)]
    grad = torch.randn_like(inputs[0])
    ours = torch.autograd.grad(exact.filter(*inputs), inputs, grad)
    theirs = torch.autograd.grad(all_pairs(*inputs), inputs, grad)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_first_and_second_derivatives_pass_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "BLOCK_BYTES", 200)
    inputs = tuple(tensor.requires_grad_() for tensor in problem(2, 7, 2, 3))
    assert torch.autograd.gradcheck(exact.filter, inputs)
    assert torch.autograd.gradgradcheck(exact.filter, inputs)


def test_only_the_gradients_asked_for_are_computed() -> None:
    values, features = problem(1, 9, 2, 3)
    exact.filter(values.requires_grad_(), features).sum().backward()
    assert values.grad is not None
    assert features.grad is None
    exact.filter(values.detach(), features.requires_grad_()).sum().backward()
    assert features.grad is not None


def test_memory_stays_within_blocks_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    values, features = problem(1, 500, 3, 4)
    monkeypatch.setattr(exact, "BLOCK_BYTES", 100_000)
    with LargestTensor() as largest:
        output = exact.filter(values.requires_grad_(), features.requires_grad_())
        output.sum().backward()
    assert largest.bytes <= 100_000  # all pairs would be 2 MB


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_float32_errs_no_more_than_the_plain_formula_in_float32(offset: float) -> None:
    values, features = (tensor.float() for tensor in problem(1, 300, 5, 5))
    features = features + offset  # far from the origin, |f|^2 + |g|^2 - 2 f.g would cancel
    truth = all_pairs(values, features)
    squares = (features[:, :, None] - features[:, None]).square().sum(-1)
    plain_error = (torch.exp(-squares / 2) @ values - truth).abs().max()
    eps = torch.finfo(torch.float32).eps
    budget = 2 * plain_error + eps * truth.abs().max()
    assert (exact.filter(values, features) - truth).abs().max() <= budget


def test_float32_feature_gradients_do_not_cancel_far_from_the_origin() -> None:
    values, features = (tensor.float() for tensor in problem(1, 100, 3, 3))
    features = features + 1000.0

    def gradient(compute: Callable[[Tensor, Tensor], Tensor], points: Tensor) -> Tensor:
        points = points.detach().clone().requires_grad_()
        compute(values.to(points.dtype), points).square().sum().backward()
        assert points.grad is not None
        return points.grad

    truth = gradient(all_pairs, features.double())
    error = (gradient(exact.filter, features) - truth).abs().max()
    assert error <= 1e-4 * truth.abs().max()


def test_autocast_does_not_lower_the_precision() -> None:
    inputs = [tensor.float().requires_grad_() for tensor in problem(1, 50, 4, 3)]
    expected = exact.filter(*inputs)
    gradients = torch.autograd.grad(expected.square().sum(), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        filtered = exact.filter(*inputs)
        lowered = torch.autograd.grad(filtered.square().sum(), inputs)
    assert torch.equal(filtered, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients, lowered, strict=True))


def test_values_and_gradients_of_any_strides_are_taken() -> None:
    values, features = problem(2, 20, 3, 4)
    expected = exact.filter(values, features)
    strided = values.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(exact.filter(strided, features), expected)
    strided = strided.detach().requires_grad_()
    exact.filter(strided, features).sum().backward()  # a gradient of stride 0
    ones = exact.filter(torch.ones_like(values), features)
    assert strided.grad is not None
    torch.testing.assert_close(strided.grad, ones)


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives() -> None:
    inputs = [tensor.requires_grad_() for tensor in problem(2, 300, 3, 5)]
    expected = exact.filter(*inputs)
    gradients = torch.autograd.grad(expected.square().sum(), inputs)
    on_gpu = [tensor.detach().cuda().requires_grad_() for tensor in inputs]
    filtered = exact.filter(*on_gpu)
    torch.testing.assert_close(filtered.cpu(), expected)
    found = torch.autograd.grad(filtered.square().sum(), on_gpu)
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one.cpu(), other)
