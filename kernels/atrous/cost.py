"""Which Triton algorithm computes what: a roofline estimate of how long each should take.

    shift     one product [P, Cin] x [Cin, taps * Cout], its float32 result written and read once
    implicit  one product a live tap, the outputs of each rate padded to a tile

with P = B * H * W pixels. Only the order of the two matters, so one machine stands for all: the
operations that a data-centre GPU does in the time of a byte differ little from one to the next.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kernels.atrous.triton.layout import PARTIAL_SUMS, WORKSPACE, aligned, tap_blocks

OPERATIONS = {"half": 600e12, "tf32": 300e12, "ieee": 40e12}  # a second
BANDWIDTH = 2.8e12  # bytes a second, of memory
CACHE_BANDWIDTH = 2 * BANDWIDTH  # of the second-level cache, where the slices mostly stay
MULTIPROCESSORS = 132
LAUNCH = 4e-6  # seconds
TILE = 128  # pixels, and columns where there are that many


@dataclass(frozen=True)
class ConvProblem:
    """The sizes of one call; `arithmetic` is a key of OPERATIONS."""

    batch: int
    inputs: int
    height: int
    width: int
    rates: Sequence[int]
    outputs: int
    kernel: int
    fuse: str
    element_size: int
    arithmetic: str

    @property
    def pixels(self) -> int:
        return self.batch * self.height * self.width


def estimates(problem: ConvProblem) -> Mapping[str, float]:
    """Seconds of a forward call by implementation, of those that can hold the map."""
    seconds = {"triton:implicit": implicit(problem)}
    if problem.height * problem.width <= largest_map(problem):
        seconds["triton:shift"] = shift(problem)
    return seconds


def largest_map(problem: ConvProblem) -> int:
    """Pixels of the largest map whose float32 slices fit the workspace of multiply-then-shift."""
    blocks = tap_blocks(len(problem.rates), problem.kernel, problem.fuse)
    return WORKSPACE // (4 * aligned(blocks * problem.outputs))


def weight_gradient_impl(impl: str, shape: Sequence[int], fuse: str) -> str:
    """The algorithm for the gradient to a weight of `shape`, where `impl` computes the rest.

    Multiply-then-shift adds the gradient up in float32, in slices that `PARTIAL_SUMS` bounds. One
    that does not fit there is computed by the implicit product, which writes it where it belongs.
    """
    rates, outputs, inputs, kernel, _ = shape
    rows = aligned(tap_blocks(rates, kernel, fuse) * outputs)
    fits = 4 * rows * aligned(inputs) <= PARTIAL_SUMS
    return impl if fits else "triton:implicit"


def shift(problem: ConvProblem) -> float:
    """Seconds of multiply-then-shift."""
    columns = tap_blocks(len(problem.rates), problem.kernel, problem.fuse) * problem.outputs
    slices = 2 * 4 * problem.pixels * columns / CACHE_BANDWIDTH
    return _product(problem, columns, branches=1, steps=1) + slices + 3 * LAUNCH


def implicit(problem: ConvProblem) -> float:
    """Seconds of the implicit product."""
    live = sum(live_share(problem, rate) for rate in problem.rates) * problem.kernel**2
    branches = 1 if problem.fuse == "sum" else len(problem.rates)
    return _product(problem, problem.outputs, branches, steps=live / branches) + LAUNCH


def live_share(problem: ConvProblem, rate: int) -> float:
    """The share of (tile of pixels, tap) pairs at `rate` that see the map at all."""
    reach = problem.kernel // 2
    rows = TILE / problem.width  # that a tile covers
    shares = 0.0
    for i in range(-reach, reach + 1):
        for j in range(-reach, reach + 1):
            down, right = abs(i) * rate, abs(j) * rate
            if down < problem.height and right < problem.width:
                shares += min(1.0, (problem.height - down + rows) / problem.height)
    return shares / problem.kernel**2


def _product(problem: ConvProblem, columns: int, branches: int, steps: float) -> float:
    """Seconds of computing all tiles of `branches` x `columns`, or of moving the bytes.

    A tile, of 32 or 64 columns where one holds all, goes through the input channels `steps` times
    on one multiprocessor; too few tiles leave the others idle. A step takes the time of the
    TILE + tile rows that it brings: a narrow tile multiplies less with them.
    """
    tile = 32 if columns <= 32 else 64 if columns <= 64 else TILE
    tiles = -(-columns // tile)
    waves = max(1.0, math.ceil(problem.pixels / TILE) * tiles * branches / MULTIPROCESSORS)
    operations = TILE * (TILE + tile) * problem.inputs * steps * waves * MULTIPROCESSORS
    outputs = problem.outputs * (1 if problem.fuse == "sum" else len(problem.rates))
    elements = problem.pixels * (problem.inputs + outputs)
    elements += len(problem.rates) * problem.kernel**2 * problem.outputs * problem.inputs
    return max(
        operations / OPERATIONS[problem.arithmetic], elements * problem.element_size / BANDWIDTH
    )
