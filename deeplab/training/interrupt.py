"""What ends a run from outside of it: signals, memory, and processes that were killed.

Ctrl-C and SIGTERM ask it to stop after the step at hand; the second time they end it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from deeplab.errors import InputError
from deeplab.training.config import TrainConfig


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


@contextmanager
def clear_errors(config: TrainConfig) -> Iterator[None]:
    """What PyTorch says in many lines, or in few words, of memory and of workers: InputError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if "DataLoader worker (pid" in text:
            raise InputError(
                "a process that prepares samples was killed from outside, perhaps for want of "
                f"memory; lower workers (now {config.workers}), then go on with --resume"
            ) from error
        if isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text:
            raise InputError(
                f"not enough memory for steps of {config.batch_size} samples of {config.crop} x "
                f"{config.crop} pixels in {config.accumulate} pieces: raise accumulate (--resume "
                "goes on with another one), or lower crop or batch_size"
            ) from error
        raise
