"""The exact filter's Triton kernels on a GPU and in the interpreter, against float64.

Tiles are small in the interpreter and of their own size on a GPU, which takes more points.
"""

from __future__ import annotations

import pytest
import torch
from exact_problems import SMALL_SHAPES, problem
from torch import Tensor

import kernels
from kernels import dispatch

pytest.importorskip("triton", reason="triton is not installed")
from kernels.exact import tiles
from kernels.exact.ops import over_tiles

ROUNDING = 1e-5  # of weights and sums in float32
if dispatch.interpreting():  # it computes TF32 as float32, and bfloat16 wrong
    SHAPES = SMALL_SHAPES
    UNIT = {"ieee": 0.0, "tf32": 0.0}
    COUNTS, SPREAD_OUT, SUMS, LEAST = (1, 16, 45, 64), 150, 1e-6, 0.0
else:
    SHAPES = {
        "one point": (1, 1, 1),
        "one point more": (129, 2, 3),
        "ragged": (1000, 5, 21),
        "many dimensions": (777, 9, 40),
        "many channels": (4100, 3, 70),
    }
    UNIT = {"ieee": 0.0, "tf32": 2.0**-10, "bf16": 2.0**-8}  # by which each factor is rounded
    COUNTS, SPREAD_OUT, SUMS, LEAST = (3000,), 3000, ROUNDING, 1e-35  # exp2 flushes to 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [0.0, 1e-7])
@pytest.mark.parametrize("precision", UNIT)
def test_the_filter_is_the_sum_over_all_pairs(device, shape, eps, precision):
    p = problem(*SHAPES[shape])
    ours = p.to(device)
    built = kernels.build_tiles(ours.features, eps=eps, impl="triton")
    found = kernels.apply_tiles(built, ours.values, precision=precision, impl="triton")
    assert p.error(found) <= 2 * UNIT[precision] + ROUNDING
    torch.testing.assert_close(built.mass.cpu().double(), p.mass, rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("eps", [1e-1, 1e-2, 1e-4, 1e-7])
def test_no_row_loses_more_than_eps(device, eps):
    p = problem(SPREAD_OUT, 2, 2, spread=12.0)
    ours = p.to(device)
    built = kernels.build_tiles(ours.features, eps=eps, impl="triton")
    assert built.share < 1
    assert built.bound <= eps
    error = p.error(kernels.apply_tiles(built, ours.values, impl="triton"))
    assert error <= built.bound.item() + SUMS
    torch.testing.assert_close(built.mass.cpu().double(), p.mass, rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("count", COUNTS)
def test_masses_of_tiles_are_those_of_the_eager_twin(device, count):
    features = problem(count, 3, spread=8.0).features.to(device)
    points = tiles.place(features[None], tiles.sort(features)[None])[0]
    bounds = tiles._bounds_by_distance(points)
    tables = [bounds.clone(), bounds.clone()]
    ours, theirs = (
        over_tiles(name).masses(points, table, count, 1e-6)
        for name, table in zip(("triton", "reference"), tables, strict=True)
    )
    rounding = tiles._rounding(torch.float32, 3, len(bounds))
    torch.testing.assert_close(ours, theirs, rtol=rounding, atol=0)
    torch.testing.assert_close(*tables, rtol=rounding, atol=LEAST)


def test_tiles_of_either_implementation_serve_the_other(device):
    p = problem(70, 2, 3, spread=8.0).to(device)
    for built_by in ("reference", "triton"):
        built = kernels.build_tiles(p.features, eps=1e-3, impl=built_by)
        ours, theirs = (
            kernels.apply_tiles(built, p.values, impl=impl) for impl in ("triton", "reference")
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_two_runs_give_the_same_bits_and_a_batch_those_of_its_images(device):
    p = problem(66, 3, 4).to(device)
    values, features = p.values.view(2, 33, 4), p.features.view(2, 33, 3)
    for eps in (0.0, 1e-3):
        options = {"method": "exact", "impl": "triton", "eps": eps}
        both = kernels.gaussian_filter(values, features, **options)
        assert torch.equal(both, kernels.gaussian_filter(values, features, **options))
        for b in range(2):
            one = kernels.gaussian_filter(values[b : b + 1], features[b : b + 1], **options)
            assert torch.equal(both[b], one[0])


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_empty_batches_are_filtered(device, shape):
    values = torch.randn(*shape, 3, device=device)
    features = torch.randn(*shape, 4, device=device, requires_grad=True)
    for eps in (0.0, 1e-3):
        filtered = kernels.gaussian_filter(values, features, method="exact", impl="triton", eps=eps)
        assert filtered.shape == values.shape
        filtered.sum().backward()


def test_values_and_gradients_of_any_strides_are_taken(device):
    p = problem(20, 3, 4).to(device)
    built = kernels.build_tiles(p.features, eps=1e-3, impl="triton")
    expected = kernels.apply_tiles(built, p.values, impl="triton")
    strided = p.values.T.contiguous().T.requires_grad_()
    found = kernels.apply_tiles(built, strided, impl="triton")
    assert torch.equal(found, expected)
    found.sum().backward()  # a gradient of stride 0
    ones = kernels.apply_tiles(built, torch.ones_like(p.values), impl="triton")
    assert torch.equal(strided.grad, ones)


def test_values_are_differentiated_twice(device):
    p = problem(20, 3, 2).to(device)
    built = kernels.build_tiles(p.features, eps=1e-3, impl="triton")

    def second(impl: str) -> Tensor:
        leaf = p.values.detach().clone().requires_grad_()
        cubed = kernels.apply_tiles(built, leaf, impl=impl).pow(3).sum()
        (first,) = torch.autograd.grad(cubed, leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    expected = second("reference")
    assert (second("triton") - expected).abs().max() <= 1e-5 * expected.abs().max()
