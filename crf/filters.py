"""The Gaussian filters of a mean field: one object for all images of a batch, whatever the method.

LatticeFilter     on permutohedral lattices, built once
TileFilter        all pairs, the points sorted once, negligible tiles skipped
PairFilter        all pairs, differentiable in the features too
SeparableFilter   over landmark colours, chosen once
GridFilter        positions on a grid: a pass over rows and one over columns
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kernels.gaussian import (
    Lattice,
    Precision,
    Separable,
    Tiles,
    apply_lattice,
    apply_separable,
    apply_tiles,
    build_separable,
    build_tiles,
    gaussian_filter,
)


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
    """One lattice for each image, or a single one for all of them.

    Point i of the lattices is pixel order[i] of the values; None: i.
    """

    lattices: Sequence[Lattice]
    order: Tensor | None = None
    reverse: bool = False  # blur in reverse

    def __call__(self, values: Tensor) -> Tensor:
        if not len(values):
            return values
        ordered = values if self.order is None else values[:, self.order]
        filtered = torch.stack(
            [
                apply_lattice(self.of_image(b), image, reverse=self.reverse)
                for b, image in enumerate(ordered)
            ]
        )
        if self.order is None:
            return filtered
        return torch.empty_like(filtered).index_copy(1, self.order, filtered)

    def transposed(self) -> LatticeFilter:
        return LatticeFilter(self.lattices, self.order, not self.reverse)

    def of_image(self, index: int) -> Lattice:
        return self.lattices[index if len(self.lattices) > 1 else 0]


@dataclass(frozen=True)
class PairFilter:
    """All pairs of `features` `[B, N, D]`, in full; differentiable in these too."""

    features: Tensor
    precision: Precision

    def __call__(self, values: Tensor) -> Tensor:
        return gaussian_filter(values, self.features, method="exact", precision=self.precision)

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
