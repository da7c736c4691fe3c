"""The Gaussian sum over all pairs: validate, choose an implementation, call it."""

import torch
from torch import Tensor

from kernels import dispatch, validate
from kernels.exact import ops, reference
from kernels.exact.tiles import Tiles, place
from kernels.validate import Precision


def filter(
    values: Tensor,
    features: Tensor,
    *,
    precision: Precision = "ieee",
    eps: float = 0.0,
    check_finite: bool = True,
    impl: str = "auto",
) -> Tensor:
    """Filter each image by all pairs of its points: `[B, N, C]`, `[B, N, D]` -> `[B, N, C]`.

    Arguments and errors are those of `kernels.gaussian_filter(method="exact")`.
    """
    validate.check_pair(values, features, ndim=3)
    check_eps(eps)
    choice = dispatch.choose("exact", impl, device=values.device, dtype=values.dtype)
    validate.check_precision(precision, choice.impl, values.device)
    compiling = torch.compiler.is_compiling()
    if check_finite and not compiling:
        validate.check_finite(features)
    if choice.impl == "reference" and eps == 0:
        return (ops.exact_filter if compiling else reference.filter)(values, features)
    order = kept = None
    if eps > 0:
        _, order, kept, *_ = ops.exact_build_tiles(features.detach(), eps, choice.impl)
    points = place(features, order)  # those of the operator have no gradient
    filtered: Tensor = ops.exact_apply_tiles(values, points, order, kept, choice.impl, precision)
    return filtered


def build_tiles(features: Tensor, *, eps: float = 0.0, impl: str = "auto") -> Tiles:
    """Sort points into tiles and find the pairs of tiles that an exact filter must not skip.

    With eps above 0 this costs about as much as one unpruned filter of few channels, and tables
    over all pairs of tiles of 128 points. `torch.compile(fullgraph=True)` takes the call whole, and
    it does not wait for a GPU but for the check that features are finite.

    Args:
        features: float32 or float64 `[N, D]`, N at least 1, already divided by sigma.
        eps: as in `gaussian_filter`.
        impl: `"reference"` (any device), `"triton"` (CUDA, float32), or `"auto"`.

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
    validate.check_points("features", features, ndim=2)
    validate.check_shape("features", features, "[N, D] with N at least 1", len(features) > 0)
    validate.check_no_gradient(
        features,
        "tiles have gradients to the values only, not to the features: use "
        'gaussian_filter(..., method="exact") to differentiate them, or features.detach()',
    )
    check_eps(eps)
    if not torch.compiler.is_compiling():
        validate.check_finite(features)
    return build_finite(features, eps, impl)


def build_finite(features: Tensor, eps: float, impl: str = "auto") -> Tiles:
    """`build_tiles` of what is known to be fit, which spares a GPU's host the wait."""
    choice = dispatch.choose("exact", impl, device=features.device, dtype=features.dtype)
    batch = features.detach()[None]
    if eps > 0:
        points, order, kept, mass, bound = ops.exact_build_tiles(batch, eps, choice.impl)
        return Tiles(points[0], order[0], kept[0], mass[0], bound[0], eps)
    ones, points = torch.ones_like(batch[..., :1]), place(batch, None)
    mass = ops.exact_apply_tiles(ones, points, None, None, choice.impl, "ieee")
    bound = torch.zeros((), dtype=torch.float64, device=features.device)
    return Tiles(points[0], None, None, mass[0, :, 0], bound, 0.0)


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
    validate.check_points("values", values, ndim=2)
    validate.check_rows(values, tiles.num_points, "the tiles")
    validate.check_alike("values", values, "tiles.points", tiles.points)
    choice = dispatch.choose("exact", impl, device=values.device, dtype=values.dtype)
    validate.check_precision(precision, choice.impl, values.device)
    order, kept = (None if t is None else t[None] for t in (tiles.order, tiles.kept))
    arguments = values[None], tiles.points[None], order, kept, choice.impl, precision
    return ops.exact_apply_tiles(*arguments)[0]


def check_eps(eps: float) -> None:
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 <= eps < 1:
        raise ValueError(f"eps must be a number in [0, 1), not {eps!r}")
