"""Run a compiled kernel that releases the GIL over ranges, on as many threads as torch uses.

A plain thread pool instead of numba's parallel mode: it compiles several times faster, may be
called from several Python threads at once, and survives a fork (data-loader workers).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

_pools: dict[int, ThreadPoolExecutor] = {}  # by process: threads do not live through a fork


def num_threads() -> int:
    """Threads to use: torch's own setting (`torch.set_num_threads`)."""
    return torch.get_num_threads()


def run(kernel: Callable[..., object], ranges: Sequence[tuple[object, ...]], *args: object) -> None:
    """Call `kernel(*r, *args)` for each r of `ranges`, in parallel; return when all have ended.

    The first exception of a call is raised here.
    """
    if len(ranges) == 1:
        kernel(*ranges[0], *args)
        return
    others = [_pool().submit(kernel, *r, *args) for r in ranges[1:]]
    kernel(*ranges[0], *args)
    for future in others:
        future.result()


def split(count: int, pieces: int) -> list[tuple[int, int]]:
    """Cut range(count) into at most `pieces` consecutive ranges of nearly equal length."""
    pieces = max(1, min(pieces, count))
    bounds = [count * i // pieces for i in range(pieces + 1)]
    return list(zip(bounds[:-1], bounds[1:], strict=True))


def _pool() -> ThreadPoolExecutor:
    pid = os.getpid()
    if pid not in _pools:
        _pools.clear()
        _pools[pid] = ThreadPoolExecutor(
            max_workers=max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="kernels"
        )
    return _pools[pid]
