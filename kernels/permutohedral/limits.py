"""Which points a permutohedral lattice can hold, and whether its parts are of the points it has."""

import numpy as np
import torch

from kernels.permutohedral.lattice import Lattice


class UnplaceableError(ValueError):
    """Features that a lattice cannot hold.

    Attributes:
        limit: what their largest magnitudes may add up to over the dimensions.
    """

    def __init__(self, message: str, limit: float) -> None:
        super().__init__(message)
        self.limit = limit


def require_placeable(features: torch.Tensor) -> None:
    """Refuse `features` `[..., N, D]` that a lattice in their dtype cannot hold.

    A point's coordinates in the lattice are at most sqrt(2/3) (D+1) sum_d |f_d|. From half the
    inverse of the dtype's epsilon on, rounding may put it outside any simplex. Below, keys are
    far from overflow.
    """
    count, dims = features.shape[-2:]
    require_indexable(count, dims)
    if not features.numel():
        return
    low, high = _extremes(features)
    if max(-low, high) * dims <= _limit(dims, features.dtype):  # the common case; false for NaN
        return
    reach = float(features.flatten(0, -2).abs().amax(0).double().sum())
    refuse_unplaceable(reach, dims, features.dtype)


def require_indexable(count: int, dims: int) -> None:
    """Refuse more points than 32-bit indices can name, before anything is computed."""
    if count * (dims + 1) >= 2**31:
        raise ValueError(
            f"features have {count} points in {dims} dimensions: a lattice indexes points * "
            f"(dimensions + 1) in 32 bits, {2**31 - 1} at most. Filter the image in parts."
        )


def require_own_parts(lattice: Lattice) -> None:
    """Refuse parts of other points, rows or ghosts: code compiled for a CPU trusts them."""
    if lattice.parts.device.type != "cpu" or torch.compiler.is_compiling():
        return
    parts = lattice.parts.numpy()
    ends = [lattice.num_points, lattice.num_rows, len(lattice.ghosts)]
    if parts[0].any() or parts[-1].tolist() != ends or (np.diff(parts, axis=0) < 0).any():
        raise ValueError(
            f"lattice.parts must lead from [0, 0, 0] to {ends}, the points, rows and ghosts of the "
            f"lattice, without a step back, not over {parts.tolist()!r:.80}"
        )


def refuse_unplaceable(reach: float, dims: int, dtype: torch.dtype) -> None:
    """Refuse too large features: their largest magnitudes add up to `reach` over the dimensions."""
    limit = _limit(dims, dtype)
    if not reach < float("inf"):  # NaN too
        raise UnplaceableError("features must be finite, but hold NaN or Inf", limit)
    if reach > limit:
        raise UnplaceableError(
            f"features are too large for a lattice in {dtype}: their largest magnitudes "
            f"add up to {reach:.3g} over {dims} dimensions, {limit:.3g} at most. Use a larger "
            "sigma (features are divided by it), move them towards zero, or use float64.",
            limit,
        )


def _limit(dims: int, dtype: torch.dtype) -> float:
    return 0.5 / torch.finfo(dtype).eps / ((2 / 3) ** 0.5 * (dims + 1))


def _extremes(features: torch.Tensor) -> tuple[float, float]:
    """The least and the greatest value, NaN if there is one.

    By NumPy on a CPU: after a parallel operation torch's threads spin for milliseconds, on the
    cores that the build wants next.
    """
    if features.device.type == "cpu":
        array = features.detach().numpy()
        return float(array.min()), float(array.max())
    low, high = torch.aminmax(features)
    return float(low), float(high)
