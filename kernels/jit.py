"""Compile a kernel with numba: without the GIL, and kept on disk from one process to the next.

numba keeps compiled code in `__pycache__` beside the source, or else in the user's cache folder,
and compiles again when the source file changes. It sees that file alone. A compiled function also
contains what other modules put into it, so their digest becomes a part of its cached file's name.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

# Modules whose functions are compiled into those of others.
INLINED = ("simd.py", "gaussian/permutohedral/cpu.py")


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: `numba.njit` with `options`, for `kernels.threads.run`.

    Where no folder can be written, each process compiles for itself, and a warning says so.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        function.__qualname__ += f"_{_digest}"  # names the cached file
        try:
            return njit(nogil=True, cache=True, **options)(function)
        except RuntimeError as error:
            if "no locator" not in str(error):
                raise
        warnings.warn(
            "numba finds no writable folder to keep compiled kernels in, so that each process "
            "compiles them anew, for some seconds. Set the environment variable NUMBA_CACHE_DIR "
            "to a writable folder",
            RuntimeWarning,
            stacklevel=1,  # one place for all kernels: shown once
        )
        return njit(nogil=True, **options)(function)

    return compiled


def _digest_of(folder: Path) -> str:
    sources = b"".join((folder / name).read_bytes() for name in INLINED)
    return hashlib.sha256(sources).hexdigest()[:8]


_digest = _digest_of(Path(__file__).parent)
