"""Gaussian filters as opaque custom operators, which `torch.compile` and `torch.export` take whole.

    kernels::permutohedral_apply(values, corners, weights, neighbours, ghosts, parts, chains,
                                 reverse)                   filter on a lattice that exists
    kernels::permutohedral_filter(values, features, reverse)    build a lattice an image, and filter

Both run on the numba lattice, float32 on a CPU; kernels/gaussian/permutohedral/eager.py
holds their equation. A lattice filter y = A v has the gradient A^T g, which is the same lattice
blurred in reverse. The arguments are those of the public functions, already validated except for
the values of the features, which only exist when the operator runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.gaussian import permutohedral
from kernels.gaussian.permutohedral.lattice import Lattice

NO_FEATURE_GRADIENT = (
    "the permutohedral lattice has gradients to the values only, not to the features: "
    'use method="exact" to differentiate the features, or features.detach()'
)


@torch.library.custom_op("kernels::permutohedral_apply", mutates_args=())
def permutohedral_apply(
    values: Tensor,
    corners: Tensor,
    weights: Tensor,
    neighbours: Tensor,
    ghosts: Tensor,
    parts: Tensor,
    chains: Tensor | None,
    reverse: bool,
) -> Tensor:
    """`[N, C]` -> `[N, C]`; the tensors of a `Lattice`."""
    lattice = Lattice(corners, weights, neighbours, ghosts, parts, chains)
    return permutohedral.implementation("cpu").filter(lattice, values.contiguous(), reverse)


@permutohedral_apply.register_fake
def _(
    values: Tensor,
    corners: Tensor,
    weights: Tensor,
    neighbours: Tensor,
    ghosts: Tensor,
    parts: Tensor,
    chains: Tensor | None,
    reverse: bool,
) -> Tensor:
    return values.new_empty(values.shape)


def _save_lattice(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *tensors, reverse = inputs
    ctx.save_for_backward(*tensors)
    ctx.reverse = reverse


def _apply_adjoint(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return permutohedral_apply(grad, *ctx.saved_tensors, not ctx.reverse), *(None,) * 7


permutohedral_apply.register_autograd(_apply_adjoint, setup_context=_save_lattice)


@torch.library.custom_op("kernels::permutohedral_filter", mutates_args=())
def permutohedral_filter(values: Tensor, features: Tensor, reverse: bool) -> Tensor:
    """`[B, N, C]`, `[B, N, D]` -> `[B, N, C]`."""
    permutohedral.require_placeable(features)
    lattices = permutohedral.implementation("cpu")
    output = values.new_empty(values.shape)
    for image, points, filtered in zip(values, features, output, strict=True):
        lattice = lattices.build(points.detach().contiguous())
        filtered.copy_(lattices.filter(lattice, image.contiguous(), reverse))
    return output


@permutohedral_filter.register_fake
def _(values: Tensor, features: Tensor, reverse: bool) -> Tensor:
    return values.new_empty(values.shape)


def _save_features(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, features, reverse = inputs
    ctx.save_for_backward(features)
    ctx.reverse = reverse


def _filter_adjoint(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    if ctx.needs_input_grad[1]:
        raise RuntimeError(NO_FEATURE_GRADIENT)
    (features,) = ctx.saved_tensors
    return permutohedral_filter(grad, features, not ctx.reverse), None, None


permutohedral_filter.register_autograd(_filter_adjoint, setup_context=_save_features)
