"""What the tests of atrous convolution share: an oracle of their own, problems, error budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import kernels


@dataclass(frozen=True)
class Problem:
    """Arguments of one call, in the order of the implementations and of the operator."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    rates: Sequence[int]
    fuse: str
    scale: Tensor | None = None
    shift: Tensor | None = None
    activation: str | None = None

    @property
    def args(self) -> tuple[object, ...]:
        return tuple(vars(self).values())

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def to(self, dtype: torch.dtype | torch.device) -> Problem:
        """A copy in another dtype or on another device, the layouts kept, its tensors leaves."""
        changed = {
            name: tensor.detach().to(dtype, copy=True).requires_grad_(tensor.requires_grad)
            for name, tensor in self.tensors.items()
        }
        return Problem(**{**vars(self), **changed})


class Pyramid(torch.nn.Module):
    """The public function as a layer with the parameters of a problem."""

    def __init__(self, p: Problem, impl: str) -> None:
        super().__init__()
        for name in ("weight", "bias", "scale", "shift"):
            tensor = getattr(p, name)
            setattr(self, name, None if tensor is None else torch.nn.Parameter(tensor.detach()))
        self.options = {"rates": p.rates, "fuse": p.fuse, "activation": p.activation, "impl": impl}

    def forward(self, input: Tensor) -> Tensor:
        return kernels.multi_rate_atrous_conv2d(
            input, self.weight, self.bias, scale=self.scale, shift=self.shift, **self.options
        )


@pytest.fixture(scope="session")
def problem() -> Callable[..., Problem]:
    """Make a random problem, the same each time for the same arguments.

    With `integers`, every number on the way to the output and the gradients is an integer that
    float64 holds exactly, so that implementations must agree to the last bit.
    """

    def make(
        shape: tuple[int, int, int, int] = (2, 3, 7, 6),
        channels: int = 4,
        kernel: int = 3,
        rates: Sequence[int] = (1, 3),
        fuse: str = "sum",
        bias: bool = True,
        scale: bool = False,
        shift: bool = False,
        activation: str | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        dtype: torch.dtype = torch.float64,
        integers: bool = False,
        requires_grad: bool = True,
    ) -> Problem:
        random = torch.Generator().manual_seed(7)

        def values(*size: int) -> Tensor:
            drawn = torch.randn(size, generator=random, dtype=torch.float64)
            return (4 * drawn).round() if integers else drawn

        branches = len(rates)
        tensors = {
            "input": values(*shape).contiguous(memory_format=memory_format),
            "weight": values(branches, channels, shape[1], kernel, kernel),
            "bias": values(branches, channels) if bias else None,
            "scale": values(branches * channels) if scale else None,
            "shift": values(branches * channels) if shift else None,
        }
        for tensor in tensors.values():
            if tensor is not None:
                tensor.requires_grad_(requires_grad)
        return Problem(**tensors, rates=rates, fuse=fuse, activation=activation).to(dtype)

    return make


@pytest.fixture(scope="session")
def by_taps() -> Callable[..., Tensor]:
    """The equation itself: every tap of every rate, multiplied and added; no convolution."""

    def shifted(x: Tensor, down: int, right: int) -> Tensor:
        height, width = x.shape[2:]
        moved = torch.zeros_like(x)
        rows = slice(max(0, -down), max(0, min(height, height - down)))
        columns = slice(max(0, -right), max(0, min(width, width - right)))
        source_rows = slice(max(0, down), max(0, min(height, height + down)))
        source_columns = slice(max(0, right), max(0, min(width, width + right)))
        moved[:, :, rows, columns] = x[:, :, source_rows, source_columns]
        return moved

    def compute(p: Problem) -> Tensor:
        reach = p.weight.shape[-1] // 2
        branches = []
        for r, rate in enumerate(p.rates):
            batch, _, height, width = p.input.shape
            z = p.input.new_zeros(batch, p.weight.shape[1], height, width)
            for i in range(-reach, reach + 1):
                for j in range(-reach, reach + 1):
                    tap = p.weight[r, :, :, i + reach, j + reach]
                    z = z + torch.einsum("oc,bchw->bohw", tap, shifted(p.input, i * rate, j * rate))
            branches.append(z if p.bias is None else z + p.bias[r].view(1, -1, 1, 1))
        if p.fuse == "sum":
            return torch.stack(branches).sum(0)
        y = torch.cat(branches, 1)
        y = y if p.scale is None else y * p.scale.view(1, -1, 1, 1)
        y = y if p.shift is None else y + p.shift.view(1, -1, 1, 1)
        return torch.where(y > 0, y, 0.0) if p.activation == "relu" else y

    return compute


@pytest.fixture(scope="session")
def by_conv2d() -> Callable[..., Tensor]:
    """What a user would write with PyTorch's own convolution; the yardstick of error budgets."""

    def compute(p: Problem) -> Tensor:
        biases = [None] * len(p.rates) if p.bias is None else p.bias
        branches = [
            F.conv2d(p.input, w, b, padding="same", dilation=rate)
            for w, b, rate in zip(p.weight, biases, p.rates, strict=True)
        ]
        y = sum(branches[1:], branches[0]) if p.fuse == "sum" else torch.cat(branches, 1)
        y = y if p.scale is None else y * p.scale.view(1, -1, 1, 1)
        y = y if p.shift is None else y + p.shift.view(1, -1, 1, 1)
        return F.relu(y) if p.activation == "relu" else y

    return compute


@pytest.fixture(scope="session")
def with_gradients() -> Callable[..., dict[str, Tensor]]:
    """Run a computation and its backward; the output and the gradients by name."""

    def run(compute: Callable[[Problem], Tensor], p: Problem) -> dict[str, Tensor]:
        output = compute(p)
        random = torch.Generator().manual_seed(11)
        cotangent = torch.randint(-4, 5, output.shape, generator=random)
        wanted = {name: t for name, t in p.tensors.items() if t.requires_grad}
        grads = torch.autograd.grad(output, list(wanted.values()), cotangent.to(output))
        return {"output": output.detach(), **dict(zip(wanted, grads, strict=True))}

    return run


@pytest.fixture(scope="session")
def assert_exact(
    by_taps: Callable[..., Tensor], with_gradients: Callable[..., dict[str, Tensor]]
) -> Callable[..., None]:
    """Output and gradients of a problem in integers are those of the equation, bit for bit."""

    def check(compute: Callable[[Problem], Tensor], p: Problem) -> None:
        expected = with_gradients(by_taps, p)
        found = with_gradients(compute, p)
        for name, reference in expected.items():
            assert torch.equal(found[name], reference), name

    return check


@pytest.fixture(scope="session")
def assert_within_budget(
    by_taps: Callable[..., Tensor],
    by_conv2d: Callable[..., Tensor],
    with_gradients: Callable[..., dict[str, Tensor]],
) -> Callable[..., None]:
    """Output and gradients are at most 2x as far from float64 as conv2d's, plus one rounding.

    eps: the rounding of what is multiplied, where that is coarser than the dtype (TF32: 2^-10).
    """

    def check(compute: Callable[[Problem], Tensor], p: Problem, eps: float | None = None) -> None:
        exact = with_gradients(by_taps, p.to(torch.float64))
        yardstick = with_gradients(by_conv2d, p)
        found = with_gradients(compute, p)
        for name, reference in exact.items():
            assert found[name].dtype == p.input.dtype
            assert found[name].shape == reference.shape
            allowed = 2 * (yardstick[name].double() - reference).abs().max()
            rounding = torch.finfo(p.input.dtype).eps if eps is None else eps
            allowed += rounding * reference.abs().max()
            error = (found[name].double() - reference).abs().max()
            assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"

    return check
