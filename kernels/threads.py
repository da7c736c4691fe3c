"""Run a compiled kernel that releases the GIL over ranges, on as many threads as torch uses.

A plain thread pool instead of numba's parallel mode: it compiles several times faster, may be
called from several Python threads at once, and survives a fork (data-loader workers).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from typing import Any

import torch

_pools: dict[int, ThreadPoolExecutor] = {}  # by process: threads do not live through a fork


def num_threads() -> int:
    """Threads to use: torch's own setting (`torch.set_num_threads`)."""
    return torch.get_num_threads()


def run(kernel: Callable[..., Any], ranges: Sequence[tuple[Any, ...]], *args: object) -> list[Any]:
    """Call `kernel(*r, *args)` for each r of `ranges`, in parallel; return the results in order.

    The first exception of a call is raised here, after all calls have ended.
    """
    waiting = deque(enumerate(ranges))
    results: list[Any] = [None] * len(ranges)

    def work() -> None:
        while waiting:
            try:
                index, arguments = waiting.popleft()
            except IndexError:  # another thread took the last one
                return
            results[index] = kernel(*arguments, *args)

    helpers = max(0, min(len(ranges), num_threads()) - 1)
    others = [_pool().submit(work) for _ in range(helpers)]
    try:
        work()
    finally:
        wait(others)
    for future in others:
        future.result()
    return results


def split(count: int, pieces: int) -> list[tuple[int, int]]:
    """Cut range(count) into at most `pieces` consecutive ranges of nearly equal length.

    An empty range is one piece.
    """
    pieces = max(1, min(pieces, count))
    bounds = [count * i // pieces for i in range(pieces + 1)]
    return list(pairwise(bounds))


def _pool() -> ThreadPoolExecutor:
    pid = os.getpid()
    if pid not in _pools:
        _pools.clear()
        _pools[pid] = ThreadPoolExecutor(
            max_workers=max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="kernels"
        )
    return _pools[pid]
