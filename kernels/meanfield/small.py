"""Mean field of a small image on a CPU: a call of compiled code a term, and one for all updates.

What is computed is what `permutohedral.cpu` and `cpu` compute, bit for bit, by the same functions.
For a small image these take longer in Python, between their calls, than in the calls; here one call
does what several do there, in room for as many vertices as the points can have. Without a large
image's threads, and without a chance to stop it half way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from kernels._numba.jit import Kernel
from kernels.meanfield.cpu import BLOCK, LOG2E, OFF, folded
from kernels.meanfield.term import Term
from kernels.permutohedral.cpu import MIN_PART, KeyNumbers, aligned_rows, lanes_for
from kernels.permutohedral.lattice import Lattice
from kernels.permutohedral.limits import require_placeable

Array: TypeAlias = np.ndarray[Any, Any]

MOST = 2**14  # points: with more, Python's share is small and the room for all vertices is not

COMPILED = "kernels.meanfield.compiled_small"
SET_UP = Kernel(COMPILED, "set_up", returns=True)
MEAN_FIELD = Kernel(COMPILED, "mean_field")


def is_small(count: int) -> bool:
    """Whether an image of so many points is for this module: one that threads would not share."""
    return count <= (MOST if torch.get_num_threads() == 1 else MIN_PART)


def reference_lattice(
    features: torch.Tensor, order: torch.Tensor | None
) -> tuple[Lattice, torch.Tensor]:
    """`filters.reference_lattice` of float32 CPU `features` `[N, D]`, and its mass F(1) `[N, 1]`.

    Point i of the features and of the lattice is row order[i] of the mass; None: i.
    """
    count, dims = features.shape
    corners_each, together = dims + 1, -(-count // 4) * 4
    placed = count + (count < together)  # pydensecrf fills up its last four with the origin
    points = np.zeros((placed, dims), np.float32)
    points[:count] = features.numpy()
    require_placeable(torch.from_numpy(points))
    keys = KeyNumbers.of(points)
    words = len(keys.words)

    entries = placed * corners_each
    slots = 1 << (2 * entries).bit_length()
    corners = np.empty((placed, corners_each), np.int32)
    weights = np.empty((placed, corners_each), np.float32)
    neighbours = np.empty((corners_each, 2, entries), np.int32)
    chains = np.empty((corners_each, entries + entries // 2 + 1), np.int32)
    lengths = np.empty(corners_each + 1, np.int64)
    mass = np.empty((count, 1), np.float32)
    lanes = lanes_for(1)
    visits = np.arange(count) if order is None else order.numpy()
    rows = SET_UP(
        visits, points, *keys.arrays, np.empty((slots, words), np.int64), np.empty(slots, np.int32),
        corners, weights, np.empty(entries, np.uint64), np.empty((2, entries), np.int32),
        neighbours, chains, lengths, aligned_rows(entries + 2, lanes), 1.0 / (1.0 + 2.0**-dims),
        np.empty_like(mass), mass, keys.simplex, keys.words, lanes,
    )  # fmt: skip
    arrays = (
        corners[:count], weights[:count], neighbours[:, :, :rows], np.empty((0, 2), np.int32),
        np.array([[0, 0, 0], [count, rows, 0]]), chains[:, : lengths[-1]],
    )  # fmt: skip
    return Lattice(*map(torch.from_numpy, arrays)), torch.from_numpy(mass)


def mean_field(
    unary: torch.Tensor,
    terms: Sequence[Term],
    iterations: int,
    order: torch.Tensor | None,
    marginals: bool,
    output: torch.Tensor,
) -> bool:
    """`cpu.mean_field` of one image where this module can do it; returns whether it did.

    It can where there is a term and an iteration, where points and lattices are a single part, and
    where no compatibility differs between labels. Terms are in the order of `unary` `[N, C]`.
    """
    count, labels = unary.shape
    if not terms or not iterations or not is_small(count):
        return False
    lattices = [term.filter.lattices[0] for term in terms]  # type: ignore[attr-defined]
    if any(len(x.parts) != 2 or len(x.ghosts) or x.chains is None for x in lattices):
        return False
    factors, differing = zip(*(folded(t.compatibility, marginals) for t in terms), strict=True)
    if any(matrix is not None for matrix in differing):
        return False

    gains = [f * x.scale * LOG2E for f, x in zip(factors, lattices, strict=True)]
    shared = all(g > 0 and t.before is t.after for g, t in zip(gains, terms, strict=True))
    gains_in = [math.sqrt(gain) if shared else 1.0 for gain in gains]
    gains_out = [math.sqrt(gain) if shared else gain for gain in gains]
    ends = np.cumsum([x.num_rows + 1 for x in lattices]) - 1  # of each, the row that stays zero
    offsets = np.concatenate([[0], ends[:-1] + 1])
    columns = sum(x.corners.shape[1] for x in lattices)
    lanes = lanes_for(labels)
    ones = np.broadcast_to(np.float32(1), count)
    splatting = np.empty((count, columns), np.float32)
    MEAN_FIELD(
        iterations, unary.numpy(), np.arange(count) if order is None else order.numpy(),
        tuple(x.corners.numpy() for x in lattices), tuple(x.weights.numpy() for x in lattices),
        tuple(ones if t.before is None else t.before.numpy().reshape(count) for t in terms),
        tuple(ones if t.after is None else t.after.numpy().reshape(count) for t in terms),
        tuple(x.chains.numpy() for x in lattices),  # type: ignore[union-attr]
        np.array(gains_in, np.float32), np.array(gains_out, np.float32), offsets, ends,
        np.empty_like(ends), np.empty((len(terms), -(-count // BLOCK)), np.int64),
        np.empty((2, count), np.float32), np.empty((count, columns), np.int32), splatting,
        splatting if shared else np.empty_like(splatting), aligned_rows(count, lanes),
        aligned_rows(int(ends[-1]) + 1, lanes), aligned_rows(int(ends[-1]) + 1, lanes),
        aligned_rows(BLOCK, lanes), np.float32(-LOG2E), np.float32(OFF), marginals,
        np.float32(1.0 if marginals else 1 / LOG2E), output.numpy(), lanes, (0,) * columns,
    )  # fmt: skip
    return True
