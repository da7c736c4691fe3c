"""What a fully connected CRF is made of: its pairwise terms, and what they cost.

    E(x) = sum_i theta_i(x_i) + sum_{i<j} mu(x_i, x_j) [
        w1 exp(-|p_i - p_j|^2 / (2 sigma_xy^2) - |I_i - I_j|^2 / (2 sigma_rgb^2))     Bilateral
      + w2 exp(-|p_i - p_j|^2 / (2 sigma_xy^2))                                       Gaussian
      + w3 exp(-|f_i - f_j|^2 / 2) ]                                                  Pairwise

p is a position in pixels, I a colour in grey levels 0-255, f any features of one's own.

Source: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials" (2011), equation 3; Chen et al., "DeepLab", TPAMI 2018, equation 3. Features come in
the order of pydensecrf's DenseCRF2D, (x, y, r, g, b), one row a pixel, pixel y * width + x: a
lattice depends on that order a little.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from numbers import Real
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """The smoothness term: pixels that are near each other.

    Attributes:
        weight: what it weighs, w2 of the equation.
        sigma_xy: standard deviation in pixels, one number or (x, y).

    Raises:
        TypeError, ValueError: a weight that is not a finite number, a sigma that is not positive.
    """

    weight: float
    sigma_xy: float | tuple[float, float]

    def __post_init__(self) -> None:
        _check_number("weight", self.weight)
        _check_sigmas("sigma_xy", self.sigma_xy, 2)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Of (x, y)."""
        return _expand(self.sigma_xy, 2)

    def features(
        self, like: Tensor, sigmas: Tensor | None = None, origin: Sequence[int] | None = None
    ) -> Tensor:
        """`[1, H*W, 2]` (x, y) / sigma, the same for all maps of a batch `like` `[B, ..., H, W]`.

        sigmas: `[2]` to divide by instead of the term's own. origin: (y, x) of the first pixel.
        """
        sigmas = _filled(self.sigmas, like) if sigmas is None else sigmas
        return grid_positions(like.shape[-2:], like, origin)[None] / sigmas


@dataclass(frozen=True)
class Bilateral:
    """The appearance term: pixels that are near each other and of like colour.

    Attributes:
        weight: what it weighs, w1 of the equation.
        sigma_xy: standard deviation in pixels, one number or (x, y).
        sigma_rgb: standard deviation in grey levels 0-255, one number or (r, g, b).

    Raises:
        TypeError, ValueError: a weight that is not a finite number, a sigma that is not positive.
    """

    weight: float
    sigma_xy: float | tuple[float, float]
    sigma_rgb: float | tuple[float, float, float]

    def __post_init__(self) -> None:
        _check_number("weight", self.weight)
        _check_sigmas("sigma_xy", self.sigma_xy, 2)
        _check_sigmas("sigma_rgb", self.sigma_rgb, 3)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Of (x, y, r, g, b)."""
        return _expand(self.sigma_xy, 2) + _expand(self.sigma_rgb, 3)

    def features(
        self, images: Tensor, sigmas: Tensor | None = None, origin: Sequence[int] | None = None
    ) -> Tensor:
        """`[B, H*W, 5]` (x, y, r, g, b) / sigma of floating-point RGB `images` `[B, 3, H, W]`.

        sigmas: `[5]` to divide by instead of the term's own. origin: (y, x) of the first pixel.
        """
        sigmas = _filled(self.sigmas, images) if sigmas is None else sigmas
        positions = grid_positions(images.shape[2:], images, origin)
        positions = positions.expand(images.shape[0], -1, -1)
        colours = images.flatten(2).transpose(1, 2)
        return torch.cat([positions, colours], dim=2) / sigmas


@dataclass(frozen=True)
class Pairwise:
    """A term over features of one's own: depth, flow, the channels of a network.

    Attributes:
        name: the key of its features `[B, H*W, D]`, already divided by sigma, in
            `DenseCRF.forward(..., features={name: ...})`.
        weight: what it weighs, w3 of the equation.

    Raises:
        TypeError, ValueError: an empty name, or a weight that is not a finite number.
    """

    name: str
    weight: float

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name must be a non-empty string, not {self.name!r}")
        _check_number("weight", self.weight)


Potential = Gaussian | Bilateral | Pairwise


def grid_positions(
    shape: Sequence[int], like: Tensor, origin: Sequence[int] | None = None
) -> Tensor:
    """Coordinates of every point of a grid, `[N, S]`, the last axis first: (x, y) of `[H, W]`.

    Points run through the grid as memory does: pixel y * W + x. origin: of the first one, in the
    order of the shape; None: zeros.
    """
    starts = [0] * len(shape) if origin is None else list(origin)
    if len(starts) != len(shape):
        raise ValueError(f"origin must be {len(shape)} integers, one for each axis, not {origin!r}")
    axes = [
        torch.arange(start, start + size, dtype=like.dtype, device=like.device)
        for start, size in zip(starts, shape, strict=True)
    ]
    grids = torch.meshgrid(*axes, indexing="ij")
    return torch.stack(grids[::-1], dim=-1).flatten(0, -2)


def grid_features(
    shape: Sequence[int],
    sigma: float | Sequence[float],
    values: Tensor | None = None,
    sigma_values: float | Sequence[float] | None = None,
    origin: Sequence[int] | None = None,
) -> Tensor:
    """Features of a grid of any number of axes, for a `Pairwise` term: volumes, video, depth.

    Args:
        shape: sizes of the axes, as in logits `[B, C, *shape]`.
        sigma: standard deviation in grid points, one number or one for each axis, the last first:
            (x, y, z) of a volume `[depth, height, width]`.
        values: what tells points apart beside their place, `[B, channels, *shape]`: grey levels,
            depth, the channels of a network. None: only the place counts.
        sigma_values: its standard deviation, one number or one for each channel.
        origin: where the grid begins in a larger one, in the order of the shape; None: zeros.

    Returns:
        `[B, N, S]` or, with values, `[B, N, S + channels]`; B is 1 without values. float64 for
        float64 values, else float32. Differentiable in the values.

    Raises:
        TypeError, ValueError: shapes, sigmas or an origin that do not fit.

    Example:
        features = grid_features(scan.shape[2:], 4.0, scan, 30.0)       # [B, 1, D, H, W]
        layer = DenseCRF(3, gaussian=None, bilateral=None, pairwise=[Pairwise("scan", 5.0)])
        marginals = layer(logits, features={"scan": features})          # [B, 3, D, H, W]
    """
    shape = tuple(shape)
    _check_sigmas("sigma", sigma, len(shape))
    if (values is None) != (sigma_values is None):
        raise ValueError("values and sigma_values go together: give both or neither")
    if values is None:
        like = torch.empty(0)
        place = grid_positions(shape, like, origin)
        return (place / like.new_tensor(_expand(sigma, len(shape))))[None]
    if values.ndim != len(shape) + 2 or tuple(values.shape[2:]) != shape:
        raise ValueError(
            f"values must have shape [B, channels, {', '.join(map(str, shape))}], "
            f"not {tuple(values.shape)}"
        )
    assert sigma_values is not None
    _check_sigmas("sigma_values", sigma_values, values.shape[1])
    points = values.to(torch.float64 if values.dtype == torch.float64 else torch.float32)
    place = grid_positions(shape, points, origin) / points.new_tensor(_expand(sigma, len(shape)))
    levels = points.flatten(2).transpose(1, 2)
    levels = levels / points.new_tensor(_expand(sigma_values, values.shape[1]))
    return torch.cat([place.expand(len(points), -1, -1), levels], dim=2)


def compatibility_matrix(compatibility: Any, num_classes: int) -> Tensor | None:
    """The penalty mu `[C, C]` in float64, or None for `"potts"`, mu = 1 - identity.

    Raises:
        ValueError: neither "potts" nor a finite matrix of this shape.
    """
    if isinstance(compatibility, str):
        if compatibility != "potts":
            raise ValueError(f'compatibility must be "potts" or a matrix, not {compatibility!r}')
        return None
    shape = (num_classes, num_classes)
    try:
        matrix = torch.as_tensor(compatibility, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f'compatibility must be "potts" or a matrix of shape {shape}, not {compatibility!r}'
        ) from error
    if matrix.shape != shape:
        raise ValueError(
            f"compatibility must have shape {shape}, one row and column a class, "
            f"not {tuple(matrix.shape)}"
        )
    if not matrix.isfinite().all():
        raise ValueError("compatibility must be finite, but holds NaN or Inf")
    return matrix


def weighted_compatibility(weight: float, compatibility: Tensor | None, like: Tensor) -> Tensor:
    """What labels pay for a term: weight * mu `[C, C]`, or a diagonal `[C]`; like `[B, C, ...]`.

    Potts is the diagonal -weight: weight * (1 - identity) less what all labels pay alike, which
    the softmax cancels (and as pydensecrf has it, so that the KL divergence agrees).
    """
    if compatibility is None:
        return like.new_full((like.shape[1],), -float(weight))
    return weight * compatibility.to(like)


def _filled(numbers: Sequence[float], like: Tensor) -> Tensor:
    """A few numbers where `like` is, filled in there: a copy to a GPU would wait for it."""
    runs = [(float(number), len(list(equal))) for number, equal in groupby(numbers)]
    filled = [like.new_full((count,), number) for number, count in runs]
    return filled[0] if len(filled) == 1 else torch.cat(filled)


LARGEST = torch.finfo(torch.float32).max  # beyond it a weight or a sigma would be infinite


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, not {value!r}")
    try:
        held = abs(float(value)) <= LARGEST
    except OverflowError:  # an integer of hundreds of digits
        held = False
    if not held:
        raise ValueError(f"{name} must be finite in float32, not {value!r:.40}")


def _check_sigmas(name: str, value: Any, count: int) -> None:
    sigmas = _expand(value, count)
    if isinstance(value, str) or len(sigmas) != count:
        raise ValueError(f"{name} must be one number or {count} of them, not {value!r}")
    for sigma in sigmas:
        _check_number(name, sigma)
        if sigma <= 0:
            raise ValueError(f"{name} must be positive, not {value!r}")


def _expand(sigma: float | Sequence[float], count: int) -> tuple[float, ...]:
    """One sigma for each of `count` dimensions."""
    return tuple(sigma) if isinstance(sigma, Sequence) else (sigma,) * count
