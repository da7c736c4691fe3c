"""The permutohedral lattice on a CPU, in numba: build, splat, blur and slice.

The lattice of `reference.py` (Adams, Baek and Davis 2010; rounding and blur order of Krähenbühl and
Koltun's densecrf), laid out for caches and threads:

- A thread takes a consecutive part of the points and numbers vertices as it meets them, so that
  points near each other use rows near each other. A vertex that an earlier part has too is a ghost
  (see `lattice.py`).
- A vertex key is D integers packed in mixed radix into as few 64-bit words as hold their ranges,
  which follow from the range of the features. A step along a blur direction, and from one corner
  of a simplex to the next, adds a constant to every word.
- The hash is linear in those words: vertices in the order of their hashes, which is nearly that of
  the table, have their neighbours in that order too, so that one merge finds them.
- Rows of values have a width known at compile time, 1 or a multiple of 4 floats, and are handled as
  vectors (`kernels._numba.simd`).
- A blur direction is done in place, along chains of vertices: one read and one write a row.

The compiled functions take ranges and release the GIL; `kernels._numba.threads` runs them on
several threads.
"""

from __future__ import annotations

import contextlib
import functools
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch

from kernels._numba import threads
from kernels._numba.jit import Call, Kernel, address
from kernels.permutohedral.lattice import Lattice, elevation_scales, word_strides

Array: TypeAlias = np.ndarray[Any, Any]

MAX_LANES = 64  # more channels are filtered in groups: each width is compiled once
MIN_PART = 4096  # points: fewer are not worth a thread
MIN_PIECE = 8192  # rows of a blur: fewer are not worth a call
MOST_AT_FIRST = 2**16 - 1  # slots of a new table, but for one: their number is a power of two
TOGETHER, FEW, MANY_DIMS = (0,) * 64, (0,) * 8, 16  # points placed at once: see `together`
CACHE_LINE, LARGE = 64, 2**22  # bytes
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: multiples of it spread evenly

COMPILED = "kernels.permutohedral.compiled"
SPLAT_POINTS = Kernel(COMPILED, "splat_points")
SLICE_POINTS = Kernel(COMPILED, "slice_points")
BLUR_CHAINS = Kernel(COMPILED, "blur_chains")
BLUR_ALL = Kernel(COMPILED, "blur_all")
ADD_GHOSTS = Kernel(COMPILED, "add_ghosts")
COPY_GHOSTS = Kernel(COMPILED, "copy_ghosts")
PLACE_POINTS = Kernel(COMPILED, "place_points", returns=True)
CONNECT = Kernel(COMPILED, "connect")
LINK_ALL = Kernel(COMPILED, "link_all")
SORT_BY_HASH = Kernel(COMPILED, "sort_by_hash", returns=True)
ABSORB = Kernel(COMPILED, "absorb", returns=True)
REHASH = Kernel(COMPILED, "rehash")


def build(features: torch.Tensor, keeps_neighbours: bool = True) -> Lattice:
    """Build the lattice of float32 CPU `features` `[N, D]`, divided by sigma and placeable.

    Without neighbours, which no compiled code reads, it takes half the memory.
    """
    points = np.ascontiguousarray(features.numpy().T)
    dims, count = points.shape
    keys = KeyNumbers.of(points)
    simplex, words, multipliers = keys.simplex, keys.words, keys.multipliers

    corners = np.empty((count, dims + 1), np.int32)
    weights = np.empty((count, dims + 1), np.float32)

    def place(first: int, last: int, points: Array) -> _Table:
        """Write corners and weights of the points [first, last); return their vertices."""
        enough = 4 * max(last - first, dims + 1)  # a point more fits, whenever it is half full
        table = _Table.free(1 << min(enough, MOST_AT_FIRST).bit_length(), words)
        progress = np.array([first, 0], np.int64)
        while PLACE_POINTS(
            progress, last, points, *keys.arrays, table.slots, corners, weights, simplex, words,
            keys.together,
        ):  # fmt: skip
            table = table.with_room(2 * int(progress[1]), multipliers, words)
        table.filled = int(progress[1])
        return table

    ranges = threads.split(count, min(threads.number(), -(-count // MIN_PART)))
    tables = threads.run(place, ranges, points)
    table, ghosts, parts = _merge(ranges, tables, multipliers, words)
    for (first, last), row in zip(ranges[1:], parts[1:-1, 1], strict=True):
        corners[first:last] += np.int32(row)

    rows = int(parts[-1, 1])
    hashes, vertices = np.empty(rows, np.uint64), np.empty((2, rows), np.int32)
    found = SORT_BY_HASH(table.slots, multipliers, hashes, vertices, words)
    slots = keys.slots_to_connect(table.slots)
    del points, table, tables  # the most memory is taken here and where the table grows last
    neighbours = np.empty((dims + 1 if keeps_neighbours else 0, 2, rows), np.int32)
    chains, lengths = room_for_chains(dims + 1, rows)
    pieces = [
        (*piece, neighbours if keeps_neighbours else np.empty((1, 2, rows), np.int32))
        for piece in threads.split(dims + 1, threads.number())
    ]
    threads.run(
        CONNECT, pieces, hashes[:found], vertices, slots, keys.steps, keys.hashed_steps, chains,
        lengths, words,
    )  # fmt: skip
    del pieces
    arrays = corners, weights, neighbours, ghosts, parts, ended(chains, lengths, rows)
    placing, shares, beside, *others = map(torch.from_numpy, arrays)
    return Lattice(placing, shares, beside if keeps_neighbours else None, *others)


def filter(lattice: Lattice, values: torch.Tensor, reverse: bool = False) -> torch.Tensor:
    """Filter float32 CPU `values` `[N, C]`; `reverse` blurs in the opposite order (the adjoint)."""
    source = values.detach().numpy()
    output = np.empty_like(source, order="C")
    corners, weights = lattice.corners.numpy(), lattice.weights.numpy()
    columns = (0,) * corners.shape[1]
    parts = part_ranges(lattice)
    for first in range(0, source.shape[1], MAX_LANES):
        channels = slice(first, first + MAX_LANES)
        lanes = lanes_for(source[:, channels].shape[1])
        rows = aligned_rows(lattice.num_rows + 1, lanes)
        rows[-1] = 0
        threads.run(
            SPLAT_POINTS, parts, source[:, channels], corners, weights, rows, lanes, columns
        )
        for calls in blur_calls([lattice], [rows], lanes, reverse):
            threads.run_calls(calls)
        points = [(start, stop) for start, stop, _, _ in parts]
        threads.run(
            SLICE_POINTS, points, rows, corners, weights, lattice.scale, output[:, channels],
            lanes, columns,
        )  # fmt: skip
    return torch.from_numpy(output)


# Rows of values


def lanes_for(channels: int) -> tuple[int, ...]:
    """A tuple as long as a row of this many channels is wide: 1, or the next multiple of 4."""
    return (0,) * (1 if channels == 1 else -(-channels // 4) * 4)


def aligned_rows(count: int, lanes: tuple[int, ...]) -> Array:
    """An unset buffer `[count, width]` that starts at a cache line, on huge pages if it is large.

    A vector that straddles two lines costs two accesses, and its store is slow to read back. Rows
    are visited in no order, so that with small pages most visits also look up where their page is;
    memory that a process had before is on such pages, whatever is asked for later.
    """
    width = len(lanes)
    size = count * width
    if 4 * size >= LARGE and hasattr(mmap, "MADV_HUGEPAGE"):
        pages = mmap.mmap(-1, 4 * size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(pages, np.float32).reshape(count, width)
    buffer = np.empty(size + CACHE_LINE // 4, np.float32)
    start = -address(buffer) // 4 % (CACHE_LINE // 4)
    return buffer[start : start + size].reshape(count, width)


def part_ranges(lattice: Lattice) -> list[tuple[int, int, int, int]]:
    """First point, end point, first row and end row of each part."""
    parts = lattice.parts.tolist()
    return [(a[0], b[0], a[1], b[1]) for a, b in pairwise(parts)]


def blur_calls(
    lattices: Sequence[Lattice], blocks: Sequence[Array], lanes: tuple[int, ...], reverse: bool
) -> list[list[Call]]:
    """What blurs the splatted rows `[R+1, width]` of each lattice in place: call after call.

    The calls of one list run in parallel. Afterwards ghosts equal their owners. Several lattices
    together cost one start of the threads; without threads, each is a single call.
    """
    ghosts = [lattice.ghosts.numpy() for lattice in lattices]
    chains = [  # some builds make none
        _link_all(lattice.known_neighbours.numpy())
        if lattice.chains is None
        else lattice.chains.numpy()
        for lattice in lattices
    ]
    apart = 1 + -(-CACHE_LINE // (4 * len(lanes)))  # threads must not write to one cache line
    spare = aligned_rows(apart * _most_pieces(), lanes)[::apart]
    if not any(map(len, ghosts)) and all(len(_pieces(chain.shape[1])) == 1 for chain in chains):
        pairs = zip(chains, blocks, strict=True)
        return [
            BLUR_ALL.calls([(reverse, chain, spare[0], rows)], [lanes]) for chain, rows in pairs
        ]
    bounds = [lattice.parts[:, 2].tolist() for lattice in lattices]

    def add_ghosts(part: int) -> list[Call]:
        """From a part to the owners of its ghosts; an owner occurs once a part."""
        return ADD_GHOSTS.calls([
            (bound[part] + start, bound[part] + stop, pairs, rows)
            for bound, pairs, rows in zip(bounds, ghosts, blocks, strict=True)
            if part + 1 < len(bound)
            for start, stop in _pieces(bound[part + 1] - bound[part])
        ], [lanes])  # fmt: skip

    def along(step: int) -> list[Call]:
        return BLUR_CHAINS.calls([
            (start, stop, chain[len(chain) - 1 - step if reverse else step], spare[piece], rows)
            for chain, rows in zip(chains, blocks, strict=True)
            if step < len(chain)
            for piece, (start, stop) in enumerate(_pieces(chain.shape[1]))
        ], [lanes])  # fmt: skip

    copy_ghosts = COPY_GHOSTS.calls([
        (start, stop, pairs, rows)
        for pairs, rows in zip(ghosts, blocks, strict=True)
        for start, stop in _pieces(len(pairs))
    ], [lanes])  # fmt: skip
    parts, directions = max(map(len, bounds)) - 1, max(map(len, chains))
    return [*map(add_ghosts, range(1, parts)), *map(along, range(directions)), copy_ghosts]


def _pieces(count: int) -> list[tuple[int, int]]:
    """range(count) in more pieces than threads, so that whoever is done early takes another."""
    pieces = max(threads.number(), min(_most_pieces(), count // MIN_PIECE))
    return threads.split(count, pieces if count >= MIN_PIECE else 1) if count else []


def _most_pieces() -> int:
    """How many pieces are worth their calls; a single thread waits for no other."""
    number = threads.number()
    return 8 * number if number > 1 else 1


# Building


def _link_all(neighbours: Array) -> Array:
    """`Lattice.chains` of these neighbours."""
    chains, lengths = room_for_chains(len(neighbours), neighbours.shape[2])
    ranges = threads.split(len(neighbours), threads.number())
    threads.run(LINK_ALL, ranges, neighbours, chains, lengths)
    return ended(chains, lengths, neighbours.shape[2])


def room_for_chains(directions: int, rows: int) -> tuple[Array, Array]:
    """Unset chains of so many directions, as long as they can be, and their lengths."""
    longest = rows + rows // 2 + 1  # two rows and an end each
    return np.empty((directions, longest), np.int32), np.empty(directions, np.int64)


def ended(chains: Array, lengths: Array, none: int) -> Array:
    """The chains up to the longest, the others filled up with `none`."""
    most = int(lengths.max())
    for chain, length in zip(chains, lengths.tolist(), strict=True):
        chain[length:most] = none
    return chains[:, :most]


@dataclass
class KeyNumbers:
    """What the points' vertices become keys by, and keys hashes."""

    scales: Array  # of the elevation, float32 `[D]`
    low: Array  # the lowest key, int64 `[D]`
    strides: Array  # of a key's coordinates in its words, int64 `[D+1, words]`
    steps: Array  # what one step along each direction adds to the words, int64 `[D+1, words]`
    multipliers: Array  # of the words in the hash, uint64 `[words]`
    hashed_steps: Array  # what one step adds to the hash, uint64 `[D+1]`

    @classmethod
    def of(cls, points: Array) -> KeyNumbers:
        """Of `points` `[D, N]`."""
        dims = len(points)
        scales = _elevation(dims)
        low, strides = pack_keys(points, scales)
        steps = strides.sum(0) - (dims + 1) * strides
        multipliers = _multipliers(strides.shape[1])
        return cls(scales, low, strides, steps, multipliers, steps.view(np.uint64) @ multipliers)

    @property
    def arrays(self) -> tuple[Array, ...]:
        """All of them, as compiled code takes them."""
        return (
            self.scales, self.low, self.strides, self.steps, self.multipliers, self.hashed_steps
        )  # fmt: skip

    @property
    def simplex(self) -> tuple[int, ...]:
        """A tuple as long as a simplex has corners."""
        return (0,) * len(self.strides)

    @property
    def together(self) -> tuple[int, ...]:
        """A tuple as long as points are placed at once, which is compiled in.

        Of many dimensions few: code and the tables on the stack grow with both.
        """
        return TOGETHER if len(self.scales) < MANY_DIMS else FEW

    def slots_to_connect(self, slots: Array) -> Array:
        """What connecting vertices reads of their table: all of it, or nothing (a free slot) where
        a key is one word, which its hash tells."""
        return slots if len(self.words) > 1 else np.full((1, 2), -1, np.int64)

    @property
    def words(self) -> tuple[int, ...]:
        """A tuple as long as a key has words."""
        return (0,) * self.strides.shape[1]


@functools.cache
def _elevation(dims: int) -> Array:
    return np.array(elevation_scales(dims), np.float32)


@functools.cache
def _multipliers(words: int) -> Array:
    """Of the words of a key, in its hash: odd powers of one odd number, modulo 2^64."""
    return np.array([pow(GOLDEN, power, 2**64) for power in range(1, 2 * words, 2)], np.uint64)


def pack_keys(points: Array, scales: Array) -> tuple[Array, Array]:
    """Lowest key `[D]` and strides `[D+1, words]` such that packed keys never collide.

    The range of a lattice coordinate follows from the ranges of the features; the margin holds the
    rounding to a vertex, the other corners of its simplex and their neighbours.
    """
    dims, count = points.shape
    bounds = np.zeros((2, dims))
    if count:
        bounds[:] = points.min(axis=1), points.max(axis=1)
    least, most = (bounds * scales).tolist()
    margin = 4 * (dims + 1)
    low, high = [0] * dims, [0] * dims
    suffix_low = suffix_high = 0.0
    for j in reversed(range(dims)):  # plain numbers: NumPy takes as long for one as for a hundred
        suffix_low, suffix_high = suffix_low + least[j], suffix_high + most[j]
        before_low, before_high = (j * least[j - 1], j * most[j - 1]) if j else (0.0, 0.0)
        low[j] = math.floor(suffix_low - before_high) - margin
        high[j] = math.ceil(suffix_high - before_low) + margin
    strides = word_strides([above - below + 1 for below, above in zip(low, high, strict=True)])
    table = [*zip(*strides, strict=True), (0,) * len(strides)]  # the last is not in the key
    return np.array(low, np.int64), np.array(table, np.int64)


@dataclass
class _Table:
    """A hash table of vertices."""

    slots: Array  # int64 `[slots, 1 + words]`: a vertex's row, -1 in a free slot, and its key
    filled: int = 0  # how many vertices it holds

    @classmethod
    def free(cls, slots: int, words: tuple[int, ...]) -> _Table:
        table = cls(np.empty((slots, 1 + len(words)), np.int64))
        table.slots[:, 0] = -1
        return table

    def with_room(self, vertices: int, multipliers: Array, words: tuple[int, ...]) -> _Table:
        """This table with room for `vertices` at half load at most."""
        slots = len(self.slots)
        while slots < 2 * vertices:
            slots *= 2
        if slots == len(self.slots):
            return self
        grown = _Table.free(slots, words)
        REHASH(self.slots, multipliers, grown.slots, words)
        return grown


def _merge(
    ranges: list[tuple[int, int]], tables: list[_Table], multipliers: Array, words: tuple[int, ...]
) -> tuple[_Table, Array, Array]:
    """One table for all parts, and the ghosts: vertices that an earlier part owns."""
    table, owned = tables[0], tables[0].filled
    parts = np.zeros((len(ranges) + 1, 3), np.int64)
    parts[1] = ranges[0][1], owned, 0
    ghosts = [np.empty((0, 2), np.int32)]
    for part, local in enumerate(tables[1:], start=1):
        table = table.with_room(owned + local.filled, multipliers, words)
        pairs = np.empty((local.filled, 2), np.int32)
        count = ABSORB(table.slots, local.slots, parts[part, 1], multipliers, pairs, words)
        ghosts.append(pairs[:count])
        owned += local.filled - count
        parts[part + 1] = (ranges[part][1], parts[part, 1] + local.filled, parts[part, 2] + count)
    return table, np.concatenate(ghosts), parts
