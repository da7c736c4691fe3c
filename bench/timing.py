"""Time candidates in turn with torch.utils.benchmark, so that noise falls on all of them alike.

A round gives every candidate one `Timer.blocked_autorange`, or one call where that takes as long,
in an order that turns around from round to round. Percentiles are taken over the blocks of all
rounds; a ratio is the median of the ratios within rounds, which do not change when something slows
a whole round.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.benchmark import Measurement, TaskSpec, Timer
from torch.utils.benchmark.utils.timer import timer as wall_clock

Clock = Callable[[], float]
Rounds = Sequence[Measurement]

HEAD_START = 2_000_000  # cycles of the device: a millisecond, in which the host enqueues


@dataclass(frozen=True)
class Budget:
    """How long to measure: rounds, and the least seconds of a candidate in each of them."""

    rounds: int
    seconds: float


class EventClock:
    """Seconds on the CUDA device between every second reading and the one before, by events.

    `Timer` reads its clock before and after a block. The device spins after the first reading while
    the host enqueues the block, so that launches of the host do not count.
    """

    def __init__(self) -> None:
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.started = False

    def __call__(self) -> float:
        self.started = not self.started
        if self.started:
            torch.cuda.synchronize()
            torch.cuda._sleep(HEAD_START)
            self.start.record()
            return 0.0
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1e3


def clock_for(name: str) -> Clock:
    """`"wall"`, which waits for a GPU to be done, or `"cpu"`: seconds of all threads together."""
    return {"wall": wall_clock, "cpu": time.process_time}[name]


def time_in_turn(
    candidates: Mapping[str, Callable[[], Any]],
    budget: Budget,
    clock: Callable[[], Clock] = lambda: wall_clock,
) -> dict[str, Rounds]:
    """The measurements of each candidate; entry i of every list comes from round i.

    `clock` makes the clock of one candidate. Each candidate is called once before.
    """
    clocks = {name: clock() for name in candidates}
    for call in candidates.values():
        call()
    rounds: dict[str, list[Measurement]] = {name: [] for name in candidates}
    order = list(candidates)
    for _ in range(budget.rounds):
        for name in order:
            rounds[name].append(_block(candidates[name], clocks[name], budget.seconds))
        order.reverse()
    return dict(rounds)


def _block(call: Callable[[], Any], clock: Clock, seconds: float) -> Measurement:
    """One call, or as many as take so long. `Timer` would call once more to see how many."""
    threads, statement = torch.get_num_threads(), "call()"
    start = clock()
    call()
    once = clock() - start
    if once >= seconds:
        return Measurement(1, [once], TaskSpec(statement, "pass", num_threads=threads))
    timer = Timer(statement, timer=clock, globals={"call": call}, num_threads=threads)
    return timer.blocked_autorange(min_run_time=seconds)


def samples(rounds: Rounds) -> list[float]:
    """Seconds of one call, as each block of each round gives them."""
    return [seconds for measurement in rounds for seconds in measurement.times]


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p20, p50 and p80, linear between neighbours."""
    return {f"p{p}": float(np.percentile(seconds, p)) for p in (20, 50, 80)}


def ratios(theirs: Rounds, ours: Rounds) -> list[float]:
    """How many times as fast ours is: their time over ours in each round."""
    return [t.median / o.median for t, o in zip(theirs, ours, strict=True)]
