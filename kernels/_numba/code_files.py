"""Where machine code is kept from one process to the next.

One file each kernel and set of argument types. Its name holds a digest of all that the code depends
on: the sources, the versions of the compiler, the processor and numba's settings; so a file is
never out of date, and several machines may share a folder. Its first bytes are the digest of the
rest: what a crash or a full disk left is not run, but made again.

The folder is NUMBA_CACHE_DIR, or `__pycache__` beside this file, or one in the user's cache.
"""

import contextlib
import hashlib
import os
import uuid
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

KERNELS = Path(__file__).parents[1]
# What is compiled, and what decides how. All together: most are compiled into one another.
SOURCES = (
    "_numba/jit.py",
    "_numba/arrays.py",
    "_numba/simd.py",
    "permutohedral/compiled.py",
    "meanfield/compiled.py",
)
_DIGEST = hashlib.sha256().digest_size


def read_or_make(name: str, kinds: str, make: Callable[[], bytes]) -> bytes:
    """The machine code of the kernel `name` for arguments of these `kinds`; made if not on disk.

    Where no folder can be written, each process makes it for itself, and a warning says so.
    """
    file = f"{name}-{_digest(kinds)}.o"
    for folder in folders():
        code = _read(folder / file)
        if code is not None:
            return code
    code = make()
    for folder in folders():
        with contextlib.suppress(OSError):
            _write(folder / file, code)
            return code
    _tell_that_nothing_is_kept()
    return code


@cache  # once: numba resets what Python has shown
def _tell_that_nothing_is_kept() -> None:
    warnings.warn(
        "no writable folder is found to keep compiled kernels in, so that each process compiles "
        "them anew, for some seconds. Set the environment variable NUMBA_CACHE_DIR to a writable "
        "folder",
        RuntimeWarning,
        stacklevel=2,
    )


def folders() -> Iterator[Path]:
    """Where to look for code and to put it, the first that can be written."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        yield Path(chosen)
        return
    yield KERNELS / "__pycache__"
    with contextlib.suppress(RuntimeError):  # no home
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deeplab-triton"


def _digest(kinds: str) -> str:
    settings = sorted(
        (name, value)
        for name, value in os.environ.items()
        if name.startswith("NUMBA_") and name != "NUMBA_CACHE_DIR"
    )
    told = "\n".join((digest_of_sources(KERNELS), _compiler(), repr(settings), kinds))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


@cache
def digest_of_sources(folder: Path) -> str:
    """Of what is compiled, in the package at `folder`."""
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in SOURCES)).hexdigest()


@cache
def _compiler() -> str:
    """Versions of the compiler, the processor that it compiles for, and how objects begin."""
    import llvmlite.binding as llvm

    versions = [metadata.version(package) for package in ("numba", "llvmlite")]
    processor = llvm.get_process_triple(), llvm.get_host_cpu_name()
    features = llvm.get_host_cpu_features().flatten()
    return repr((versions, processor, features, object.__basicsize__))


def _read(path: Path) -> bytes | None:
    """The code of a file; None if there is none, or if it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:_DIGEST], content[_DIGEST:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(path: Path, code: bytes) -> None:
    """Write a file whole or not at all: other processes may read it, or write the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    try:
        unfinished.write_bytes(hashlib.sha256(code).digest() + code)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
