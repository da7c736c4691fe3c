"""Writing what is needed tomorrow: whole, on the disk, or not there at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to fill, which replaces the one at `path` when the block ends, and not if it raises.

    It is written beside `path` as .NAME.part, flushed to the disk and then renamed, so that a
    reader, or a crash, never meets half a file. Of two writers at once the second waits, and what a
    killed one leaves the next one writes over. OSError, such as of a full disk, comes through.
    """
    part = path.with_name(f".{path.name}.part")
    flags = os.O_WRONLY | os.O_CREAT
    flags |= getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    while True:
        with open(part, "wb", opener=lambda name, _flags: os.open(name, flags, 0o666)) as file:
            with suppress(OSError):  # some network file systems have no locks
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_called(part, file):  # the first writer has renamed it meanwhile
                continue
            try:
                file.truncate(0)
                yield file
                file.flush()
                os.fsync(file.fileno())
                if fcntl is None:
                    file.close()  # Windows renames no open file
                os.replace(part, path)
            except BaseException:
                with suppress(OSError):
                    part.unlink(missing_ok=True)
                raise
            _flush_folder(path.parent)
            return


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which replaces the one at `path` when the block ends, and not if it raises.

    It grows beside `path` under a hidden name. A process that is killed leaves it there, and beside
    it, if that was in the moment of the exchange, the folder that it should replace. OSError comes
    through.
    """
    beside = path.absolute().parent
    beside.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(".part", f".{path.name}.", beside))
    new, old = work / "new", work / "old"
    try:
        new.mkdir()  # with usual permissions: mkdtemp's are for their maker alone
        yield new
        try:
            with suppress(FileNotFoundError):
                path.rename(old)
            new.rename(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.rename(path)
            raise
        _flush_folder(beside)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_called(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _flush_folder(folder: Path) -> None:
    """The rename itself to the disk, where the system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
