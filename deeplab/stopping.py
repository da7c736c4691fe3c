"""A request to stop that Ctrl-C or SIGTERM makes, for work that finishes what it has in hand first.

The second signal ends the work at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class StopRequest:
    """`signal`: the number of the signal that asked to stop, 0 while none did."""

    signal: int = 0


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """A request that Ctrl-C or SIGTERM makes; a second signal of its kind acts as usual."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may handle signals
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, _: object) -> None:
        request.signal = number
        signal.signal(number, previous[signal.Signals(number)])

    for number in previous:
        signal.signal(number, stop)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
