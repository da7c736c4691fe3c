"""The public functions of Gaussian filtering: validate, choose an implementation, call it.

    y_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j

`exact` sums over all pairs. `permutohedral` approximates the sum on a lattice, in time linear in
the number of points: Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the
Permutohedral Lattice" (2010). `separable` approximates it by landmark colours and a coarse grid of
positions (kernels/gaussian/separable/factors.py). Points come before channels: values `[B, N, C]`,
features `[B, N, D]`, already divided by sigma.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kernels import runtime
from kernels.gaussian import ops, permutohedral
from kernels.gaussian.exact import eager as all_pairs
from kernels.gaussian.exact import ops as exact_ops
from kernels.gaussian.exact.tiles import Tiles
from kernels.gaussian.permutohedral import batch
from kernels.gaussian.permutohedral.lattice import Lattice
from kernels.gaussian.separable import error as separable_errors
from kernels.gaussian.separable import landmarks
from kernels.gaussian.separable import ops as separable_ops
from kernels.gaussian.separable.error import SeparableError
from kernels.gaussian.separable.factors import Separable

Method = Literal["permutohedral", "exact", "separable"]
METHODS: tuple[Method, ...] = ("permutohedral", "exact", "separable")
Precision = Literal["ieee", "tf32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("ieee", "tf32", "bf16")


def gaussian_filter(
    values: Tensor,
    features: Tensor,
    *,
    method: Method = "permutohedral",
    impl: str = "auto",
    precision: Precision = "ieee",
    eps: float = 0.0,
    spatial_dims: int = 2,
    tolerance: float = landmarks.TOLERANCE,
    max_landmarks: int = landmarks.MOST,
    check_finite: bool = True,
) -> Tensor:
    """Filter each image's points by the Gaussian of their distance in feature space.

    Args:
        values: float32 or float64 `[B, N, C]`; images of a batch do not mix.
        features: `[B, N, D]`, already divided by sigma, of the dtype and device of the values.
        method: `"exact"`, all N^2 pairs, block by block so that memory stays bounded;
            `"separable"`, landmark colours and a grid of positions, to a tolerance; or
            `"permutohedral"`, the lattice. In five dimensions its sums are about 0.6 of the exact
            ones throughout: divide by the filtered ones where that matters. On a GPU the host waits
            once for each build, which serves as many images as have 2^22 points.
        impl: `"eager"` (any device), `"triton"` (CUDA, float32), for the lattice also `"cpu"`
            (numba, float32), or `"auto"` (`kernels.runtime.choose(method, ...)` tells its choice).
        precision: of `"exact"` and `"separable"` by Triton: of the products of weights and values,
            `"ieee"` float32, or on tensor cores `"tf32"` or `"bf16"`. Sums are float32 in each.
        eps: of `"exact"`: row i may leave out pairs that hold at most eps * n_i of its mass
            n_i = sum_j exp(-|f_i - f_j|^2 / 2): it is then off by at most eps * n_i * max|v|, on
            top of rounding. 0 leaves nothing out. Which pairs these are is found out at each
            call, by a pass over all of them: `build_tiles` keeps it for many.
        spatial_dims, tolerance, max_landmarks: of `"separable"`, as in `build_separable`.
        check_finite: of `"exact"`: whether to look for NaN and Inf in the features, for which the
            host waits on a GPU. Turn it off for features that were looked at before; where they are
            not finite after all, neither is the result.

    Returns:
        `[B, N, C]`, contiguous. Differentiable in the values and, with `"exact"`, in the features.
        `torch.compile(fullgraph=True)` takes the call whole, except the lattice's `impl="eager"`.

    Raises:
        TypeError: a dtype other than float32 and float64.
        ValueError: shapes, dtypes or devices that do not fit; an unknown `method` or `impl`, or one
            that cannot run here; features that hold NaN or Inf, are too large for a lattice, or
            require a gradient that only `"exact"` has; a `precision` or `eps` that is
            unknown, that the method does not have, or that the implementation cannot compute in;
            with `eps` above 0, more points than its tables have room for.
        NotSeparable: (a ValueError) what `build_separable` cannot factor.
    """
    _check(values, features, ndim=3)
    if method not in METHODS:
        raise ValueError(f"method must be one of {list(METHODS)}, not {method!r}")
    choice = runtime.choose(method, impl, device=values.device, dtype=values.dtype)
    _check_eps(eps)
    if method == "exact":
        _check_precision(precision, choice.impl, values.device)
        if check_finite and not torch.compiler.is_compiling():
            _check_finite(features)
        return _filter_all_pairs(values, features, choice.impl, precision, eps)
    if method == "separable":
        if eps != 0:
            raise ValueError('eps is an option of method="exact", not of "separable"')
        _check_precision(precision, choice.impl, values.device)
        _check_factors(features, spatial_dims, tolerance, max_landmarks)
        options = spatial_dims, float(tolerance), max_landmarks, choice.impl, precision
        return separable_ops.filter(values, features, *options)
    if precision != "ieee" or eps != 0:
        raise ValueError(f'precision and eps are options of method="exact", not of {method!r}')
    _check_no_gradient(features)
    if choice.impl in ("cpu", "triton"):
        return ops.permutohedral_filter(values, features, False, choice.impl)
    permutohedral.require_placeable(features)
    lattices = permutohedral.implementation(choice.impl)
    filtered = [
        lattices.filter(lattices.build(f), v) for v, f in zip(values, features, strict=True)
    ]
    return torch.stack(filtered) if filtered else values.new_zeros(values.shape)


def build_lattice(features: Tensor, *, impl: str = "auto") -> Lattice:
    """Build the permutohedral lattice of some points, to filter on it any number of times.

    Its shape depends on the data, so that `torch.compile` cannot take this call whole;
    `gaussian_filter` it can. On a GPU the host waits for the shape, once for all images of a batch,
    and for nothing else.

    Args:
        features: float32 or float64 `[N, D]`, already divided by sigma; or `[B, N, D]`, the points
            of several images, which share no vertex and so do not mix. The lattice has B * N points
            then, image after image: its values are `[B * N, C]`, and each image is filtered as it
            is on a lattice of its own.
        impl: as in `gaussian_filter`.

    Raises:
        TypeError: a dtype other than float32 and float64.
        ValueError: another shape, an `impl` that cannot run here, features that hold NaN or Inf,
            are too large, or require a gradient, which the lattice does not have.
    """
    batched = isinstance(features, Tensor) and features.ndim == 3
    _check_points("features", features, ndim=3 if batched else 2)
    _check_no_gradient(features)
    choice = runtime.choose("permutohedral", impl, device=features.device, dtype=features.dtype)
    build = permutohedral.implementation(choice.impl).build
    images = max(1, len(features)) if batched else 1
    points = features.detach().flatten(0, -2)
    if choice.impl == "triton":  # which learns whether they are placeable as it waits
        lattice: Lattice = build(points, images)
        return lattice
    permutohedral.require_placeable(points)
    return batch.joined([build(of_image) for of_image in points.chunk(images)])


def repeat_lattice(lattice: Lattice, images: int) -> Lattice:
    """The lattice of a batch of images that all have the points of `lattice`, built once for all.

    It is `build_lattice(features.expand(images, -1, -1))`, if `lattice` is that of `features`.

    Raises:
        ValueError: `images` is not positive, or more points than 32-bit indices can name.
    """
    if images < 1:
        raise ValueError(f"images must be at least 1, not {images}")
    corners = lattice.num_dims + 1
    entries = lattice.corners.numel() if lattice.entries is None else len(lattice.entries)
    permutohedral.require_indexable(images * (entries // corners), lattice.num_dims)
    return batch.repeated(lattice, images)


def apply_lattice(
    lattice: Lattice, values: Tensor, *, reverse: bool = False, impl: str = "auto"
) -> Tensor:
    """Filter `values` on a lattice: splat, blur and slice, the scale 1 / (1 + 2^-D) included.

    Args:
        lattice: of `build_lattice`, by any implementation.
        values: `[N, C]`, of the dtype and device of the lattice's weights; the N points of a batch
            are those of its first image, then of its second.
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
    if choice.impl in ("cpu", "triton"):
        return ops.permutohedral_apply(
            values,
            lattice.corners,
            lattice.weights,
            lattice.neighbours,
            lattice.ghosts,
            lattice.parts,
            lattice.chains,
            reverse,
            lattice.entries,
            lattice.pieces,
            lattice.sums,
            choice.impl,
        )
    filtered: Tensor = permutohedral.implementation(choice.impl).filter(lattice, values, reverse)
    return filtered


def build_tiles(features: Tensor, *, eps: float = 0.0, impl: str = "auto") -> Tiles:
    """Sort points into tiles and find the pairs of tiles that an exact filter must not skip.

    With eps above 0 this costs about as much as one unpruned filter of few channels, and tables
    over all pairs of tiles of 128 points. `torch.compile(fullgraph=True)` takes the call whole, and
    it does not wait for a GPU but for the check that features are finite.

    Args:
        features: float32 or float64 `[N, D]`, N at least 1, already divided by sigma.
        eps: as in `gaussian_filter`.
        impl: `"eager"` (any device), `"triton"` (CUDA, float32), or `"auto"`.

    Returns:
        Tiles, for `apply_tiles` by any implementation; `Tiles.mass` are the sums n, `Tiles.bound`
        is the largest share of its mass that any row can lose, at most eps, and `Tiles.share` the
        share of pairs that is kept.

    Raises:
        TypeError: a dtype other than float32 and float64.
        ValueError: another shape, no points, more than the tables have room for, an `impl` that
            cannot run here, an `eps` outside [0, 1), features that hold NaN or Inf, or that
            require a gradient, which tiles do not have.
    """
    _check_points("features", features, ndim=2)
    if len(features) == 0:
        raise ValueError("features must have at least one point")
    if features.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "tiles have gradients to the values only, not to the features: use "
            'gaussian_filter(..., method="exact") to differentiate them, or features.detach()'
        )
    _check_eps(eps)
    choice = runtime.choose("exact", impl, device=features.device, dtype=features.dtype)
    if not torch.compiler.is_compiling():
        _check_finite(features)
    batch = features.detach()[None]
    if eps > 0:
        order, kept, mass, bound = exact_ops.exact_build_tiles(batch, eps, choice.impl)
        return Tiles(batch[0], order[0], kept[0], mass[0], bound[0], eps)
    ones = torch.ones_like(batch[..., :1])
    mass = exact_ops.exact_apply_tiles(ones, batch, None, None, choice.impl, "ieee")
    bound = torch.zeros((), dtype=torch.float64, device=features.device)
    return Tiles(batch[0], None, None, mass[0, :, 0], bound, 0.0)


def apply_tiles(
    tiles: Tiles, values: Tensor, *, precision: Precision = "ieee", impl: str = "auto"
) -> Tensor:
    """Filter `values` on tiles: y_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j over the pairs kept.

    Nothing here waits for a GPU: CUDA graphs may hold the call.

    Args:
        tiles: of `build_tiles`, by any implementation.
        values: `[N, C]`, of the dtype and device of the tiles.
        precision: as in `gaussian_filter`.
        impl: as in `build_tiles`.

    Returns:
        `[N, C]`, contiguous, differentiable in the values any number of times.

    Raises:
        TypeError: a dtype other than float32 and float64.
        ValueError: values that do not fit the tiles, an `impl` that cannot run here, or a
            `precision` that it cannot compute in.
    """
    _check_points("values", values, ndim=2)
    if len(values) != tiles.num_points:
        raise ValueError(
            f"values must have one row for each of the tiles' {tiles.num_points} points, "
            f"not shape {tuple(values.shape)}"
        )
    _check_alike("values", values, "tiles.features", tiles.features)
    choice = runtime.choose("exact", impl, device=values.device, dtype=values.dtype)
    _check_precision(precision, choice.impl, values.device)
    order, kept = (None if t is None else t[None] for t in (tiles.order, tiles.kept))
    arguments = values[None], tiles.features[None], order, kept, choice.impl, precision
    return exact_ops.exact_apply_tiles(*arguments)[0]


def build_separable(
    features: Tensor,
    *,
    spatial_dims: int = 2,
    tolerance: float = landmarks.TOLERANCE,
    max_landmarks: int = landmarks.MOST,
) -> Separable:
    """Factor the kernel of some points, to filter by it any number of times.

    Its shape depends on the data, so that `torch.compile` cannot take this call whole;
    `gaussian_filter` it can. On a GPU the host waits for sizes, as a rule four times, however many
    landmarks there are. Deterministic.

    Args:
        features: float32 or float64 `[N, D]`, already divided by sigma.
        spatial_dims: the first so many features are positions, 1 to 3; the others, "colours", may
            be none.
        tolerance: how much of a point's own weight, 1, the landmarks may miss, on average over
            points that they were not made of: `Separable.residual`. From 1e-4 to 0.5. Sums over
            the grid are off by about a tenth of it an axis, a third where an axis spans less than
            a few sigmas. Single sums may be off by more: `separable_error` measures that. On
            photographs 0.2 is about as accurate as the lattice, once normalised.
        max_landmarks: how many landmarks may be taken, at least 1.

    Raises:
        TypeError: a dtype other than float32 and float64.
        ValueError: another shape, an option out of its range, features that hold NaN or Inf, or
            that require a gradient, which the separable filter does not have.
        NotSeparable: (a ValueError) the tolerance takes more than `max_landmarks`, or the grid more
            memory than it may: its message says how many, and how to mend it.
    """
    _check_points("features", features, ndim=2)
    _check_factors(features, spatial_dims, tolerance, max_landmarks)
    return separable_ops.build(features.detach(), spatial_dims, tolerance, max_landmarks)


def apply_separable(
    separable: Separable, values: Tensor, *, precision: Precision = "ieee", impl: str = "auto"
) -> Tensor:
    """Filter `values` by a factored kernel, which is symmetric: its gradient is itself.

    Args:
        separable: of `build_separable`.
        values: `[N, C]`, of the dtype and device of the features.
        precision: as in `gaussian_filter`.
        impl: `"eager"` (any device), `"triton"` (CUDA, float32), or `"auto"`.

    Returns:
        `[N, C]`, contiguous, differentiable in the values any number of times. Two calls give the
        same bits.

    Raises:
        TypeError: a dtype other than float32 and float64.
        ValueError: values that do not fit the points, an `impl` that cannot run here, or a
            `precision` that it cannot compute in.
    """
    _check_points("values", values, ndim=2)
    if len(values) != separable.num_points:
        raise ValueError(
            f"values must have one row for each of the {separable.num_points} points, "
            f"not shape {tuple(values.shape)}"
        )
    _check_alike("values", values, "separable.landmarks", separable.landmarks)
    choice = runtime.choose("separable", impl, device=values.device, dtype=values.dtype)
    _check_precision(precision, choice.impl, values.device)
    return separable_ops.apply(separable, values, choice.impl, precision)


def separable_error(
    separable: Separable,
    features: Tensor,
    values: Tensor,
    *,
    sample: int = 512,
    precision: Precision = "ieee",
    impl: str = "auto",
) -> SeparableError:
    """How far `apply_separable` is off, at `sample` random points, as a share of each one's mass.

    Args:
        separable: of `build_separable`, of these features.
        features: `[N, D]`.
        values: `[N, C]`, such as marginals: in [0, 1], the error is that of what is normalised.
        sample: how many rows of the exact filter to compute, at least 1; the same ones each time.
        precision, impl: of `apply_separable`.

    Raises:
        TypeError, ValueError: as `apply_separable`; features that do not fit the values, or none.
    """
    _check(values, features, ndim=2)
    if sample < 1 or not len(values):
        raise ValueError(f"sample and points must be at least 1, not {sample} of {len(values)}")
    with torch.no_grad():
        filtered = apply_separable(separable, values, precision=precision, impl=impl)
        return separable_errors.measure(filtered, values, features, sample)


def _check_factors(
    features: Tensor, spatial_dims: int, tolerance: float, max_landmarks: int
) -> None:
    if features.requires_grad and torch.is_grad_enabled():
        raise ValueError(separable_ops.NO_FEATURE_GRADIENT)
    most = min(3, features.shape[-1])
    if not 1 <= spatial_dims <= most:
        raise ValueError(
            f"spatial_dims must be 1 to {most} of the {features.shape[-1]} features, "
            f"not {spatial_dims}"
        )
    least, largest = landmarks.TOLERANCES
    if not least <= tolerance <= largest:
        raise ValueError(f"tolerance must be from {least:g} to {largest:g}, not {tolerance!r}")
    if max_landmarks < 1:
        raise ValueError(f"max_landmarks must be at least 1, not {max_landmarks}")


def _filter_all_pairs(
    values: Tensor, features: Tensor, impl: str, precision: str, eps: float
) -> Tensor:
    if impl == "eager" and eps == 0:
        compiling = torch.compiler.is_compiling()
        return (exact_ops.exact_filter if compiling else all_pairs.filter)(values, features)
    order = kept = None
    if eps > 0:
        order, kept, *_ = exact_ops.exact_build_tiles(features.detach(), eps, impl)
    return exact_ops.exact_apply_tiles(values, features, order, kept, impl, precision)


def _check_eps(eps: float) -> None:
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 <= eps < 1:
        raise ValueError(f"eps must be a number in [0, 1), not {eps!r}")


def _check_precision(precision: str, impl: str, device: torch.device) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {list(PRECISIONS)}, not {precision!r}")
    if precision != "ieee" and impl != "triton":
        raise ValueError(
            f"precision={precision!r} needs impl='triton', which needs CUDA: impl={impl!r} "
            "computes in the dtype of the values"
        )
    if precision == "bf16" and device.type == "cpu":
        raise ValueError("Triton's interpreter cannot compute in bf16: it multiplies the raw bits")


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
