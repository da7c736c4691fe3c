"""One pairwise term of a fully connected CRF, as mean field sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kernels.dispatch import choose, implementation
from kernels.meanfield.filters import (
    Filter,
    LatticeFilter,
    TileFilter,
    compiled_reference_lattice,
    reference_lattice,
)
from kernels.permutohedral import Lattice

Normalization = Literal["symmetric", "before", "after", "none"]
NORMALIZATIONS: tuple[Normalization, ...] = ("symmetric", "before", "after", "none")
TINY = 1e-20  # keeps the normalisation of a filter whose mass underflows finite


@dataclass(frozen=True)
class Term:
    """A Gaussian filter over the points, its normalisation, and what a pair of labels costs.

    The term adds `after * F(before * Q) @ compatibility^T` to the energy of each point.

    Attributes:
        filter: the Gaussian filter F, `[B, N, C]` -> `[B, N, C]`; see kernels/meanfield/filters.py.
        compatibility: `[C]`, a diagonal, or `[C, C]`, the weight of the term included; entry (a, b)
            is what label a pays next to label b.
        before: `[B, N, 1]`, what Q is multiplied by before the filter; None: 1. B may be 1 for all
            images.
        after: `[B, N, 1]`, what the filter's result is multiplied by; None: 1.
    """

    filter: Filter
    compatibility: Tensor
    before: Tensor | None = None
    after: Tensor | None = None

    @classmethod
    def normalized(
        cls, filter: Filter, compatibility: Tensor, normalization: Normalization, ones: Tensor
    ) -> Term:
        """A term whose filter is normalised by its own mass, F(`ones` `[B, N, 1]`)."""
        if normalization == "none":
            return cls(filter, compatibility)
        known = isinstance(filter, TileFilter) and len(filter.tiles) > 0
        mass = filter.mass if known else filter(ones)  # type: ignore[attr-defined]
        return cls(filter, compatibility, *normalizers(mass, normalization))

    @classmethod
    def on_cpu(
        cls,
        features: Tensor,
        order: Tensor | None,
        compatibility: Tensor,
        normalization: Normalization,
    ) -> Term:
        """A term of one image, on the lattice of its features `[N, D]`, which are in that order.

        Of float32 features the lattice is for compiled code alone: it has no neighbours.
        """
        small = implementation("meanfield", "small")
        if not _compiled_on_cpu(features):
            filter = LatticeFilter([reference_lattice(features)], order)
        elif small.is_small(len(features)):
            lattice, mass = small.reference_lattice(features, order)
            filter = LatticeFilter([lattice], order)
            return cls(filter, compatibility, *normalizers(mass[None], normalization))
        else:
            filter = LatticeFilter([compiled_reference_lattice(features)], order)
        ones = torch.from_numpy(np.ones((1, len(features), 1), features.numpy().dtype))
        return cls.normalized(filter, compatibility, normalization, ones)

    def energy(self, marginals: Tensor) -> Tensor:
        """What each label of each point pays, `[B, N, C]`."""
        values = self.filtered(marginals)
        if self.compatibility.ndim == 2:
            return values @ self.compatibility.T
        return values * self.compatibility

    def filtered(self, values: Tensor) -> Tensor:
        """The normalised filter of `values` `[B, N, C]`."""
        values = values if self.before is None else values * self.before
        values = self.filter(values)
        return values if self.after is None else values * self.after

    def transposed(self) -> Term:
        """The term whose energy is the transpose of this one's."""
        matrix = self.compatibility.ndim == 2
        compatibility = self.compatibility.T if matrix else self.compatibility
        return Term(self.filter.transposed(), compatibility, self.after, self.before)


def _compiled_on_cpu(features: Tensor) -> bool:
    """Whether it is compiled code for a CPU that runs over a lattice of these features, which reads
    its chains: not in Triton's interpreter, or another dtype."""
    return all(
        choose(operation, device=features.device, dtype=features.dtype).impl == "cpu"
        for operation in ("permutohedral", "meanfield")
    )


@dataclass(frozen=True)
class LatticeTerm:
    """A term whose points all lie on one lattice, as the fused implementations take it."""

    lattice: Lattice  # over the points of all images, M = B * N
    compatibility: Tensor  # as of `Term`
    before: Tensor | None = None  # `[M]`, in the order of the lattice, as after; None: 1
    after: Tensor | None = None


def normalizers(mass: Tensor, normalization: Normalization) -> tuple[Tensor | None, Tensor | None]:
    """What values are multiplied by before and after a filter F of `mass` n = F(1).

    symmetric: 1 / sqrt(n) before and after (pydensecrf's default); before, after: 1 / n on that
    side; none: nothing. None stands for 1.
    """
    scale = None if normalization == "none" else _inverse(mass, root=normalization == "symmetric")
    return None if normalization == "after" else scale, None if normalization == "before" else scale


def _inverse(mass: Tensor, root: bool) -> Tensor:
    """1 / n, or 1 / sqrt(n), in float64 and rounded once, as densecrf does."""
    traced = torch.compiler.is_compiling() or mass.requires_grad
    if mass.device.type == "cpu" and not traced:
        # In NumPy: torch's threads would spin on the cores that the next lattice wants.
        sums = mass.numpy()
        exact = sums.astype(np.float64)  # and in place: new memory takes longer than the arithmetic
        exact += TINY
        if root:
            np.sqrt(exact, out=exact)
        np.reciprocal(exact, out=exact)
        return torch.from_numpy(exact.astype(sums.dtype))
    wide = mass.double() + TINY
    return (wide.rsqrt() if root else wide.reciprocal()).to(mass.dtype)
