"""One case: what is run, and what has to hold when it ends, whichever way it ends."""

import fcntl
import io
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import typer

from campaign.files import lay
from deeplab import cli

Outcome = Literal["result", "refused"]
LONGEST_LINE = 3000  # characters of an error: it may list files and names, but not their contents


class Wrong(Exception):
    """What does not hold, said by the check that found it."""


def require(holds: object, message: str) -> None:
    if not holds:
        raise Wrong(message)


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit status, and the two streams as text."""

    status: int
    stdout: str
    stderr: str


Check = Callable[[Path, Ended], None]


def nothing(_folder: Path, _ended: Ended) -> None:
    """No check beyond those of every case."""


@dataclass(frozen=True)
class Command:
    """A command line in a folder of its own, which holds `files` (bytes by name).

    said: what is special about it. wanted: how it must end, None where both is right. names: one of
    these has to stand in the refusal. check: called with the folder after a result; raises Wrong.
    prepare: lays down what bytes by name cannot say, such as links.
    """

    said: str
    args: Sequence[str]
    files: dict[str, bytes] = field(default_factory=dict)
    wanted: Outcome | None = None
    names: Sequence[str] = ()
    check: Check = nothing
    prepare: Callable[[Path], None] | None = None

    def line(self) -> str:
        return shlex.join(["deeplab", *self.args])

    def run(self, folder: Path) -> Outcome:
        """In `folder`, which becomes the working folder; raises Wrong."""
        lay(folder, self.files)
        if self.prepare is not None:
            self.prepare(folder)
        before = snapshot(folder)
        ended = invoke(self.args)
        outcome = judged(ended)
        left = [path.name for path in folder.rglob("*") if path.suffix in (".part", ".tmp")]
        require(not left, f"temporary files are left: {left}")
        now = snapshot(folder)
        changed = sorted(path for path in before | now if before.get(path) != now.get(path))
        if outcome == "refused":
            require(not changed, f"refused, and yet these changed: {changed}; {ended.stderr}")
        as_told(self, outcome, ended.stderr.strip() or ended.stdout.strip())
        if outcome == "result":
            lost = [path for path in changed if path in self.files]
            require(not lost, f"inputs changed: {lost}")
            self.check(folder, ended)
        return outcome


@dataclass(frozen=True)
class Call:
    """A call of the Python API: it returns a value that `check` accepts, or raises ValueError or
    TypeError in a line or a few that say what is wrong."""

    said: str
    call: Callable[[], Any]
    wanted: Outcome | None = None
    check: Callable[[Any], None] = lambda _value: None
    names: Sequence[str] = ()

    def line(self) -> str:
        return self.said

    def run(self, _folder: Path) -> Outcome:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                value = self.call()
            except (ValueError, TypeError, MemoryError) as error:
                require(str(error).strip(), f"an empty {type(error).__name__}")
                outcome: Outcome = "refused"
                inner = isinstance(error, TypeError) and "unexpected keyword" in str(error)
                require(not inner, f"the case itself is wrong: {error}")
                said = str(error)
            else:
                outcome, said = "result", ""
        as_told(self, outcome, said)
        if outcome == "result":
            self.check(value)
        return outcome


Case = Command | Call


def as_told(case: Case, outcome: Outcome, said: str) -> None:
    """Whether the case ended as it says that it must: raises Wrong for another end."""
    named = outcome == "result" or not case.names or any(name in said for name in case.names)
    require(named, f"names none of {list(case.names)}: {said}")
    expected = case.wanted or outcome
    require(outcome == expected, f"expected {expected}, was {outcome}: {said:.600}")


def judged(ended: Ended) -> Outcome:
    """Whether a command ended as it may: raises Wrong for any other end."""
    require("Traceback (most recent" not in ended.stderr, f"a traceback: {ended.stderr[-1500:]}")
    if ended.status in (0, 1):
        noisy = [line for line in ended.stderr.splitlines() if "Warning" in line]
        require(not noisy, f"a warning of Python's or a library's: {noisy[:2]}")
        findings = ended.status == 0 or "finding" in ended.stdout  # what `data check` exits with
        require(findings, f"status 1: {ended.stderr[-500:]}")
        return "result"
    require(ended.status == 2, f"status {ended.status}: {ended.stderr[-500:]}")
    if ended.stdout.strip().startswith("Usage: deeplab") and not ended.stderr:
        return "refused"  # a command without arguments shows its help
    require(ended.stdout == "", f"status 2, and yet on standard output: {ended.stdout[:300]}")
    if ended.stderr.startswith(("Usage: deeplab", "╭─ Error")):  # typer's own box
        require("Error" in ended.stderr, f"usage without an error: {ended.stderr}")
        return "refused"
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("Note: ")]
    require(len(lines) == 1, f"{len(lines)} lines instead of one: {ended.stderr[-1500:]}")
    require(lines[0].startswith("Error: "), f"no line of the program's own: {lines[0]}")
    require(len(lines[0]) < LONGEST_LINE, f"a line of {len(lines[0])} characters: {lines[0]:.300}")
    require(" object at 0x" not in lines[0], f"an object instead of words: {lines[0]}")
    return "refused"


def invoke(args: Sequence[str]) -> Ended:
    """The command in this process, both streams caught below Python, where libraries write too."""
    out, err = _Pipe(), _Pipe()
    with _streams_in(out, err), warnings.catch_warnings():  # each warning as if for the first time
        status = run_command(args)
    return Ended(status, out.text(), err.text())


class _Pipe:
    """Takes words in without a disk, which may be full."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC)
        fcntl.fcntl(self._write, fcntl.F_SETPIPE_SZ, 1 << 20)
        os.set_blocking(self._read, False)  # a child may hold the other end still

    def fileno(self) -> int:
        return self._write

    def text(self) -> str:
        os.close(self._write)
        parts = []
        with suppress(BlockingIOError):
            while part := os.read(self._read, 1 << 16):
                parts.append(part)
        os.close(self._read)
        return b"".join(parts).decode(errors="replace")


def run_command(args: Sequence[str]) -> int:
    """Run a command in this process, and say what it would exit with."""
    try:
        _command().main(args=list(args), prog_name="deeplab")
    except SystemExit as end:
        return 0 if end.code is None else end.code if isinstance(end.code, int) else 1
    except Exception:  # what Python would print, and end with status 1
        traceback.print_exc()
        return 1
    return 0


@cache
def _command() -> Any:
    return typer.main.get_command(cli.app)


@contextmanager
def _streams_in(out: Any, err: Any) -> Iterator[None]:
    kept = {fd: os.dup(fd) for fd in (1, 2)}
    streams = sys.stdout, sys.stderr
    for stream in streams:
        with suppress(ValueError):
            stream.flush()
    try:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8")
        sys.stderr = io.TextIOWrapper(
            io.FileIO(2, "w", closefd=False), encoding="utf-8", errors="backslashreplace"
        )
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = streams
        for fd, copy in kept.items():
            os.dup2(copy, fd)
            os.close(copy)


def snapshot(folder: Path) -> dict[str, Any]:
    """What lies in a folder, by name: content of small files, time and size of large ones."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name, state = path.relative_to(folder).as_posix(), path.lstat()
        small = path.is_file() and not path.is_symlink() and state.st_size < 1 << 16
        found[name] = path.read_bytes() if small else (state.st_mode, state.st_size)
        if not small and path.is_file():
            found[name] = (state.st_size, state.st_mtime_ns)
    return found
