"""The separable filter's Triton kernels on a GPU and in the interpreter, held against float64.

Blocks are small in the interpreter, of their own size on a GPU.
"""

from __future__ import annotations

import pytest
import torch
from separable_problems import PROBLEMS, make
from torch import Tensor

import kernels
from kernels import dispatch
from kernels.separable import band, factors, landmarks

pytest.importorskip("triton", reason="triton is not installed")
from kernels.product import product
from kernels.separable import triton

EPS = torch.finfo(torch.float32).eps
OWN = EPS  # of a factor of the product of own weights
COLOURS = [(100, 3, 0.9), (1, 2, 1.0), (70, 1, 9.0)]  # points, dimensions, spread in sigmas
if not dispatch.interpreting():  # three products in TF32 keep about 21 bits of a factor
    OWN = 2 * 2**-20
    COLOURS.append((100_000, 3, 2.0))
any_problem = pytest.mark.parametrize("problem", PROBLEMS)


def doubled(separable: kernels.Separable) -> kernels.Separable:
    tensors = {
        name: tuple(t.double() for t in value) if isinstance(value, tuple) else value.double()
        for name, value in vars(separable).items()
        if name in ("landmarks", "mixing", "axes", "colours", "fractions", "diagonal")
    }
    return kernels.Separable(**{**vars(separable), **tensors})


@any_problem
def test_output_and_gradient_are_those_of_the_eager_filter(
    device: torch.device, problem: str
) -> None:
    values, features, spatial = make(problem, device)
    separable = kernels.build_separable(features, spatial_dims=spatial)
    exact = kernels.apply_separable(doubled(separable), values.double(), impl="reference")
    eager = kernels.apply_separable(separable, values, impl="reference")
    leaf = values.clone().requires_grad_()
    found = kernels.apply_separable(separable, leaf, impl="triton")
    (gradient,) = torch.autograd.grad(found, leaf, values)
    assert torch.equal(gradient, found.detach())  # of a symmetric operator, at the same values
    # Rounding of the sums grows by A: their size is that of the absolute sums.
    size = _size_of_sums(doubled(separable), values.double().abs())
    budget = 2 * (eager - exact).abs().max() + EPS * size
    assert (found - exact).abs().max() <= budget


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (2, 40, 16), (1, 150, 3), (0, 4, 4)])
@pytest.mark.parametrize("sigma", [0.2, 1.0, 30.0])
def test_a_convolution_is_the_banded_product(
    device: torch.device, shape: tuple[int, int, int], sigma: float
) -> None:
    count = int(min(shape[1], 1 + band.reach(sigma, torch.float32)))
    taps = torch.arange(count).div(sigma).square().mul(-0.5).exp().to(device)
    values = torch.randn(shape).to(device)
    exact = band.convolve(values.double(), taps.double())
    size = band.convolve(values.double().abs(), taps.double())
    found = triton.convolve(values, taps)
    assert ((found - exact).abs() <= EPS * 2 * len(taps) * size).all()


@pytest.mark.parametrize(("rows", "inner", "columns"), [(1, 1, 1), (70, 33, 5), (130, 16, 80)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_keep_float32_whatever_the_switch_says(
    device: torch.device, rows: int, inner: int, columns: int, dtype: torch.dtype
) -> None:
    if dtype == torch.bfloat16 and dispatch.interpreting():
        pytest.skip("the interpreter stores no bfloat16")
    a, b = torch.randn(rows, inner).to(device), torch.randn(columns, inner).to(device).T
    out = torch.empty(rows, columns, dtype=dtype, device=device)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        product(a, b, out)
    finally:
        torch.set_float32_matmul_precision(before)
    exact, size = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    budget = EPS * inner * size + torch.finfo(dtype).eps * exact.abs()
    assert ((out - exact).abs() <= budget).all()


@pytest.mark.parametrize(("count", "dims", "spread"), COLOURS)
def test_own_weights_are_those_of_the_eager_function(
    device: torch.device, count: int, dims: int, spread: float
) -> None:
    colours = (torch.randn(count, dims) * spread).to(device)
    chosen = landmarks.choose(colours, 0.1, 1024)
    assert count < 50 or len(chosen.colours) > 16  # several blocks
    exact = factors.own_weights(colours.double(), chosen)
    eager = factors.own_weights(colours, chosen)
    found = triton.own_weights(colours, chosen)
    # Of one product each way: entries of W may cancel.
    phi = landmarks.features_of(colours.double(), chosen.colours.double())
    size = (phi @ chosen.whitener.double().abs().T).max()
    assert (found - exact).abs().max() <= 2 * (eager - exact).abs().max() + OWN * size


def test_channels_that_do_not_fit_the_workspace_are_filtered_in_turn(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, features, spatial = make("volume", device)
    separable = kernels.build_separable(features, spatial_dims=spatial)
    whole = kernels.apply_separable(separable, values, impl="triton")
    monkeypatch.setattr(factors, "WORKSPACE", 1)
    in_turn = kernels.apply_separable(separable, values, impl="triton")
    torch.testing.assert_close(in_turn, whole, rtol=1e-5, atol=1e-5 * whole.abs().max().item())


def test_strided_values_are_taken(device: torch.device) -> None:
    values, features, spatial = make("plane without colours", device)
    separable = kernels.build_separable(features, spatial_dims=spatial)
    wide = torch.randn(2, len(values)).to(device).T
    found = kernels.apply_separable(separable, wide, impl="triton")
    assert torch.equal(found, kernels.apply_separable(separable, wide.contiguous(), impl="triton"))


def _size_of_sums(separable: kernels.Separable, values: Tensor) -> float:
    mixing = {**vars(separable), "mixing": separable.mixing.abs()}
    return (
        kernels.apply_separable(kernels.Separable(**mixing), values, impl="reference").max().item()
    )
