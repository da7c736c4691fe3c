"""The public functions of Gaussian filtering: validate, choose an implementation, call it.

    y_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j

`exact` sums over all pairs. `permutohedral` approximates the sum on a lattice, in time linear in
the number of points: Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the
Permutohedral Lattice" (2010). Points come before channels: values `[B, N, C]`, features
`[B, N, D]`, already divided by sigma.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kernels import runtime
from kernels.gaussian import exact, ops, permutohedral
from kernels.gaussian.permutohedral.lattice import Lattice

Method = Literal["permutohedral", "exact"]
METHODS: tuple[Method, ...] = ("permutohedral", "exact")


def gaussian_filter(
    values: Tensor, features: Tensor, *, method: Method = "permutohedral", impl: str = "auto"
) -> Tensor:
    """Filter each image's points by the Gaussian of their distance in feature space.

    Args:
        values: float32 or float64 `[B, N, C]`; images of a batch do not mix.
        features: `[B, N, D]`, already divided by sigma, of the dtype and device of the values.
        method: `"exact"`, all N^2 pairs, block by block so that memory stays bounded, or
            `"permutohedral"`, the lattice. In five dimensions its sums are about 0.6 of the exact
            ones throughout: divide by the filtered ones where that matters.
        impl: `"eager"` (any device), for the lattice also `"cpu"` (numba, float32), or `"auto"`
            (`kernels.runtime.choose(method, ...)` tells its choice).

    Returns:
        `[B, N, C]`, contiguous. Differentiable in the values and, with `"exact"`, in the features.
        `torch.compile(fullgraph=True)` takes the call whole, except the lattice's `impl="eager"`.

    Raises:
        TypeError: a dtype other than float32 and float64.
        ValueError: shapes, dtypes or devices that do not fit; an unknown `method` or `impl`, or one
            that cannot run here; features that hold NaN or Inf, are too large for a lattice, or
            require a gradient that the lattice does not have.
    """
    _check(values, features, ndim=3)
    if method not in METHODS:
        raise ValueError(f"method must be one of {list(METHODS)}, not {method!r}")
    choice = runtime.choose(method, impl, device=values.device, dtype=values.dtype)
    if method == "exact":
        if torch.compiler.is_compiling():
            return ops.exact_filter(values, features)
        _check_finite(features)
        return exact.filter(values, features)
    _check_no_gradient(features)
    if choice.impl == "cpu":
        return ops.permutohedral_filter(values, features, False)
    permutohedral.require_placeable(features)
    lattices = permutohedral.implementation(choice.impl)
    filtered = [
        lattices.filter(lattices.build(f), v) for v, f in zip(values, features, strict=True)
    ]
    return torch.stack(filtered) if filtered else values.new_zeros(values.shape)


def build_lattice(features: Tensor, *, impl: str = "auto") -> Lattice:
    """Build the permutohedral lattice of some points, to filter on it any number of times.

    Its shape depends on the data, so that `torch.compile` cannot take this call whole;
    `gaussian_filter` it can.

    Args:
        features: float32 or float64 `[N, D]`, already divided by sigma.
        impl: as in `gaussian_filter`.

    Raises:
        TypeError: a dtype other than float32 and float64.
        ValueError: another shape, an `impl` that cannot run here, features that hold NaN or Inf,
            are too large, or require a gradient, which the lattice does not have.
    """
    _check_points("features", features, ndim=2)
    _check_no_gradient(features)
    choice = runtime.choose("permutohedral", impl, device=features.device, dtype=features.dtype)
    permutohedral.require_placeable(features)
    lattice: Lattice = permutohedral.implementation(choice.impl).build(features.detach())
    return lattice


def apply_lattice(
    lattice: Lattice, values: Tensor, *, reverse: bool = False, impl: str = "auto"
) -> Tensor:
    """Filter `values` on a lattice: splat, blur and slice, the scale 1 / (1 + 2^-D) included.

    Args:
        lattice: of `build_lattice`, by any implementation.
        values: `[N, C]`, of the dtype and device of the lattice's weights.
        reverse: blur in the opposite order: the transpose of the filter, and its gradient.
        impl: as in `gaussian_filter`.

    Returns:
        `[N, C]`, contiguous, differentiable in the values any number of times.

    Raises:
        TypeError: a dtype other than float32 and float64.
        ValueError: values that do not fit the lattice, or an `impl` that cannot run here.
    """
    _check_points("values", values, ndim=2)
    if len(values) != lattice.num_points:
        raise ValueError(
            f"values must have one row for each of the lattice's {lattice.num_points} points, "
            f"not shape {tuple(values.shape)}"
        )
    _check_alike("values", values, "lattice.weights", lattice.weights)
    choice = runtime.choose("permutohedral", impl, device=values.device, dtype=values.dtype)
    if choice.impl == "cpu":
        return ops.permutohedral_apply(
            values,
            lattice.corners,
            lattice.weights,
            lattice.neighbours,
            lattice.ghosts,
            lattice.parts,
            lattice.chains,
            reverse,
        )
    filtered: Tensor = permutohedral.implementation(choice.impl).filter(lattice, values, reverse)
    return filtered


def _check(values: Tensor, features: Tensor, ndim: int) -> None:
    _check_points("values", values, ndim)
    _check_points("features", features, ndim)
    if features.shape[:-1] != values.shape[:-1]:
        raise ValueError(
            "features must have one row a point, as values have: values are "
            f"{tuple(values.shape)}, features {tuple(features.shape)}"
        )
    _check_alike("features", features, "values", values)


def _check_points(name: str, points: Tensor, ndim: int) -> None:
    layout = "[B, N, C]" if ndim == 3 else "[N, C]"
    if name == "features":
        layout = layout.replace("C", "D")
    if not isinstance(points, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(points).__name__}")
    if points.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{name} must be float32 or float64, not {points.dtype}: half precision does not hold "
            f"positions and sums; use {name}.float()"
        )
    if points.ndim != ndim or points.shape[-1] == 0:
        raise ValueError(
            f"{name} must have shape {layout} with a last dimension of at least 1, "
            f"not {tuple(points.shape)}"
        )


def _check_alike(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.dtype != other.dtype or tensor.device != other.device:
        raise ValueError(
            f"{name} ({tensor.dtype} on {tensor.device}) must have the dtype and device of "
            f"{other_name} ({other.dtype} on {other.device})"
        )


def _check_finite(features: Tensor) -> None:
    if not features.isfinite().all():
        raise ValueError("features must be finite, but hold NaN or Inf")


def _check_no_gradient(features: Tensor) -> None:
    if features.requires_grad and torch.is_grad_enabled():
        raise ValueError(ops.NO_FEATURE_GRADIENT)
