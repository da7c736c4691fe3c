"""What ends a run from outside of it, beside signals: memory, and processes that were killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from deeplab.errors import InputError
from deeplab.training.config import TrainConfig


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
