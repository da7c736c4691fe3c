"""Gaussian filtering by landmark colours and a coarse grid: validate, choose, call.

The sum y_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j to a tolerance: kernels/separable/factors.py has
the equations.
"""

import torch
from torch import Tensor

from kernels import dispatch, validate
from kernels.separable import band, error, landmarks, ops
from kernels.separable.error import SeparableError
from kernels.separable.factors import Separable
from kernels.validate import Precision


def filter(
    values: Tensor,
    features: Tensor,
    *,
    spatial_dims: int = 2,
    tolerance: float = landmarks.TOLERANCE,
    max_landmarks: int = landmarks.MOST,
    precision: Precision = "ieee",
    impl: str = "auto",
) -> Tensor:
    """Factor the kernel of each image, and filter `[B, N, C]` by features `[B, N, D]`.

    Arguments and errors are those of `kernels.gaussian_filter(method="separable")`.
    """
    validate.check_pair(values, features, ndim=3)
    choice = dispatch.choose("separable", impl, device=values.device, dtype=values.dtype)
    validate.check_precision(precision, choice.impl, values.device)
    _check_factors(features, spatial_dims, tolerance, max_landmarks)
    options = spatial_dims, float(tolerance), max_landmarks, choice.impl, precision
    return ops.filter(values, features, *options)


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
        TypeError: a dtype other than float32 and float64, or an option that is no integer.
        ValueError: another shape, an option out of its range, features that hold NaN or Inf, or
            that require a gradient, which the separable filter does not have.
        NotSeparable: (a ValueError) the tolerance takes more than `max_landmarks`, or the grid more
            memory than it may: its message says how many, and how to mend it.
    """
    validate.check_points("features", features, ndim=2)
    _check_factors(features, spatial_dims, tolerance, max_landmarks)
    return ops.build(features.detach(), spatial_dims, tolerance, max_landmarks)


def apply_separable(
    separable: Separable, values: Tensor, *, precision: Precision = "ieee", impl: str = "auto"
) -> Tensor:
    """Filter `values` by a factored kernel, which is symmetric: its gradient is itself.

    Args:
        separable: of `build_separable`.
        values: `[N, C]`, of the dtype and device of the features.
        precision: as in `gaussian_filter`.
        impl: `"reference"` (any device), `"triton"` (CUDA, float32), or `"auto"`.

    Returns:
        `[N, C]`, contiguous, differentiable in the values any number of times. Two calls give the
        same bits.

    Raises:
        TypeError: a dtype other than float32 and float64.
        ValueError: values that do not fit the points, an `impl` that cannot run here, or a
            `precision` that it cannot compute in.
    """
    validate.check_points("values", values, ndim=2)
    validate.check_rows(values, separable.num_points, "separable")
    validate.check_alike("values", values, "separable.landmarks", separable.landmarks)
    choice = dispatch.choose("separable", impl, device=values.device, dtype=values.dtype)
    validate.check_precision(precision, choice.impl, values.device)
    return ops.apply(separable, values, choice.impl, precision)


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
    validate.check_pair(values, features, ndim=2)
    validate.check_integer("sample", sample, least=1)
    validate.check_shape("values", values, "[N, C] with N at least 1", len(values) > 0)
    with torch.no_grad():
        filtered = apply_separable(separable, values, precision=precision, impl=impl)
        return error.measure(filtered, values, features, sample)


def convolve(values: Tensor, taps: Tensor) -> Tensor:
    """`band.convolve`, in Triton where that runs and no gradient is wanted."""
    choice = dispatch.choose("separable", device=values.device, dtype=values.dtype)
    recorded = torch.is_grad_enabled() and (values.requires_grad or taps.requires_grad)
    if choice.impl == "reference" or recorded or torch.compiler.is_compiling():
        return band.convolve(values, taps)
    triton = dispatch.implementation("separable", choice.impl)
    filtered: Tensor = triton.convolve(values.contiguous(), taps)
    return filtered


def _check_factors(
    features: Tensor, spatial_dims: int, tolerance: float, max_landmarks: int
) -> None:
    validate.check_no_gradient(features, ops.NO_FEATURE_GRADIENT)
    validate.check_integer("spatial_dims", spatial_dims, least=1, most=min(3, features.shape[-1]))
    least, largest = landmarks.TOLERANCES
    if not least <= tolerance <= largest:
        raise ValueError(f"tolerance must be from {least:g} to {largest:g}, not {tolerance!r}")
    validate.check_integer("max_landmarks", max_landmarks, least=1)
