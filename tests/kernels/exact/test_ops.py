"""The operators of the exact filter: their contract with PyTorch's compilers."""

from typing import Any

import pytest
import torch
from opchecks import OPCHECKS, any_layout, normal
from torch import Tensor

import kernels
from kernels.exact import ops, tiled, tiles

any_eps = pytest.mark.parametrize("eps", [0.0, 1e-2])


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 8)
    monkeypatch.setattr(tiled, "BLOCK_BYTES", 1024)


def placed(features: Tensor, pruned: bool) -> tuple[Any, ...]:
    """points, order, kept, impl and precision."""
    order = kept = None
    if pruned:
        _, order, kept, *_ = ops.exact_build_tiles(features, 1e-2, "reference")
    return tiles.place(features, order), order, kept, "reference", "ieee"


@any_layout
def test_opchecks_of_filter_and_its_backward_pass(strided: bool, shape: tuple[int, int]) -> None:
    values, grad = (normal(*shape, 3, strided=strided) for _ in range(2))
    features = normal(*shape, 4, strided=strided)
    torch.library.opcheck(ops.exact_filter_backward, (grad, values, features), test_utils=OPCHECKS)
    arguments = values.requires_grad_(), features.requires_grad_()
    torch.library.opcheck(ops.exact_filter, arguments, test_utils=OPCHECKS)


@any_layout
def test_opchecks_of_build_pass(strided: bool, shape: tuple[int, int]) -> None:
    arguments = normal(*shape, 4, strided=strided), 1e-2, "reference"
    torch.library.opcheck(ops.exact_build_tiles, arguments, test_utils=OPCHECKS)


@any_layout
@pytest.mark.parametrize("pruned", [False, True])
def test_opchecks_of_apply_and_its_backward_pass(
    strided: bool, shape: tuple[int, int], pruned: bool
) -> None:
    values, grad = (normal(*shape, 3, strided=strided) for _ in range(2))
    features = normal(*shape, 4, strided=strided)
    points, *rest = placed(features, pruned)
    arguments = grad, values, points, *rest
    torch.library.opcheck(ops.exact_apply_tiles_backward, arguments, test_utils=OPCHECKS)
    leaves = values.requires_grad_(), points.requires_grad_(), *rest
    torch.library.opcheck(ops.exact_apply_tiles, leaves, test_utils=OPCHECKS)


@any_eps
@pytest.mark.parametrize("dynamic", [False, True])
def test_building_and_applying_tiles_compile_whole(eps: float, dynamic: bool) -> None:
    def normalised(values: Tensor, features: Tensor) -> Tensor:
        built = kernels.build_tiles(features, eps=eps)
        return kernels.apply_tiles(built, values) / built.mass[:, None]

    torch._dynamo.reset()
    compiled = torch.compile(normalised, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for count in (20, 33)[: 1 + dynamic]:
        values, features = normal(count, 3).requires_grad_(), normal(count, 4)
        expected, found = normalised(values, features), compiled(values, features)
        assert torch.equal(found, expected)
        grad = torch.randn_like(found)
        (ours,) = torch.autograd.grad(found, values, grad)
        (theirs,) = torch.autograd.grad(expected, values, grad)
        assert torch.equal(ours, theirs)


@any_eps
def test_features_that_are_not_finite_show_in_a_compiled_call(eps: float) -> None:
    """It does not look at values, and must not take such points for ones far away."""
    torch._dynamo.reset()
    compiled = torch.compile(kernels.gaussian_filter, fullgraph=True, backend="aot_eager")
    values, features = normal(1, 40, 3), 5 * normal(1, 40, 2)
    features[0, 7, 1] = torch.nan
    assert compiled(values, features, method="exact", eps=eps).isnan().all()
