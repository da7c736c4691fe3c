"""The permutohedral lattice on a CPU, in numba: build, splat, blur and slice.

The lattice of `eager.py` (Adams, Baek and Davis 2010; rounding and blur order of Krähenbühl and
Koltun's densecrf), laid out for caches and threads:

- A thread takes a consecutive part of the points and numbers vertices as it meets them, so that
  points near each other use rows near each other. A vertex that an earlier part has too is a ghost
  (see `lattice.py`).
- A vertex key is D integers packed in mixed radix into as few 64-bit words as hold their ranges,
  which follow from the range of the features. A step along a blur direction, and from one corner
  of a simplex to the next, adds a constant to every word.
- The hash is linear in those words: a walk over the table in slot order meets the neighbours in
  slot order too, so that memory is read in streams and not at random.
- Rows of values have a width known at compile time, a multiple of 8 floats, and are handled as
  vectors (`kernels.simd`).
- A blur direction is done in place, along chains of vertices: one read and one write a row.

The compiled functions take ranges and release the GIL; `kernels.threads` runs them in parallel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch

from kernels import simd, threads
from kernels.gaussian.permutohedral.lattice import Lattice
from kernels.jit import kernel

Array: TypeAlias = np.ndarray[Any, Any]

MAX_LANES = 64  # more channels are filtered in groups: each width is compiled once
MIN_PART = 4096  # points: fewer are not worth a thread
MIN_PIECE = 8192  # rows of a blur: fewer are not worth a call
AHEAD = 12  # rows to prefetch ahead in the blur, about a memory latency's worth
WORD = 2**62  # a packed key word stays below this
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: multiples of it spread evenly


def build(features: torch.Tensor) -> Lattice:
    """Build the lattice of float32 CPU `features` `[N, D]`, divided by sigma and placeable."""
    points = np.ascontiguousarray(features.numpy())
    count, dims = points.shape
    scales = elevation_scales(dims)
    low, strides = pack_keys(points, scales)
    steps = strides.sum(0) - (dims + 1) * strides  # [D+1, words]: one step along each direction
    axes, words = (0,) * dims, (0,) * strides.shape[1]  # their lengths are compiled in
    multipliers = GOLDEN ** np.arange(1, 2 * strides.shape[1], 2, dtype=np.uint64)

    corners = np.empty((count, dims + 1), np.int32)
    weights = np.empty((count, dims + 1), np.float32)
    ranges = threads.split(count, min(threads.num_threads(), -(-count // MIN_PART)))
    tables = threads.run(
        _place_points, ranges, points, scales, low, strides, steps, multipliers, corners, weights,
        axes, words,
    )  # fmt: skip
    keys, ids, ghosts, parts = _merge(ranges, tables, multipliers, words)
    for (first, last), row in zip(ranges[1:], parts[1:-1, 1], strict=True):
        corners[first:last] += np.int32(row)

    rows = int(parts[-1, 1])
    neighbours = np.full((dims + 1, 2, rows), rows, np.int32)
    slots = threads.split(len(ids), threads.num_threads())
    threads.run(_find_neighbours, slots, keys, ids, steps, multipliers, neighbours, words)
    arrays = corners, weights, neighbours, ghosts, parts, _link_all(neighbours)
    return Lattice(*map(torch.from_numpy, arrays))


def filter(lattice: Lattice, values: torch.Tensor, reverse: bool = False) -> torch.Tensor:
    """Filter float32 CPU `values` `[N, C]`; `reverse` blurs in the opposite order (the adjoint)."""
    source = values.detach().numpy()
    output = np.empty_like(source, order="C")
    corners, weights = lattice.corners.numpy(), lattice.weights.numpy()
    parts = part_ranges(lattice)
    for first in range(0, source.shape[1], MAX_LANES):
        channels = slice(first, first + MAX_LANES)
        lanes = lanes_for(source[:, channels].shape[1])
        rows = aligned_rows(lattice.num_rows + 1, lanes)
        rows[-1] = 0
        threads.run(_splat, parts, source[:, channels], corners, weights, rows, lanes)
        blur([lattice], [rows], lanes, reverse)
        points = [(start, stop) for start, stop, _, _ in parts]
        threads.run(
            _slice, points, rows, corners, weights, lattice.scale, output[:, channels], lanes
        )
    return torch.from_numpy(output)


# Rows of values


def lanes_for(channels: int) -> tuple[int, ...]:
    """A tuple as long as a row of this many channels is wide: the next multiple of 8."""
    return (0,) * (-(-channels // 8) * 8)


def aligned_rows(count: int, lanes: tuple[int, ...]) -> Array:
    """An unset buffer `[count, width]` that starts at a cache line, as torch's allocator gives it.

    A vector that straddles two lines costs two accesses, and its store is slow to read back.
    """
    return torch.empty(count, len(lanes), dtype=torch.float32, device="cpu").numpy()


def part_ranges(lattice: Lattice) -> list[tuple[int, int, int, int]]:
    """First point, end point, first row and end row of each part."""
    parts = lattice.parts.tolist()
    return [(a[0], b[0], a[1], b[1]) for a, b in pairwise(parts)]


def blur(
    lattices: Sequence[Lattice], blocks: Sequence[Array], lanes: tuple[int, ...], reverse: bool
) -> None:
    """Blur the splatted rows `[R+1, width]` of each lattice in place.

    Afterwards ghosts equal their owners. Several lattices together cost one start of the threads.
    """
    ghosts = [lattice.ghosts.numpy() for lattice in lattices]
    bounds = [lattice.parts[:, 2].tolist() for lattice in lattices]
    for part in range(1, max(map(len, bounds)) - 1):  # an owner occurs once a part
        threads.run(_add_ghosts, [
            (bound[part] + start, bound[part] + stop, pairs, rows)
            for bound, pairs, rows in zip(bounds, ghosts, blocks, strict=True)
            if part + 1 < len(bound)
            for start, stop in _pieces(bound[part + 1] - bound[part])
        ], lanes)  # fmt: skip
    chains = [chains_of(lattice).numpy() for lattice in lattices]
    for step in range(max(map(len, chains))):
        threads.run(_blur_chains, [
            (start, stop, chain[len(chain) - 1 - step if reverse else step], rows)
            for chain, rows in zip(chains, blocks, strict=True)
            if step < len(chain)
            for start, stop in _pieces(chain.shape[1])
        ], lanes)  # fmt: skip
    threads.run(_copy_ghosts, [
        (start, stop, pairs, rows)
        for pairs, rows in zip(ghosts, blocks, strict=True)
        for start, stop in _pieces(len(pairs))
    ], lanes)  # fmt: skip


def _pieces(count: int) -> list[tuple[int, int]]:
    """range(count) in more pieces than threads, so that whoever is done early takes another."""
    pieces = threads.num_threads()
    return threads.split(count, max(pieces, min(8 * pieces, count // MIN_PIECE)))


@kernel()
def _splat(first, last, first_row, last_row, values, corners, weights, rows, lanes):
    """rows[corner] += weight * values, for the points of one part and into its own rows."""
    rows[first_row:last_row] = 0
    padded = np.zeros((1, rows.shape[1]), np.float32)
    for i in range(first, last):
        for c in range(values.shape[1]):
            padded[0, c] = values[i, c]
        point = simd.load(padded, 0, lanes)
        for k in range(corners.shape[1]):
            add_to_row(rows, corners[i, k], weights[i, k], point, lanes)


@kernel(inline="always")
def add_to_row(rows, row, weight, point, lanes):
    """rows[row] += weight * point."""
    simd.store(rows, row, simd.add_scaled(simd.load(rows, row, lanes), weight, point))


@kernel()
def _slice(first, last, rows, corners, weights, scale, output, lanes):
    """output = scale * the weighted sum of the corners' rows."""
    padded = np.empty((1, rows.shape[1]), np.float32)
    for i in range(first, last):
        point = simd.zero(lanes)
        for k in range(corners.shape[1]):
            weight = np.float32(scale * weights[i, k])
            point = simd.add_scaled(point, weight, simd.load(rows, corners[i, k], lanes))
        simd.store(padded, 0, point)
        for c in range(output.shape[1]):
            output[i, c] = padded[0, c]


@kernel()
def _blur_chains(first, last, chain, rows, lanes):
    """row + (before + after) / 2 in place, along the chains that begin in [first, last)."""
    none = rows.shape[0] - 1
    half = np.float32(0.5)
    i = first
    while 0 < i < last and chain[i - 1] != none:  # that chain began before
        i += 1
    while i < last:
        row = chain[i]
        previous = simd.zero(lanes)
        centre = simd.load(rows, row, lanes)
        while row != none:
            i += 1
            simd.prefetch(rows, chain[min(i + AHEAD, len(chain) - 1)], lanes)
            following = simd.load(rows, chain[i], lanes)
            total = simd.add_scaled(centre, half, previous)
            simd.store(rows, row, simd.add_scaled(total, half, following))
            previous, centre, row = centre, following, chain[i]
        i += 1


@kernel()
def _add_ghosts(first, last, ghosts, rows, lanes):
    for i in range(first, last):
        ghost, owner = ghosts[i, 0], ghosts[i, 1]
        total = simd.load(rows, owner, lanes)
        total = simd.add_scaled(total, np.float32(1), simd.load(rows, ghost, lanes))
        simd.store(rows, owner, total)


@kernel()
def _copy_ghosts(first, last, ghosts, rows, lanes):
    for i in range(first, last):
        simd.store(rows, ghosts[i, 0], simd.load(rows, ghosts[i, 1], lanes))


# Building


def chains_of(lattice: Lattice) -> torch.Tensor:
    """The lattice's chains; made here for a lattice that another build left without."""
    if lattice.chains is None:
        return torch.from_numpy(_link_all(lattice.neighbours.numpy()))
    return lattice.chains


def _link_all(neighbours: Array) -> Array:
    lists = threads.run(_link, [(before, after) for before, after in neighbours])
    length = max(len(chain) for chain in lists)
    chains = np.full((len(lists), length), neighbours.shape[2], np.int32)
    for row, chain in zip(chains, lists, strict=True):
        row[: len(chain)] = chain
    return chains


@kernel()
def _link(before, after):
    """The rows of one direction along its chains, each ended by R."""
    none = len(before)
    chain = np.empty(none + none // 2 + 1, np.int32)
    count = 0
    for head in range(none):
        if before[head] == none and after[head] != none:
            row = head
            while row != none:
                chain[count] = row
                count += 1
                row = after[row]
            chain[count] = none
            count += 1
    return chain[:count]


def elevation_scales(dims: int) -> Array:
    """Diagonal of the elevation matrix, times the blur's standard deviation (p. 5 and 6)."""
    index = np.arange(1, dims + 1, dtype=np.float64)
    spread = np.float32(math.sqrt(2 / 3) * (dims + 1))
    return (1 / np.sqrt(index * (index + 1)) * spread).astype(np.float32)


def pack_keys(points: Array, scales: Array) -> tuple[Array, Array]:
    """Lowest key `[D]` and strides `[D+1, words]` such that packed keys never collide.

    The range of a lattice coordinate follows from the ranges of the features; the margin holds the
    rounding to a vertex, the other corners of its simplex and their neighbours.
    """
    count, dims = points.shape
    columns = points.T if count else np.zeros((dims, 1))
    corner = np.array([[c.min() for c in columns], [c.max() for c in columns]], np.float64) * scales
    suffix = np.concatenate([np.cumsum(corner[:, ::-1], axis=1)[:, ::-1], np.zeros((2, 1))], axis=1)
    index = np.arange(1, dims)
    low, high = suffix[:, :dims].copy()
    low[1:] -= index * corner[1, :-1]
    high[1:] -= index * corner[0, :-1]
    margin = 4 * (dims + 1)
    low, high = np.floor(low) - margin, np.ceil(high) + margin
    words: list[list[int]] = []
    product = WORD
    strides: list[int] = []
    for extent in (int(h - w) + 1 for w, h in zip(low, high, strict=True)):
        if product * extent > WORD:
            words.append([])
            product = 1
        words[-1].append(len(strides))
        strides.append(product)
        product *= extent
    table = np.zeros((dims + 1, len(words)), np.int64)  # the last coordinate is not in the key
    for word, members in enumerate(words):
        table[members, word] = [strides[i] for i in members]
    return low.astype(np.int64), table


def _merge(
    ranges: list[tuple[int, int]], tables: list[Any], multipliers: Array, words: tuple[int, ...]
) -> tuple[Any, Any, Array, Array]:
    """One table for all parts, and the ghosts: vertices that an earlier part owns."""
    keys, ids, filled = tables[0]
    parts = np.zeros((len(ranges) + 1, 3), np.int64)
    parts[1] = ranges[0][1], filled, 0
    ghosts = [np.empty((0, 2), np.int32)]
    owned = filled
    for part, (local_keys, local_ids, local_filled) in enumerate(tables[1:], start=1):
        keys, ids = _grow(keys, ids, owned + local_filled, multipliers)
        pairs = _absorb(
            keys, ids, local_keys, local_ids, parts[part, 1], local_filled, multipliers, words
        )
        ghosts.append(pairs)
        owned += local_filled - len(pairs)
        parts[part + 1] = (
            ranges[part][1],
            parts[part, 1] + local_filled,
            parts[part, 2] + len(pairs),
        )
    return keys, ids, np.concatenate(ghosts), parts


@kernel()
def _place_points(
    first, last, points, scales, low, strides, steps, multipliers, corners, weights, axes, words
):
    """Find the simplex of points [first, last): write corner ids and weights, return the table."""
    dims = len(axes)
    inverse = np.float32(1) / np.float32(dims + 1)
    elevated = np.empty(dims + 1, np.float32)
    origin = np.empty(dims + 1, np.float32)  # the simplex's corner of remainder 0
    offset = np.empty(dims + 1, np.float32)  # from there to the point
    rank = np.empty(dims + 1, np.int64)
    ordered = np.empty(dims + 1, np.int64)  # coordinate of each rank
    key = np.empty(len(words), np.int64)
    hashed_steps = _hash_all(steps, multipliers)
    keys = np.empty((1 << 16, len(words)), np.int64)
    ids = np.full(1 << 16, -1, np.int32)
    filled = 0
    for i in range(first, last):
        total = np.float32(0)
        for j in range(dims, 0, -1):
            scaled = points[i, j - 1] * scales[j - 1]
            elevated[j] = total - np.float32(j) * scaled
            total += scaled
        elevated[0] = total

        excess = 0
        for j in range(dims + 1):
            nearest = np.rint(inverse * elevated[j])
            origin[j] = nearest * np.float32(dims + 1)
            offset[j] = elevated[j] - origin[j]
            excess += np.int64(nearest)
        for j in range(dims + 1):
            rank[j] = excess  # brings the rounded point back to the plane of zero sum
        for j in range(dims):
            for m in range(j + 1, dims + 1):
                less = np.int64(offset[j] < offset[m])
                rank[j] += less
                rank[m] += 1 - less
        for j in range(dims + 1):
            wrap = np.int64(rank[j] < 0) - np.int64(rank[j] > dims)
            rank[j] += wrap * (dims + 1)
            origin[j] += np.float32(wrap * (dims + 1))
            offset[j] = (elevated[j] - origin[j]) * inverse
            ordered[rank[j]] = j

        weights[i, 0] = offset[ordered[dims]] + (np.float32(1) - offset[ordered[0]])
        for r in range(1, dims + 1):
            weights[i, r] = offset[ordered[dims - r]] - offset[ordered[dims - r + 1]]

        hashed = np.uint64(0)
        for w in range(len(words)):
            key[w] = 0
            for j in range(dims):
                key[w] += (np.int64(origin[j]) - low[j]) * strides[j, w]
            hashed += np.uint64(key[w]) * multipliers[w]
        for r in range(dims + 1):
            if r > 0:
                direction = ordered[dims - r + 1]
                hashed += hashed_steps[direction]
                for w in range(len(words)):
                    key[w] += steps[direction, w]
            slot = _slot(hashed, len(ids))
            while ids[slot] >= 0:
                difference = np.int64(0)
                for w in range(len(words)):
                    difference |= keys[slot, w] ^ key[w]
                if difference == 0:
                    break
                slot = (slot + 1) & (len(ids) - 1)
            if ids[slot] < 0:
                for w in range(len(words)):
                    keys[slot, w] = key[w]
                ids[slot] = filled
                filled += 1
            corners[i, r] = ids[slot]
        if 2 * (filled + dims + 1) > len(ids):
            keys, ids = _grow(keys, ids, 2 * filled, multipliers)
    return keys, ids, filled


@kernel()
def _find_neighbours(first, last, keys, ids, steps, multipliers, neighbours, words):
    """For vertices in slots [first, last): the row after each, and so the row before that one."""
    hashed_steps = _hash_all(steps, multipliers)
    for j in range(len(steps)):
        for vertex in range(first, last):
            row = ids[vertex]
            if row < 0:
                continue
            hashed = hashed_steps[j]
            for w in range(len(words)):
                hashed += np.uint64(keys[vertex, w]) * multipliers[w]
            slot = _slot(hashed, len(ids))
            while ids[slot] >= 0:
                difference = np.int64(0)
                for w in range(len(words)):
                    difference |= keys[slot, w] ^ (keys[vertex, w] + steps[j, w])
                if difference == 0:
                    neighbours[j, 1, row] = ids[slot]
                    neighbours[j, 0, ids[slot]] = row
                    break
                slot = (slot + 1) & (len(ids) - 1)


@kernel()
def _absorb(keys, ids, local_keys, local_ids, first_row, filled, multipliers, words):
    """Add a part's vertices to the table; return (row, owner) of those it had already."""
    pairs = np.empty((filled, 2), np.int32)
    count = 0
    hashes = _hash_all(local_keys, multipliers)
    for local in range(len(local_ids)):
        if local_ids[local] < 0:
            continue
        row = first_row + local_ids[local]
        slot = _slot(hashes[local], len(ids))
        while ids[slot] >= 0:
            difference = np.int64(0)
            for w in range(len(words)):
                difference |= keys[slot, w] ^ local_keys[local, w]
            if difference == 0:
                break
            slot = (slot + 1) & (len(ids) - 1)
        if ids[slot] < 0:
            for w in range(len(words)):
                keys[slot, w] = local_keys[local, w]
            ids[slot] = row
        else:
            pairs[count, 0] = row
            pairs[count, 1] = ids[slot]
            count += 1
    return pairs[:count].copy()


@kernel()
def _grow(keys, ids, vertices, multipliers):
    """The same table with room for `vertices` at half load at most."""
    capacity = len(ids)
    while capacity < 2 * vertices:
        capacity *= 2
    if capacity == len(ids):
        return keys, ids
    hashes = _hash_all(keys, multipliers)
    grown_keys = np.empty((capacity, keys.shape[1]), np.int64)
    grown_ids = np.full(capacity, -1, np.int32)
    for old in range(len(ids)):
        if ids[old] >= 0:
            slot = _slot(hashes[old], capacity)
            while grown_ids[slot] >= 0:
                slot = (slot + 1) & (capacity - 1)
            grown_ids[slot] = ids[old]
            for w in range(keys.shape[1]):
                grown_keys[slot, w] = keys[old, w]
    return grown_keys, grown_ids


@kernel()
def _hash_all(keys, multipliers):
    """The hash of each key `[n, words]`. The hash of a sum of keys is the sum of their hashes."""
    hashes = np.zeros(len(keys), np.uint64)
    for i in range(len(keys)):
        for w in range(len(multipliers)):
            hashes[i] += np.uint64(keys[i, w]) * multipliers[w]
    return hashes


@kernel(inline="always")
def _slot(hashed, capacity):
    """Where to look first: the hash scaled to [0, capacity), so that its order is kept."""
    return np.int64(((hashed >> np.uint64(32)) * np.uint64(capacity)) >> np.uint64(32))
