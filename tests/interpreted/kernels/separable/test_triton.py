"""The Triton kernels of the separable filter in the interpreter, held against the eager filter."""

from __future__ import annotations

import pytest
import torch
from opchecks import OPCHECKS
from torch import Tensor

import kernels
from kernels.separable import factors, landmarks, ops

EPS = torch.finfo(torch.float32).eps
PROBLEMS = {  # points, channels, spatial dims, colours, positions' and colours' spread in sigmas
    "image": (150, 5, 2, 3, 0.3, 0.9),
    "many channels": (60, 37, 2, 1, 0.2, 0.3),
    "line without colours": (90, 3, 1, 0, 0.6, 0.0),
    "volume": (50, 3, 3, 2, 0.2, 0.2),
    "plane without colours": (60, 1, 2, 0, 0.4, 0.0),
    "one point": (1, 2, 2, 3, 1.0, 1.0),
    "one colour in one place": (90, 3, 2, 3, 0.0, 0.0),
}
any_problem = pytest.mark.parametrize("problem", PROBLEMS)


def make(problem: str) -> tuple[Tensor, Tensor, int]:
    count, channels, spatial, colours, spread, colour_spread = PROBLEMS[problem]
    scale = torch.tensor([spread] * spatial + [colour_spread] * colours)
    return torch.randn(count, channels), torch.randn(count, spatial + colours) * scale, spatial


def doubled(separable: kernels.Separable) -> kernels.Separable:
    tensors = {
        name: tuple(t.double() for t in value) if isinstance(value, tuple) else value.double()
        for name, value in vars(separable).items()
        if name in ("landmarks", "mixing", "axes", "colours", "fractions", "diagonal")
    }
    return kernels.Separable(**{**vars(separable), **tensors})


@any_problem
def test_output_and_gradient_are_those_of_the_eager_filter(problem: str) -> None:
    values, features, spatial = make(problem)
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


def _size_of_sums(separable: kernels.Separable, values: Tensor) -> float:
    mixing = {**vars(separable), "mixing": separable.mixing.abs()}
    return (
        kernels.apply_separable(kernels.Separable(**mixing), values, impl="reference").max().item()
    )


@pytest.mark.parametrize(("count", "dims", "spread"), [(100, 3, 0.9), (1, 2, 1.0), (70, 1, 9.0)])
def test_own_weights_are_those_of_the_eager_function(count: int, dims: int, spread: float) -> None:
    from kernels.separable import triton

    colours = torch.randn(count, dims) * spread
    chosen = landmarks.choose(colours, 0.1, 100)
    assert count < 50 or len(chosen.colours) > 16  # several blocks
    exact = factors.own_weights(colours.double(), chosen)
    eager = factors.own_weights(colours, chosen)
    found = triton.own_weights(colours, chosen)
    # Of one product each way: entries of W may cancel.
    phi = landmarks.features_of(colours.double(), chosen.colours.double())
    size = (phi @ chosen.whitener.abs().T).max()
    assert (found - exact).abs().max() <= 2 * (eager - exact).abs().max() + EPS * size


def test_pieces_and_blocks_are_several_in_the_image() -> None:
    _, features, spatial = make("image")
    separable = kernels.build_separable(features, spatial_dims=spatial)
    assert (separable.pieces[:, 1] - separable.pieces[:, 0]).max() > 16
    assert len(separable.landmarks) > 16


def test_a_crowded_cell_is_cut_into_pieces() -> None:
    _, features, spatial = make("one colour in one place")
    separable = kernels.build_separable(features, spatial_dims=spatial)
    assert separable.starts.diff().tolist() == [3, 0, 0, 0]


def test_channels_that_do_not_fit_the_workspace_are_filtered_in_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values, features, spatial = make("volume")
    separable = kernels.build_separable(features, spatial_dims=spatial)
    whole = kernels.apply_separable(separable, values, impl="triton")
    monkeypatch.setattr(factors, "WORKSPACE", 1)
    in_turn = kernels.apply_separable(separable, values, impl="triton")
    torch.testing.assert_close(in_turn, whole, rtol=1e-5, atol=1e-5 * whole.abs().max().item())


def test_strided_values_are_taken() -> None:
    values, features, spatial = make("plane without colours")
    separable = kernels.build_separable(features, spatial_dims=spatial)
    wide = torch.randn(2, len(values)).T
    found = kernels.apply_separable(separable, wide, impl="triton")
    assert torch.equal(found, kernels.apply_separable(separable, wide.contiguous(), impl="triton"))


def test_opchecks_pass() -> None:
    values, features, spatial = make("one point")
    leaf = values.requires_grad_()
    options = spatial, 0.1, 64, "triton", "ieee"
    arguments = leaf[None], features[None], *options
    torch.library.opcheck(ops.separable_filter, arguments, test_utils=OPCHECKS)
    s = kernels.build_separable(features, spatial_dims=spatial)
    tensors = s.landmarks, s.mixing, s.axes, s.order, s.colours, s.fractions, s.diagonal
    arguments = leaf, *tensors, s.pieces, s.starts, "triton", "ieee"
    torch.library.opcheck(ops.separable_apply, arguments, test_utils=OPCHECKS)


def test_bf16_is_refused_by_the_interpreter() -> None:
    values, features, spatial = make("one point")
    separable = kernels.build_separable(features, spatial_dims=spatial)
    with pytest.raises(ValueError, match="cannot compute in bf16"):
        kernels.apply_separable(separable, values, impl="triton", precision="bf16")
