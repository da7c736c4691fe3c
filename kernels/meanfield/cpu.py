"""Mean field on a CPU, in numba: one pass over the points an iteration, Q never in memory.

    logits'_i = logits_i + sum_k slicing_ik * rows[corner_ik]           slice
    next_rows[corner_ik] += splatting_ik * softmax(logits'_i)           splat

The corners of all terms stand side by side and their rows in one buffer. What is constant for a
point and a term (normalisation, the lattice's scale, a compatibility equal for all labels, log2 e
for the base-2 exponential) is folded into the two corner weights; a compatibility that differs
between labels is applied to the rows instead. Between two passes the rows are blurred in place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch

from kernels._numba import threads
from kernels._numba.jit import Call, Kernel
from kernels.meanfield.term import LatticeTerm
from kernels.permutohedral.cpu import aligned_rows, blur_calls, lanes_for, part_ranges

Array: TypeAlias = np.ndarray[Any, Any]

LOG2E = math.log2(math.e)
OFF = -3e38  # the logit of a padding lane
BLOCK = 64  # points sliced, then splatted: their values stay in the first-level cache

COMPILED = "kernels.meanfield.compiled"
FOLD_CORNERS = Kernel(COMPILED, "fold_corners")
LOAD = Kernel(COMPILED, "load")
UPDATE = Kernel(COMPILED, "update")
FINISH = Kernel(COMPILED, "finish")
MIX_LABELS = Kernel(COMPILED, "mix_labels")


def mean_field(
    unary: torch.Tensor,
    terms: Sequence[LatticeTerm],
    iterations: int,
    start: torch.Tensor | None,
    order: torch.Tensor | None,
    marginals: bool,
    output: torch.Tensor,
) -> None:
    """Set `output` `[M, C]`; float32 CPU tensors `[M, C]` of any strides.

    order: point i of the lattices is row order[i] of the others; None: i.
    """
    count, labels = unary.shape
    visits = np.arange(count) if order is None else order.numpy()
    stack = _Stack(terms if iterations > 0 else (), count, labels, drop_common=marginals)
    logits = stack.load(unary, visits, -LOG2E, OFF)
    if stack.lattices:
        stack.start(logits if start is None else stack.load(start, visits, 1.0, 0.0), start is None)
        for _ in range(iterations - 1):
            stack.blur()
            stack.update(logits)
        stack.blur()
    stack.finish(logits, visits, marginals, output)


@dataclass
class _Calls:
    """What an iteration runs on one of the two buffers of rows, made once."""

    update: list[Call] = field(default_factory=list)
    blur: list[list[Call]] = field(default_factory=list)


class _Stack:
    """All terms side by side: corners, folded weights, and the buffers of rows."""

    def __init__(
        self, terms: Sequence[LatticeTerm], count: int, labels: int, drop_common: bool
    ) -> None:
        self.labels = labels
        self.lanes = lanes_for(labels)
        self.lattices = [term.lattice for term in terms]
        sizes = [lattice.num_rows + 1 for lattice in self.lattices]  # each ends with a zero row
        self.offsets = np.cumsum([0, *sizes])
        self.rows = aligned_rows(int(self.offsets[-1]), self.lanes)
        self.next_rows = aligned_rows(len(self.rows), self.lanes)
        self.calls, self.next_calls = _Calls(), _Calls()
        for none in self.offsets[1:] - 1:
            self.rows[none] = self.next_rows[none] = 0
        folded = [fold_compatibility(term.compatibility, drop_common) for term in terms]
        self.compatibilities = [compatibility for _, compatibility in folded]
        parts = self._parts(count)
        self.points = [part[:2] for part in parts] or threads.split(count, threads.number())
        limits = self._fold(terms, [factor for factor, _ in folded], count)
        self.parts = [
            (*part, np.empty_like(part[2]), limit, aligned_rows(BLOCK, self.lanes))
            for part, limit in zip(parts, limits, strict=True)
        ]

    def _parts(self, count: int) -> list[tuple[int, int, Array, Array]]:
        """Ranges of points, each with the ranges of rows, one a term, that only they splat to."""
        ranges = [part_ranges(lattice) for lattice in self.lattices]
        points = [[(part[0], part[1]) for part in parts] for parts in ranges]
        if any(p != points[0] for p in points):  # built on different numbers of threads
            ranges = [[(0, count, 0, lattice.num_rows)] for lattice in self.lattices]
        return [
            (
                parts[0][0],
                parts[0][1],
                np.array([part[2] for part in parts]) + self.offsets[:-1],
                np.array([part[3] for part in parts]) + self.offsets[:-1],
            )
            for parts in zip(*ranges, strict=True)
        ]

    def _fold(self, terms: Sequence[LatticeTerm], factors: list[float], count: int) -> list[Array]:
        """Set corners and weights of all terms; return what rows each block of a part needs."""
        gains = [f * t.lattice.scale * LOG2E for f, t in zip(factors, terms, strict=True)]
        shared = all(g > 0 and t.before is t.after for g, t in zip(gains, terms, strict=True))
        columns = sum(lattice.corners.shape[1] for lattice in self.lattices)
        self.corners = np.empty((count, columns), np.int32)
        self.splatting = np.empty((count, columns), np.float32)
        self.slicing = self.splatting if shared else np.empty_like(self.splatting)
        ones = np.broadcast_to(np.float32(1), count)
        limits = []
        column = 0
        for gain, term, offset in zip(gains, terms, self.offsets, strict=False):
            before = ones if term.before is None else term.before.numpy()
            after = ones if term.after is None else term.after.numpy()
            gain_in, gain_out = (math.sqrt(gain), math.sqrt(gain)) if shared else (1.0, gain)
            ends = [np.empty(-(-(last - first) // BLOCK), np.int64) for first, last in self.points]
            limits.append(ends)
            threads.run(
                FOLD_CORNERS, [(*r, end) for r, end in zip(self.points, ends, strict=True)], BLOCK,
                term.lattice.corners.numpy(), term.lattice.weights.numpy(), before, after,
                np.float32(gain_in), np.float32(gain_out), column, offset, self.corners,
                self.splatting, self.slicing,
            )  # fmt: skip
            column += term.lattice.corners.shape[1]
        return [np.stack(part) for part in zip(*limits, strict=True)]

    def load(self, values: torch.Tensor, visits: Array, factor: float, padding: float) -> Array:
        """factor * values `[N, C]` in the order of the visits, as rows of full width."""
        loaded = aligned_rows(len(visits), self.lanes)
        source = values.detach().numpy()
        scalars = np.float32(factor), np.float32(padding)
        threads.run(LOAD, self.points, source, visits, *scalars, loaded)
        return loaded

    def start(self, source: Array, softmax: bool) -> None:
        """Splat the first Q: `source`, or the softmax of it."""
        threads.run_calls(self._pass(source, self.slicing[:, :0], softmax))
        self._swap()

    def update(self, logits: Array) -> None:
        """From blurred rows to the next splatted rows: slice, softmax, splat."""
        if not self.calls.update:
            self.calls.update = self._pass(logits, self.slicing, True)
        threads.run_calls(self.calls.update)
        self._swap()

    def _pass(self, source: Array, slicing: Array, softmax: bool) -> list[Call]:
        return UPDATE.calls(self.parts, (
            source, self.corners, slicing, self.splatting, self.rows, self.next_rows, softmax,
            self.lanes, (0,) * self.corners.shape[1],
        ))  # fmt: skip

    def _swap(self) -> None:
        self.rows, self.next_rows = self.next_rows, self.rows
        self.calls, self.next_calls = self.next_calls, self.calls

    def blur(self) -> None:
        """Filter what was splatted, and apply the compatibilities that differ between labels."""
        bounds = zip(self.offsets[:-1], self.offsets[1:], strict=True)
        blocks = [self.rows[first:last] for first, last in bounds]
        if not self.calls.blur:
            self.calls.blur = blur_calls(self.lattices, blocks, self.lanes, reverse=False)
        for calls in self.calls.blur:
            threads.run_calls(calls)
        for block, compatibility in zip(blocks, self.compatibilities, strict=True):
            if compatibility is None:
                continue
            ranges = threads.split(len(block), threads.number())
            if compatibility.ndim == 1:
                threads.run(_scale_labels, ranges, block[:, : self.labels], -compatibility.numpy())
            else:
                matrix = np.zeros((self.labels, len(self.lanes)), np.float32)
                matrix[:, : self.labels] = -compatibility.numpy().T
                threads.run(MIX_LABELS, ranges, block, matrix, self.lanes)

    def finish(self, logits: Array, visits: Array, softmax: bool, output: torch.Tensor) -> None:
        """Slice into `output` `[M, C]`, back in its own order: the logits, or their softmax.

        The last that is done: the buffer that is not read goes before the output takes its room.
        """
        del self.next_rows, self.calls, self.next_calls
        ranges = [(*points, aligned_rows(BLOCK, self.lanes)) for points in self.points]
        threads.run(
            FINISH, ranges, logits, self.corners, self.slicing, self.rows, visits, softmax,
            np.float32(1.0 if softmax else 1 / LOG2E), output.numpy(), self.lanes,
            (0,) * self.corners.shape[1],
        )  # fmt: skip


def _scale_labels(first: int, last: int, rows: Array, factors: Array) -> None:
    """Multiply by a factor a label, in place.

    Not by torch, which would hang in a process that was forked after it had run in parallel.
    """
    rows[first:last] *= factors


def fold_compatibility(
    compatibility: torch.Tensor, drop_common: bool
) -> tuple[float, torch.Tensor | None]:
    """A compatibility as (factor, None) where -factor * identity says the same, else (1, itself).

    drop_common: leave out what all labels pay alike, which the softmax cancels: a matrix w (1 - I)
    is a multiple of the identity then.
    """
    if compatibility.ndim == 2:
        common = compatibility.new_zeros(())
        if drop_common and len(compatibility) > 1:
            common = compatibility[0, 1]
        diagonal = compatibility.diagonal() - common
        if not torch.equal(compatibility - common, torch.diag(diagonal)):
            return 1.0, compatibility
        compatibility = diagonal
    costs = compatibility.tolist()
    if costs == costs[:1] * len(costs):
        return -costs[0], None
    return 1.0, compatibility
