"""Call a function in a fresh interpreter: for memory peaks, and for what happens only once.

A process keeps freed memory and compiled code, so a peak or a first call can only be measured in a
process that has done nothing before.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def in_fresh_process(
    function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """The result of a function of a module, called in a new process; what it raises is raised here,
    with the traceback of that process as its cause."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()
