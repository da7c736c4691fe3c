"""The permutohedral lattice as data: what a build produces and what every filter reads.

N points in D dimensions are placed in the lattice of Adams, Baek and Davis, "Fast High-Dimensional
Filtering Using the Permutohedral Lattice" (2010). Each point lies in a simplex with D+1 corners;
the corners that any point touches are the vertices, one row of values each.

Points may be built in P consecutive parts, one per thread. A vertex that several parts touch has
one row in each of them: the first is its owner, the others are ghosts. Splatting then needs no
locks (a part adds only to its own rows); ghosts are added to their owners before the blur and
copied back after it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

WORD = 2**62  # a packed word of a key stays below this


@dataclass(frozen=True)
class Lattice:
    """A built lattice. It holds no values, so one lattice serves any number of filterings.

    R is the number of rows, ghosts included. Row index R stands for "no vertex": buffers have
    R + 1 rows, and the last one is always zero.

    Attributes:
        corners: int32 `[N, D+1]`, the row of each corner of each point's simplex.
        weights: float `[N, D+1]`, barycentric weights of those corners; each row sums to 1.
        neighbours: int32 `[D+1, 2, R]`, the rows before and after each row along each of the D+1
            blur directions; R where there is none. Ghosts have none. None where only the CPU's
            implementation filters on it, which reads the chains.
        ghosts: int32 `[G, 2]`, pairs (ghost row, owner row), ordered by part.
        parts: int64 `[P+1, 3]`, first point, first row and first ghost of each part; the last
            entry is (N, R, G).
        chains: int32 `[D+1, L]`, the neighbours told once more, for a blur in place: the rows of
            each direction one after another along its chains, R after the end of each chain and
            up to L; rows without neighbours are left out. None where the build did not need them.
        entries: int32 `[E]`, the numbers point * (D+1) + corner of all corners, sorted by row: what
            each row sums, for a splat without atomics. Numbers of N * (D+1) and beyond are of
            points that carry no values. This and what follows: None where the build did not need
            them.
        pieces: int32 `[3, P]`, consecutive entries [first, last) of one row, and the row that is
            their sum; from R on it is a partial row, and -1 stands for no piece.
        sums: int32 `[3, S]`, partial rows [first, last) and the row that is their sum, -1 for none.
    """

    corners: torch.Tensor
    weights: torch.Tensor
    neighbours: torch.Tensor | None
    ghosts: torch.Tensor
    parts: torch.Tensor
    chains: torch.Tensor | None = None
    entries: torch.Tensor | None = None
    pieces: torch.Tensor | None = None
    sums: torch.Tensor | None = None

    @property
    def num_points(self) -> int:
        """N, the number of points."""
        return self.corners.shape[0]

    @property
    def num_dims(self) -> int:
        """D, the number of feature dimensions."""
        return self.corners.shape[1] - 1

    @property
    def num_rows(self) -> int:
        """R, the number of rows of values: vertices and ghosts."""
        if self.neighbours is None:
            return int(self.parts[-1, 1])
        return self.neighbours.shape[2]

    @property
    def num_vertices(self) -> int:
        """Distinct lattice vertices, ghosts not counted."""
        return self.num_rows - self.ghosts.shape[0]

    @property
    def known_neighbours(self) -> torch.Tensor:
        """`neighbours`, which all but the CPU's implementation need.

        Raises:
            ValueError: they were left out.
        """
        if self.neighbours is None:
            raise ValueError(
                "this lattice was left without its neighbours, to save memory: filter on it with "
                'impl="cpu", or build it anew'
            )
        return self.neighbours

    @property
    def scale(self) -> float:
        """1 / (1 + 2^-D), the constant that makes the blur's weights sum as a Gaussian's."""
        return 1.0 / (1.0 + 2.0**-self.num_dims)


def elevation_scales(dims: int) -> tuple[float, ...]:
    """Diagonal of the elevation matrix, times the blur's standard deviation (p. 5 and 6)."""
    spread = float(np.float32(math.sqrt(2 / 3) * (dims + 1)))
    return tuple(float(np.float32(spread / math.sqrt(j * (j + 1)))) for j in range(1, dims + 1))


def word_strides(extents: Sequence[int]) -> list[list[int]]:
    """Strides `[W, digits]` that pack the digits of a key, the first the least significant.

    In as few words as stay below WORD; 0 for the digits of other words.
    """
    words: list[list[int]] = []
    product = WORD
    for digit, extent in enumerate(extents):
        if product * extent > WORD:
            words.append([0] * len(extents))
            product = 1
        words[-1][digit] = product
        product *= extent
    return words
