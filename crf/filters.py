"""The Gaussian filters of a mean field: one object for all images of a batch, whatever the method.

LatticeFilter     on permutohedral lattices, built once
TileFilter        all pairs, the points sorted once, negligible tiles skipped
PairFilter        all pairs, differentiable in the features too
SeparableFilter   over landmark colours, chosen once
GridFilter        positions on a grid: a pass over rows and one over columns
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from crf.potentials import reference_lattice
from kernels import (
    Lattice,
    Separable,
    Tiles,
    apply_lattice,
    apply_separable,
    apply_tiles,
    build_separable,
    build_tiles,
    gaussian_filter,
    repeat_lattice,
)
from kernels.validate import Precision


class Filter(Protocol):
    """A Gaussian filter F for each image of a batch."""

    def __call__(self, values: Tensor) -> Tensor:
        """F(values), `[B, N, C]`."""
        ...

    def transposed(self) -> Filter:
        """The transpose of F; F itself where it is symmetric."""
        ...


@dataclass(frozen=True)
class LatticeFilter:
    """On permutohedral lattices, each over all points of the next one or more images.

    Point i of an image is pixel order[i] of its values; None: i.
    """

    lattices: Sequence[Lattice]
    order: Tensor | None = None
    reverse: bool = False  # blur in reverse

    @classmethod
    def over(cls, features: Tensor, together: int, order: Tensor | None = None) -> LatticeFilter:
        """The filter of `features` `[B, N, D]` in that order, `together` images on a lattice."""
        groups = features.split(together) if len(features) else ()
        return cls([reference_lattice(group) for group in groups], order)

    def repeated(self, batch: int, together: int) -> LatticeFilter:
        """This filter of one image for each image of a batch, `together` of them on a lattice."""
        (lattice,) = self.lattices
        sizes = [min(together, batch - first) for first in range(0, batch, together)]
        made = {size: repeat_lattice(lattice, size) for size in set(sizes)}
        return replace(self, lattices=[made[size] for size in sizes])

    def __call__(self, values: Tensor) -> Tensor:
        if not len(values):
            return values
        ordered = values if self.order is None else values[:, self.order]
        groups = ordered.flatten(0, 1).split([lattice.num_points for lattice in self.lattices])
        filtered = [
            apply_lattice(lattice, group, reverse=self.reverse)
            for lattice, group in zip(self.lattices, groups, strict=True)
        ]
        whole = filtered[0] if len(filtered) == 1 else torch.cat(filtered)
        whole = whole.view(values.shape)
        if self.order is None:
            return whole
        return torch.empty_like(whole).index_copy(1, self.order, whole)

    def transposed(self) -> LatticeFilter:
        return replace(self, reverse=not self.reverse)


@dataclass(frozen=True)
class PairFilter:
    """All pairs of `features` `[B, N, D]`, in full; differentiable in these too.

    They must be finite: nothing looks at them again.
    """

    features: Tensor
    precision: Precision

    def __call__(self, values: Tensor) -> Tensor:
        return gaussian_filter(
            values, self.features, method="exact", precision=self.precision, check_finite=False
        )

    def transposed(self) -> PairFilter:
        return self


@dataclass(frozen=True)
class TileFilter:
    """All pairs of each image, but for tiles of pairs that weigh next to nothing together."""

    tiles: Sequence[Tiles]
    precision: Precision

    @classmethod
    def over(cls, features: Tensor, precision: Precision, eps: float) -> TileFilter:
        """The filter of `features` `[B, N, D]`, each sum within eps of its mass."""
        return cls([build_tiles(image, eps=eps) for image in features], precision)

    def __call__(self, values: Tensor) -> Tensor:
        if not len(values):
            return values
        return torch.stack([
            apply_tiles(tiles, image, precision=self.precision)
            for tiles, image in zip(self.tiles, values, strict=True)
        ])  # fmt: skip

    @property
    def mass(self) -> Tensor:
        """F(1), `[B, N, 1]`, all pairs counted; the tiles know it."""
        return torch.stack([tiles.mass for tiles in self.tiles])[..., None]

    def transposed(self) -> TileFilter:
        return self


@dataclass(frozen=True)
class SeparableFilter:
    """Over landmarks of each image."""

    images: Sequence[Separable]
    precision: Precision

    @classmethod
    def over(
        cls, features: Tensor, spatial_dims: int, tolerance: float, precision: Precision
    ) -> SeparableFilter:
        """The filter of `features` `[B, N, D]`, the first `spatial_dims` of them positions."""
        images = [
            build_separable(image, spatial_dims=spatial_dims, tolerance=tolerance)
            for image in features
        ]
        return cls(images, precision)

    def __call__(self, values: Tensor) -> Tensor:
        if not len(values):
            return values
        return torch.stack([
            apply_separable(separable, image, precision=self.precision)
            for separable, image in zip(self.images, values, strict=True)
        ])  # fmt: skip

    def transposed(self) -> SeparableFilter:
        return self


@dataclass(frozen=True)
class GridFilter:
    """The Gaussian of positions on a grid, which is a pass over columns times one over rows.

    Attributes:
        rows: `[H, H]`, exp(-(y - y')^2 / (2 sigma_y^2)).
        columns: `[W, W]`, the same for x.
    """

    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, features: Tensor, width: int) -> GridFilter:
        """The filter of `features` `[1, H*W, 2]`, (x, y) / sigma of every pixel."""
        grid = features[0].unflatten(0, (-1, width))

        def gaussian(x: Tensor) -> Tensor:
            return (x[:, None] - x).square().mul(-0.5).exp()

        return cls(gaussian(grid[:, 0, 1]), gaussian(grid[0, :, 0]))

    def __call__(self, values: Tensor) -> Tensor:
        grid = values.unflatten(1, (self.rows.shape[0], self.columns.shape[0]))
        across = self.columns @ grid
        return (self.rows @ across.flatten(2)).reshape(grid.shape).flatten(1, 2)

    def transposed(self) -> GridFilter:
        return self
