"""Run a compiled kernel that releases the GIL over ranges, on as many threads as torch uses.

Plain threads instead of numba's parallel mode: kernels compile several times faster, may be called
from several Python threads at once, and survive a fork (data-loader workers).
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from queue import SimpleQueue
from typing import Any, TypeAlias

import torch

from kernels._numba.jit import Kernel, across_forks

Job: TypeAlias = tuple[Callable[[], None], "SimpleQueue[BaseException | None]"]

_inboxes: dict[int, SimpleQueue[Job]] = {}  # by process: threads do not live through a fork
_own = threading.local()
_starting = across_forks(threading.Lock())


def run(kernel: Callable[..., Any], ranges: Sequence[tuple[Any, ...]], *args: object) -> list[Any]:
    """Call `kernel(*r, *args)` for each r of `ranges`, in parallel; return the results in order.

    An exception of a call is raised here, after all threads have stopped; calls that were not begun
    may be left out then.
    """
    if isinstance(kernel, Kernel):
        return run_calls(kernel.calls(ranges, args))
    return run_calls([partial(kernel, *each, *args) for each in ranges])


def run_calls(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """`run` for calls that have their arguments already."""
    if len(calls) <= 1 or number() == 1:
        return [call() for call in calls]
    waiting = deque(enumerate(calls))
    results: list[Any] = [None] * len(calls)

    def work() -> None:
        with alone():
            while waiting:
                try:
                    index, call = waiting.popleft()
                except IndexError:  # another thread took the last one
                    return
                results[index] = call()

    helpers = min(len(calls), number()) - 1
    done: SimpleQueue[BaseException | None] = SimpleQueue()
    for _ in range(helpers):
        _inbox().put((work, done))
    try:
        work()
    finally:
        errors = [done.get() for _ in range(helpers)]
    for error in errors:
        if error is not None:
            raise error
    return results


@contextmanager
def alone() -> Iterator[None]:
    """Within it this thread shares its work with no other: `number()` is 1."""
    before = getattr(_own, "is_alone", False)
    _own.is_alone = True
    try:
        yield
    finally:
        _own.is_alone = before


def number() -> int:
    """How many threads there are to run on: those of torch; in one that runs a call, that one."""
    return 1 if getattr(_own, "is_alone", False) else torch.get_num_threads()


def split(count: int, pieces: int) -> list[tuple[int, int]]:
    """Cut range(count) into at most `pieces` consecutive ranges of nearly equal length.

    An empty range is one piece.
    """
    pieces = max(1, min(pieces, count))
    bounds = [count * i // pieces for i in range(pieces + 1)]
    return list(pairwise(bounds))


def _inbox() -> SimpleQueue[Job]:
    """The queue that this process's threads take jobs from; they are started at the first use."""
    pid = os.getpid()
    if pid not in _inboxes:
        with _starting:
            if pid not in _inboxes:
                inbox: SimpleQueue[Job] = SimpleQueue()
                for i in range(max(1, (os.cpu_count() or 1) - 1)):
                    name = f"kernels-{i}"
                    threading.Thread(target=_serve, args=(inbox,), name=name, daemon=True).start()
                _inboxes[pid] = inbox
    return _inboxes[pid]


def _serve(inbox: SimpleQueue[Job]) -> None:
    while True:
        work, done = inbox.get()
        try:
            work()
        except BaseException as error:
            done.put(error)
        else:
            done.put(None)
        del work, done  # a thread that waits holds no arrays
