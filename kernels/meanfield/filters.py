"""The Gaussian filters of a mean field: one object for all images of a batch, whatever the method.

LatticeFilter     on permutohedral lattices, built once
TileFilter        all pairs, the points sorted once, negligible tiles skipped
PairFilter        all pairs, differentiable in the features too
SeparableFilter   over landmark colours, chosen once
GridFilter        positions on a grid: short convolutions along rows and along columns
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kernels import exact
from kernels.dispatch import choose, implementation
from kernels.exact import Tiles, apply_tiles
from kernels.exact.api import build_finite
from kernels.permutohedral import Lattice, apply_lattice, build_lattices, repeat_lattice
from kernels.permutohedral.limits import require_own_parts, require_placeable
from kernels.separable import Separable, apply_separable, band, landmarks, ops
from kernels.separable.api import convolve
from kernels.validate import Precision

SIDE = 16  # pixels of a tile


class Filter(Protocol):
    """A Gaussian filter F for each image of a batch."""

    def __call__(self, values: Tensor) -> Tensor:
        """F(values), `[B, N, C]`."""
        ...

    def transposed(self) -> Filter:
        """The transpose of F; F itself, unless it is not symmetric."""
        return self


@dataclass(frozen=True)
class LatticeFilter(Filter):
    """On permutohedral lattices, each over all points of the next one or more images.

    Point i of an image is pixel order[i] of its values; None: i.
    """

    lattices: Sequence[Lattice]
    order: Tensor | None = None
    reverse: bool = False  # blur in reverse
    impl: str = "auto"  # of `apply_lattice`

    @classmethod
    def over(cls, features: Tensor, together: int) -> LatticeFilter:
        """The filter of `features` `[B, N, D]`, `together` images on a lattice."""
        groups = features.split(together) if len(features) else ()
        return cls([reference_lattice(group) for group in groups])

    def repeated(self, batch: int, together: int) -> LatticeFilter:
        """This filter of one image for each image of a batch, `together` of them on a lattice."""
        (lattice,) = self.lattices
        sizes = [min(together, batch - first) for first in range(0, batch, together)]
        made = {size: repeat_lattice(lattice, size) for size in set(sizes)}
        return replace(self, lattices=[made[size] for size in sizes])

    def __call__(self, values: Tensor) -> Tensor:
        if not len(values):
            return values
        ordered = in_order(values, self.order)
        points = ordered.flatten(0, 1)
        if len(self.lattices) == 1:
            whole = self._on(self.lattices[0], points)
        else:
            groups = points.split([lattice.num_points for lattice in self.lattices])
            whole = torch.cat(list(map(self._on, self.lattices, groups)))
        return out_of_order(whole.view(values.shape), self.order)

    def _on(self, lattice: Lattice, points: Tensor) -> Tensor:
        """F of one group of images, `[N, C]`."""
        fits = len(points) == lattice.num_points and points.dtype == lattice.weights.dtype
        if fits and points.device.type == "cpu" and not _recorded(points):
            # Without the operator and its checks, which take longer than a small image.
            require_own_parts(lattice)
            choice = choose("permutohedral", self.impl, device=points.device, dtype=points.dtype)
            filter = implementation("permutohedral", choice.impl).filter
            filtered: Tensor = filter(lattice, points.contiguous(), self.reverse)
            return filtered
        return apply_lattice(lattice, points, reverse=self.reverse, impl=self.impl)

    def transposed(self) -> LatticeFilter:
        return replace(self, reverse=not self.reverse)


@dataclass(frozen=True)
class PairFilter(Filter):
    """All pairs of `features` `[B, N, D]`, in full; differentiable in these too.

    They must be finite: nothing looks at them again.
    """

    features: Tensor
    precision: Precision

    def __call__(self, values: Tensor) -> Tensor:
        return exact.filter(values, self.features, precision=self.precision, check_finite=False)


@dataclass(frozen=True)
class TileFilter(Filter):
    """All pairs of each image, but for tiles of pairs that weigh next to nothing together."""

    tiles: Sequence[Tiles]
    precision: Precision

    @classmethod
    def over(cls, features: Tensor, precision: Precision, eps: float) -> TileFilter:
        """The filter of finite `features` `[B, N, D]`, each sum within eps of its mass."""
        return cls([build_finite(image, eps) for image in features], precision)

    def __call__(self, values: Tensor) -> Tensor:
        return _image_by_image(apply_tiles, self.tiles, values, self.precision)

    @property
    def mass(self) -> Tensor:
        """F(1), `[B, N, 1]`, all pairs counted; the tiles know it."""
        return torch.stack([tiles.mass for tiles in self.tiles])[..., None]


@dataclass(frozen=True)
class SeparableFilter(Filter):
    """Over landmarks of each image."""

    images: Sequence[Separable]
    precision: Precision

    @classmethod
    def over(
        cls, features: Tensor, spatial_dims: int, tolerance: float, precision: Precision,
        ranges: Sequence[Any] | None = None,
    ) -> SeparableFilter:  # fmt: skip
        """The filter of `features` `[B, N, D]`, the first `spatial_dims` of them positions.

        ranges: the least and the largest features of each image, where the host knows them.
        """
        options = spatial_dims, tolerance, landmarks.MOST, "auto"
        known = [None] * len(features) if ranges is None else ranges
        images = [ops.build(f.detach(), *options, r) for f, r in zip(features, known, strict=True)]
        return cls(images, precision)

    def __call__(self, values: Tensor) -> Tensor:
        return _image_by_image(apply_separable, self.images, values, self.precision)


@dataclass(frozen=True)
class GridFilter(Filter):
    """The Gaussian of positions on a grid: a convolution along x, then one along y.

    Once cut, each leaves out what `kernels.separable.band` says, less than rounding.
    """

    rows: Tensor  # exp(-d^2 / (2 sigma_y^2)) of rows d = 0, 1, ... apart
    columns: Tensor  # the same of columns, by sigma_x
    width: int  # W, in pixels

    @classmethod
    def of(cls, features: Tensor, width: int) -> GridFilter:
        """The filter of `features` `[1, H*W, 2]`, (x, y) / sigma of every pixel, not yet cut."""
        grid = features[0].unflatten(0, (-1, width))
        places = grid[:, 0, 1], grid[0, :, 0]
        rows, columns = ((x - x[:1]).square().mul(-0.5).exp() for x in places)
        return cls(rows, columns, width)

    def counts(self) -> Tensor:
        """How many weights of rows and of columns count: int64 `[2]`, not yet on the host."""
        least = band.negligible(self.rows.dtype)
        return torch.stack([(taps >= least).sum() for taps in (self.rows, self.columns)])

    def cut(self, down: int, across: int) -> GridFilter:
        """This filter with no more than so many weights."""
        return GridFilter(self.rows[:down], self.columns[:across], self.width)

    def __call__(self, values: Tensor) -> Tensor:
        rows = self.across(values).unflatten(1, (-1, self.width)).flatten(2)
        return convolve(rows, self.rows).reshape(values.shape)

    def across(self, values: Tensor) -> Tensor:
        """The convolution along x alone, of `values` `[B, H*W, C]`."""
        lines = values.reshape(-1, self.width, values.shape[2])
        return convolve(lines, self.columns).reshape(values.shape)


def _image_by_image(
    apply: Callable[..., Tensor], made: Sequence[Any], values: Tensor, precision: Precision
) -> Tensor:
    """`apply` what was made of each image to its values; those of a single one are not copied."""
    if not len(values):
        return values
    found = [apply(one, v, precision=precision) for one, v in zip(made, values, strict=True)]
    return found[0][None] if len(found) == 1 else torch.stack(found)


def in_order(values: Tensor, order: Tensor | None) -> Tensor:
    """The points of `values` `[B, N, C]` as lattices of that order hold them."""
    if order is None:
        return values
    if values.device.type == "cpu" and not _recorded(values):
        return torch.from_numpy(values.detach().numpy().take(order.numpy(), axis=1))
    return values[:, order]


def out_of_order(values: Tensor, order: Tensor | None) -> Tensor:
    """The inverse of `in_order`."""
    if order is None:
        return values
    if values.device.type == "cpu" and not _recorded(values):
        # By NumPy, as in `in_order`: torch's threads would spin on the cores that lattices want,
        # and hang in a process that was forked after they had run.
        found = np.empty_like(values.detach().numpy())
        found[:, order.numpy()] = values.detach().numpy()
        return torch.from_numpy(found)
    return torch.empty_like(values).index_copy(1, order, values)


def _recorded(values: Tensor) -> bool:
    """Whether torch must see what is done with the values."""
    return torch.compiler.is_compiling() or (values.requires_grad and torch.is_grad_enabled())


def pixel_order(height: int, width: int) -> Tensor:
    """Pixels y * width + x in the order of square tiles, and row by row within each: int64 `[N]`.

    Pixels that are near each other share lattice vertices, so that visiting them one after another
    finds the vertices in the cache.
    """
    # In NumPy: torch's threads would spin on the cores that the lattices want.
    pixels = np.arange(height * width).reshape(height, width)
    whole = width - width % SIDE
    ordered = [pixels[:0].ravel()]
    for first in range(0, height, SIDE):
        band = pixels[first : first + SIDE]
        tiles = band[:, :whole].reshape(len(band), -1, SIDE).swapaxes(0, 1)
        ordered += [tiles.ravel(), band[:, whole:].ravel()]
    return torch.from_numpy(np.concatenate(ordered))


def reference_lattice(features: Tensor) -> Lattice:
    """`build_lattice(features)` with exactly the vertices that pydensecrf's lattice has.

    pydensecrf places points four at a time and fills the last block with points at the origin.
    They carry no values, but their vertices take part in the blur.
    """
    return reference_lattices([features])[0]


def compiled_reference_lattice(features: Tensor) -> Lattice:
    """`reference_lattice` of float32 CPU `features` `[N, D]` for compiled code alone, without
    neighbours."""
    points = _in_blocks_of_four(features)
    require_placeable(points)
    lattice: Lattice = implementation("permutohedral", "cpu").build(points, keeps_neighbours=False)
    return _without_last_points(lattice, 1) if len(features) % 4 else lattice


def reference_lattices(features: Sequence[Tensor]) -> list[Lattice]:
    """`reference_lattice` of each of `features`, on a GPU with one wait for all."""
    lattices = build_lattices([_in_blocks_of_four(one) for one in features])
    return [
        _without_last_points(lattice, math.prod(one.shape[:-2])) if one.shape[-2] % 4 else lattice
        for lattice, one in zip(lattices, features, strict=True)
    ]


def _in_blocks_of_four(features: Tensor) -> Tensor:
    *batch, count, dims = features.shape
    if count % 4 == 0:
        return features
    if features.device.type == "cpu" and not features.requires_grad:
        # In NumPy: torch would hang in a process that was forked after it had run in parallel.
        points = features.numpy()
        return torch.from_numpy(np.concatenate([points, np.zeros_like(points[..., :1, :])], -2))
    origin = features.new_zeros(*batch, 1, dims)  # one has the vertices of several
    return torch.cat([features, origin], -2)


def _without_last_points(lattice: Lattice, images: int) -> Lattice:
    """The lattice without the last point of each image; all vertices stay."""
    if images == 1 and lattice.parts.device.type == "cpu":  # soon done, for small images
        x = lattice
        parts = x.parts.numpy().copy()
        parts[-1, 0] -= 1
        tables = x.neighbours, x.ghosts, torch.from_numpy(parts), x.chains
        return Lattice(x.corners[:-1], x.weights[:-1], *tables)
    count, corners = lattice.num_points // images, lattice.num_dims + 1
    entries = lattice.entries
    if entries is not None and images > 1:
        image, place = entries // (count * corners), entries % (count * corners)
        behind_all = lattice.corners.numel() - images * corners
        entries = torch.where(
            place < (count - 1) * corners,
            entries - image * corners,
            behind_all + image * corners + entries % corners,
        )
    left = lattice.parts.clone()
    left[:, 0] -= left[:, 0] // count
    return replace(
        lattice,
        corners=lattice.corners.unflatten(0, (images, count))[:, :-1].flatten(0, 1),
        weights=lattice.weights.unflatten(0, (images, count))[:, :-1].flatten(0, 1),
        parts=left,
        entries=entries,
    )
