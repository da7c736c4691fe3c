"""Time candidates in turn, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Timer = Callable[[Callable[[], Any]], float]

HEAD_START = 2_000_000  # cycles of the device: a millisecond, in which the host enqueues


@dataclass(frozen=True)
class Budget:
    """How long to measure one case: as many rounds as fit `seconds`, within the two bounds."""

    seconds: float
    least_rounds: int
    most_rounds: int


def time_on_host(call: Callable[[], Any]) -> float:
    """Seconds of one call by the wall clock."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def time_until_done(call: Callable[[], Any]) -> float:
    """Seconds by the wall clock until the CUDA device has done what one call enqueues."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def time_on_device(call: Callable[[], Any]) -> float:
    """Seconds between two events around one call on the current CUDA stream."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def time_queued(call: Callable[[], Any]) -> float:
    """Seconds on the CUDA device of what one call enqueues, without waiting for the host.

    The device spins while the host enqueues, and finds everything at hand when the first event
    comes. A call that takes the host longer than `HEAD_START` catches up in part.
    """
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    torch.cuda._sleep(HEAD_START)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def timer_for(device: str) -> Timer:
    """The timer of a kind of device."""
    return time_on_device if device == "cuda" else time_on_host


def interleave(
    candidates: Mapping[str, Callable[[], Any]], timer: Timer, budget: Budget
) -> dict[str, list[float]]:
    """Seconds of each call, by candidate. Entry i of every list comes from the same round.

    Each candidate is called once unmeasured and once to learn how many rounds fit the budget. The
    order turns around from round to round, so that none always runs in another's wake.
    """
    for call in candidates.values():
        call()
    round_seconds = sum(timer(call) for call in candidates.values())
    fitting = int(budget.seconds / max(round_seconds, 1e-9))
    rounds = min(max(fitting, budget.least_rounds), budget.most_rounds)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates)
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name in order:
                seconds[name].append(timer(candidates[name]))
            order.reverse()
    finally:
        if collecting:
            gc.enable()
    return seconds


def percentile(samples: Sequence[float], percent: float) -> float:
    """The percentile of the samples, linear between neighbours."""
    ordered = sorted(samples)
    position = (len(ordered) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def ratio_of_pairs(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """How many times as fast ours is: the median over rounds of their time over ours."""
    return statistics.median(t / o for t, o in zip(theirs, ours, strict=True))
