"""Gaussian filtering by any method: a thin choice over `exact`, `permutohedral` and `separable`.

    y_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j

Points come before channels: values `[B, N, C]`, features `[B, N, D]`, already divided by sigma.
"""

from typing import Literal

from torch import Tensor

from kernels import exact, permutohedral, separable, validate
from kernels.separable import landmarks
from kernels.validate import Precision

Method = Literal["permutohedral", "exact", "separable"]
METHODS: tuple[Method, ...] = ("permutohedral", "exact", "separable")


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
        impl: `"reference"` (any device), `"triton"` (CUDA, float32), for the lattice also `"cpu"`
            (numba, float32), or `"auto"` (`kernels.dispatch.choose(method, ...)` tells its choice).
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
        `torch.compile(fullgraph=True)` takes the call whole, but for the lattice's
        `impl="reference"`.

    Raises:
        TypeError: a dtype other than float32 and float64.
        ValueError: shapes, dtypes or devices that do not fit; an unknown `method` or `impl`, or one
            that cannot run here; features that hold NaN or Inf, are too large for a lattice, or
            require a gradient that only `"exact"` has; a `precision` or `eps` that is
            unknown, that the method does not have, or that the implementation cannot compute in;
            with `eps` above 0, more points than its tables have room for.
        NotSeparable: (a ValueError) what `build_separable` cannot factor.
    """
    validate.check_option("method", method, METHODS)
    exact.check_eps(eps)
    if method == "exact":
        return exact.filter(
            values, features, precision=precision, eps=eps, check_finite=check_finite, impl=impl
        )
    if eps != 0:
        raise ValueError(f'eps is an option of method="exact", not of {method!r}')
    if method == "separable":
        return separable.filter(
            values,
            features,
            spatial_dims=spatial_dims,
            tolerance=tolerance,
            max_landmarks=max_landmarks,
            precision=precision,
            impl=impl,
        )
    if precision != "ieee":
        raise ValueError(f'precision is an option of "exact" and "separable", not of {method!r}')
    return permutohedral.filter(values, features, impl=impl)
