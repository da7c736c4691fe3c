"""Mean field of a small image on a CPU, in as few steps of Python as it takes.

What is computed is what `permutohedral.cpu` and `cpu` compute, bit for bit, by the same compiled
functions. These cut their work into parts, and ask of each what there is to do; of a small image
that takes longer than the work. Here everything is a single part, for a single thread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from kernels._numba import threads
from kernels._numba.jit import Call
from kernels.meanfield.cpu import (
    BLOCK,
    FINISH,
    FOLD_CORNERS,
    LOG2E,
    UPDATE,
    fold_compatibility,
    is_relative,
    loaded_unary,
)
from kernels.meanfield.term import Term
from kernels.permutohedral.cpu import (
    BLUR_ALL,
    CONNECT,
    MIN_PART,
    PLACE_POINTS,
    SLICE_POINTS,
    SORT_BY_HASH,
    SPLAT_POINTS,
    KeyNumbers,
    aligned_rows,
    ended,
    lanes_for,
    room_for_chains,
)
from kernels.permutohedral.lattice import Lattice
from kernels.permutohedral.limits import require_placeable

Array: TypeAlias = np.ndarray[Any, Any]

MOST_POINTS = 2**14  # with more, nothing is won


def is_small(count: int) -> bool:
    """Whether an image of so many points is for this module: one that threads would not share."""
    return count <= (MOST_POINTS if threads.number() == 1 else MIN_PART)


def reference_lattice(
    features: torch.Tensor, order: torch.Tensor | None
) -> tuple[Lattice, torch.Tensor]:
    """The lattice of float32 CPU `features` `[N, D]`, and its mass F(1) `[N, 1]`.

    It is `filters.reference_lattice(features)`, without neighbours.

    Point i of the features and of the lattice is row order[i] of the mass; None: i.
    """
    count, dims = features.shape
    placed = count + (count % 4 > 0)  # pydensecrf fills up its last four with the origin
    points = np.zeros((dims, placed), np.float32)
    points[:, :count] = features.numpy().T
    require_placeable(torch.from_numpy(points.T))
    keys = KeyNumbers.of(points)

    corners = np.empty((placed, dims + 1), np.int32)
    weights = np.empty((placed, dims + 1), np.float32)
    full, vertices = 1, placed * max(1, dims - 1) + dims  # a photograph seldom has more
    while full:
        table = np.empty((2 << vertices.bit_length(), 1 + len(keys.words)), np.int64)
        table[:, 0] = -1
        progress = np.zeros(2, np.int64)
        full = PLACE_POINTS(
            progress, placed, points, *keys.arrays, table, corners, weights, keys.simplex,
            keys.words, keys.together,
        )  # fmt: skip
        vertices *= 2
    rows = int(progress[1])
    hashes, numbers = np.empty(rows, np.uint64), np.empty((2, rows), np.int32)
    SORT_BY_HASH(table, keys.multipliers, hashes, numbers, keys.words)
    chains, lengths = room_for_chains(dims + 1, rows)
    CONNECT(
        0, dims + 1, np.empty((1, 2, rows), np.int32), hashes, numbers,
        keys.slots_to_connect(table), keys.steps, keys.hashed_steps, chains, lengths, keys.words,
    )  # fmt: skip
    arrays = (
        corners[:count], weights[:count], np.empty((0, 2), np.int32),
        np.array([[0, 0, 0], [count, rows, 0]]), ended(chains, lengths, rows),
    )  # fmt: skip
    placing, shares, *others = map(torch.from_numpy, arrays)
    lattice = Lattice(placing, shares, None, *others)
    mass = _mass(*arrays[:2], arrays[-1], rows, lattice.scale)
    if order is None:
        return lattice, torch.from_numpy(mass)
    found = np.empty_like(mass)
    found[order.numpy()] = mass
    return lattice, torch.from_numpy(found)


def _mass(corners: Array, weights: Array, chains: Array, rows: int, scale: float) -> Array:
    """What a lattice of one part makes of ones, `[N, 1]`."""
    count, lanes = len(corners), lanes_for(1)
    values, buffer = np.ones((count, 1), np.float32), aligned_rows(rows + 2, lanes)
    unrolled = (0,) * corners.shape[1]
    SPLAT_POINTS(0, count, 0, rows + 1, values, corners, weights, buffer, lanes, unrolled)
    BLUR_ALL(False, chains, buffer[-1], buffer[:-1], lanes)
    SLICE_POINTS(0, count, buffer, corners, weights, scale, values, lanes, unrolled)
    return values


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
    costs = [fold_compatibility(term.compatibility, marginals) for term in terms]
    if any(matrix is not None for _, matrix in costs):
        return False

    visits = np.arange(count) if order is None else order.numpy()
    chains = [x.chains.numpy() for x in lattices]
    gains = [factor * x.scale * LOG2E for (factor, _), x in zip(costs, lattices, strict=True)]
    shared = all(g > 0 and t.before is t.after for g, t in zip(gains, terms, strict=True))
    sizes = [x.num_rows + 1 for x in lattices]  # each ends with a row that stays zero
    ends = np.cumsum(sizes)
    first_rows = ends - sizes
    columns = sum(x.corners.shape[1] for x in lattices)
    corners, splatting = (
        np.empty((count, columns), np.int32),
        np.empty((count, columns), np.float32),
    )
    slicing = splatting if shared else np.empty_like(splatting)
    limits = np.empty((len(terms), -(-count // BLOCK)), np.int64)
    column = 0
    for gain, term, x, first, limit in zip(gains, terms, lattices, first_rows, limits, strict=True):
        gain_in, gain_out = (math.sqrt(gain), math.sqrt(gain)) if shared else (1.0, gain)
        before = _scales(term.before, visits)
        after = before if term.after is term.before else _scales(term.after, visits)
        FOLD_CORNERS(
            0, count, limit, BLOCK, x.corners.numpy(), x.weights.numpy(), before, after,
            np.float32(gain_in), np.float32(gain_out), column, first, corners, splatting, slicing,
        )  # fmt: skip
        column += x.corners.shape[1]

    relative = is_relative(labels, marginals)
    lanes, unrolled = lanes_for(labels - relative), (0,) * columns
    logits, base = loaded_unary(unary.numpy(), visits, relative, [(0, count)])
    block = aligned_rows(BLOCK, lanes)
    rows, next_rows = (aligned_rows(int(ends[-1]), lanes) for _ in range(2))
    rows[ends - 1] = next_rows[ends - 1] = 0
    part = 0, count, first_rows, ends - 1, np.empty_like(ends), limits, block
    point = logits, base, relative, corners

    def update(coefficients: Array, now: Array, then: Array) -> Call:
        arguments = *part, *point, coefficients, splatting, now, then, True, lanes, unrolled
        return UPDATE.calls([()], arguments)[0]

    def blur(buffer: Array) -> list[Call]:
        blocks = np.split(buffer, ends[:-1])
        ranges = [(False, chain, block[0], of) for chain, of in zip(chains, blocks, strict=True)]
        return BLUR_ALL.calls(ranges, [lanes])

    steps = [
        [update(slicing, rows, next_rows), *blur(next_rows)],
        [update(slicing, next_rows, rows), *blur(rows)],
    ]
    update(slicing[:, :0], rows, next_rows)()
    for call in steps[0][1:]:
        call()
    for step in range(1, iterations):
        for call in steps[step % 2]:
            call()
    FINISH(
        0, count, block, *point, slicing, next_rows if iterations % 2 else rows, visits, marginals,
        np.float32(1.0 if marginals else 1 / LOG2E), output.numpy(), lanes, unrolled,
    )  # fmt: skip
    return True


def _scales(scale: torch.Tensor | None, visits: Array) -> Array:
    """A term's factors `[1, N, 1]`, or ones, in the order of the visits."""
    if scale is None:
        return np.broadcast_to(np.float32(1), len(visits))
    return scale.numpy().reshape(-1).take(visits)
