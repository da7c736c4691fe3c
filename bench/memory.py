"""Peak memory of one call, and calls in a fresh interpreter.

A process keeps freed memory and compiled code, so a peak or a first call can only be measured in a
process that has done nothing before.
"""

import ctypes
import gc
import importlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from frame import Settings

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def in_fresh_process(
    function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """The result of a function of a module, called in a new process; what it raises is raised here,
    with the traceback of that process as its cause."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def peak_of_candidate(comparison: str, case: str, candidate: str, settings: Settings) -> int | None:
    """`peak_of_call` of a candidate in a fresh process, on its second call.

    The first one loads libraries and compiles, which is not the memory that the task takes.
    """
    return in_fresh_process(second_call, f"compare_{comparison}", case, candidate, settings)


def second_call(module: str, case: str, candidate: str, settings: Settings) -> int | None:
    """The part of `peak_of_candidate` that runs in the fresh process."""
    comparison = importlib.import_module(module).COMPARISON
    (found,) = (each for each in comparison.cases(settings) if each.name == case)
    torch.set_num_threads(found.threads or settings.threads)
    prepared = found.prepare()
    call = prepared.candidates[candidate]
    with prepared.around():
        call()
        return peak_of_call(call, settings.device)


def peak_of_call(call: Callable[[], Any], device: str) -> int | None:
    """Bytes that a call adds at its peak to what the process held before.

    On the CPU resident memory counts; None where the system does not tell (it takes Linux's /proc).
    On a GPU it is what torch allocates, which it counts exactly: a fresh process is not needed.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    _give_back_freed_memory()
    if not _forget_peak():
        return None
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


def _give_back_freed_memory() -> None:
    """Return to the system what was freed, lest the call reuse it unseen (glibc only)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _forget_peak() -> bool:
    """Set the process's peak of resident memory back to what is resident now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")
