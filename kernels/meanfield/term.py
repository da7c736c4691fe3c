"""One pairwise term of a fully connected CRF, as mean field sees it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.permutohedral.lattice import Lattice


@dataclass(frozen=True)
class Term:
    """A Gaussian filter over the points, its normalisation, and what a pair of labels costs.

    The term adds `after * (F(before * Q) @ penalty^T)` to the energy, F being the lattice's filter.

    Attributes:
        lattice: the lattice over all N points.
        penalty: `[C]`, a diagonal, or `[C, C]`; entry (a, b) is what label a pays next to label b.
        before: `[N]`, what Q is multiplied by before the filter; None: 1.
        after: `[N]`, what the filter's result is multiplied by; None: 1.
    """

    lattice: Lattice
    penalty: torch.Tensor
    before: torch.Tensor | None = None
    after: torch.Tensor | None = None
