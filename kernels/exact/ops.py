"""The exact filter as opaque custom operators.

    kernels::exact_filter(values, features)                           all pairs, in plain PyTorch
    kernels::exact_build_tiles(features, eps, impl)                   which pairs of tiles to keep
    kernels::exact_apply_tiles(values, points, order, kept, impl, precision)

The arguments are those of the public functions, already validated, with a batch in front; the
tensors of `Tiles` are as it has them. The kernel is symmetric, so that the gradient to the values
is the same filter. Nothing here waits for a GPU.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kernels import dispatch
from kernels.exact import reference, tiled, tiles
from kernels.operators import like_first, opaque_operator


@opaque_operator("kernels::exact_filter")
def exact_filter(values: Tensor, features: Tensor) -> Tensor:
    """`[B, N, C]`, `[B, N, D]` -> `[B, N, C]`."""
    return reference.forward(values, features)


exact_filter.register_fake(like_first)


@opaque_operator("kernels::exact_filter_backward")
def exact_filter_backward(grad: Tensor, values: Tensor, features: Tensor) -> Tensor:
    """Gradient to the features, `[B, N, D]`; that to the values is `exact_filter(grad)`."""
    return reference.feature_gradient(grad, values, features)


exact_filter_backward.register_fake(lambda grad, values, features: like_first(features))


def _save_both(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _exact_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    values, features = ctx.saved_tensors
    to_values, to_features = ctx.needs_input_grad
    return (
        exact_filter(grad, features) if to_values else None,
        exact_filter_backward(grad, values, features) if to_features else None,
    )


exact_filter.register_autograd(_exact_gradients, setup_context=_save_both)


def over_tiles(impl: str) -> ModuleType:
    """The module that computes over tiles: `masses`, `apply` and `feature_gradient`."""
    return tiled if impl == "reference" else dispatch.implementation("exact", impl)


@opaque_operator("kernels::exact_build_tiles")
def exact_build_tiles(
    features: Tensor, eps: float, impl: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`[B, N, D]` -> points, order, kept, mass and bound, as in `Tiles`. Not differentiable."""
    masses = over_tiles(impl).masses
    output = _tiles_like(features)
    for image, *made in zip(features, *output, strict=True):
        for tensor, found in zip(made, tiles.build(image, eps, masses), strict=True):
            tensor.copy_(found)
    return output


def _tiles_like(features: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, count, dims = features.shape
    total = tiles.tiles_of(count)
    return (
        features.new_empty(batch, dims, total * tiles.TILE),
        features.new_empty(batch, count, dtype=torch.int64),
        features.new_empty(batch, total * (total + 1), dtype=torch.int32),
        features.new_empty(batch, count),
        features.new_empty(batch, dtype=torch.float64),
    )


exact_build_tiles.register_fake(_tiles_like)


@opaque_operator("kernels::exact_apply_tiles")
def exact_apply_tiles(
    values: Tensor,
    points: Tensor,
    order: Tensor | None,
    kept: Tensor | None,
    impl: str,
    precision: str,
) -> Tensor:
    """`[B, N, C]`, `[B, D, T * TILE]` -> `[B, N, C]`."""
    output = values.new_empty(values.shape)
    apply = over_tiles(impl).apply
    for b, pairs in enumerate(_pairs(points, order, kept)):
        apply(values[b], pairs, precision, output[b])
    return output


exact_apply_tiles.register_fake(like_first)


@opaque_operator("kernels::exact_apply_tiles_backward")
def exact_apply_tiles_backward(
    grad: Tensor,
    values: Tensor,
    points: Tensor,
    order: Tensor | None,
    kept: Tensor | None,
    impl: str,
    precision: str,
) -> Tensor:
    """Gradient to the points, `[B, D, T * TILE]`."""
    output = points.new_empty(points.shape)
    gradient = over_tiles(impl).feature_gradient
    for b, pairs in enumerate(_pairs(points, order, kept)):
        gradient(grad[b], values[b], pairs, precision, output[b])
    return output


exact_apply_tiles_backward.register_fake(lambda grad, values, points, *_: like_first(points))


def _pairs(points: Tensor, *lists: Tensor | None) -> Iterator[tiles.Pairs]:
    """Of each image."""
    for b in range(len(points)):
        yield tiles.Pairs(points[b], *(None if some is None else some[b] for some in lists))


def _save_tiles(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.impl, ctx.precision = inputs
    ctx.save_for_backward(*tensors)


def _tiles_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, *rest = ctx.saved_tensors
    arguments = *rest, ctx.impl, ctx.precision
    to_values, to_points, *_ = ctx.needs_input_grad
    return (
        exact_apply_tiles(grad, *arguments) if to_values else None,
        exact_apply_tiles_backward(grad, values, *arguments) if to_points else None,
        *(None,) * 4,
    )


exact_apply_tiles.register_autograd(_tiles_gradients, setup_context=_save_tiles)
