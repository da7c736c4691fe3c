"""The separable filter as opaque custom operators.

    kernels::separable_apply     waits for a GPU where impl="reference" alone, which is
                                 kernels::separable_apply_reference: graphs may hold the other
    kernels::separable_filter    factor an image's kernel and filter, image by image: for
                                 compilers, since the factors' sizes depend on data

The arguments are those of the public functions, already validated except for the values of the
features, which only exist when the operator runs. The filter is symmetric, so that the gradient to
the values is the same filter.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kernels import dispatch
from kernels.dispatch import WAITS
from kernels.operators import like_first, opaque_operator
from kernels.separable import factors, reference
from kernels.separable.factors import Separable

NO_FEATURE_GRADIENT = (
    "the separable filter has gradients to the values only, not to the features: "
    'use method="exact" to differentiate the features, or features.detach()'
)


def build(
    features: Tensor,
    spatial_dims: int,
    tolerance: float,
    max_landmarks: int,
    impl: str = "auto",
    ranges: Sequence[list[float]] | None = None,
) -> Separable:
    """`build_separable` by an implementation; features that hold NaN or Inf are refused."""
    choice = dispatch.choose("separable", impl, device=features.device, dtype=features.dtype)
    of = factors if choice.impl == "reference" else dispatch.implementation("separable", "triton")
    with torch.autocast(features.device.type, enabled=False):
        options = spatial_dims, tolerance, max_landmarks, of.own_weights, ranges
        return factors.build(features, *options)


def apply(separable: Separable, values: Tensor, impl: str, precision: str) -> Tensor:
    """Filter `values` `[N, C]`; differentiable."""
    s = separable
    return _operator_of(impl)(
        values, s.landmarks, s.mixing, s.axes, s.shape, s.order, s.colours, s.fractions,
        s.diagonal, s.pieces, s.starts, impl, precision,
    )  # fmt: skip


def _operator_of(impl: str) -> Callable[..., Tensor]:
    return separable_apply_reference if impl == "reference" else separable_apply


def filter(values: Tensor, features: Tensor, *options: Any) -> Tensor:
    """`separable_filter`, differentiable by the same factors where nothing is compiled."""
    if torch.compiler.is_compiling() or not len(values):
        return separable_filter(values, features, *options)
    spatial_dims, tolerance, max_landmarks, impl, precision = options
    filtered = []
    for image, points in zip(values, features.detach(), strict=True):
        separable = build(points, spatial_dims, tolerance, max_landmarks, impl)
        filtered.append(apply(separable, image, impl, precision))
    return torch.stack(filtered)


SCHEMA = (  # with the attributes of `Separable`, in their order
    "(Tensor values, Tensor landmarks, Tensor mixing, Tensor[] axes, SymInt[] shape, Tensor order, "
    "Tensor colours, Tensor fractions, Tensor diagonal, Tensor pieces, Tensor starts, str impl, "
    "str precision) -> Tensor"
)


def _apply(values: Tensor, *factors_and_how: Any) -> Tensor:
    """`[N, C]` -> `[N, C]`."""
    *tensors, impl, precision = factors_and_how
    factors = *tensors, 0.0  # the residual, which no filter asks for
    return _filter(Separable(*factors), values, impl, precision)


def _save_factors(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, landmarks, mixing, axes, ctx.shape, *tensors, ctx.impl, ctx.precision = inputs
    ctx.axes = len(axes)
    ctx.save_for_backward(landmarks, mixing, *tensors, *axes)


def _apply_again(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    landmarks, mixing, *tensors = ctx.saved_tensors
    tensors, axes = tensors[: -ctx.axes], tensors[-ctx.axes :]
    arguments = landmarks, mixing, axes, ctx.shape, *tensors, ctx.impl, ctx.precision
    return _operator_of(ctx.impl)(grad, *arguments), None, None, [None] * ctx.axes, *(None,) * 9


separable_apply = opaque_operator("kernels::separable_apply", schema=SCHEMA)(_apply)
separable_apply_reference = opaque_operator(
    "kernels::separable_apply_reference", schema=SCHEMA, tags=WAITS
)(_apply)
for _operator in (separable_apply, separable_apply_reference):
    _operator.register_fake(like_first)
    _operator.register_autograd(_apply_again, setup_context=_save_factors)


@opaque_operator("kernels::separable_filter", tags=WAITS)
def separable_filter(
    values: Tensor,
    features: Tensor,
    spatial_dims: int,
    tolerance: float,
    max_landmarks: int,
    impl: str,
    precision: str,
) -> Tensor:
    """`[B, N, C]`, `[B, N, D]` -> `[B, N, C]`."""
    output = values.new_empty(values.shape)
    for image, points, filtered in zip(values, features, output, strict=True):
        separable = build(points, spatial_dims, tolerance, max_landmarks, impl)
        filtered.copy_(_filter(separable, image, impl, precision))
    return output


separable_filter.register_fake(like_first)


def _save_features(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, features, *ctx.options = inputs
    ctx.save_for_backward(features)


def _filter_again(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    if ctx.needs_input_grad[1]:
        raise RuntimeError(NO_FEATURE_GRADIENT)
    (features,) = ctx.saved_tensors
    return separable_filter(grad, features, *ctx.options), *(None,) * 6


separable_filter.register_autograd(_filter_again, setup_context=_save_features)


def _filter(separable: Separable, values: Tensor, impl: str, precision: str) -> Tensor:
    with torch.autocast(values.device.type, enabled=False):
        if impl == "reference":
            return reference.filter(separable, values)
        triton = dispatch.implementation("separable", impl)
        filtered: Tensor = triton.filter(separable, values.contiguous(), precision)
        return filtered
