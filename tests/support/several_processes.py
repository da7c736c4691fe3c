"""Python in processes of their own: one of them, or two as torchrun starts them.

They are forked from a process that has imported what they need, since each would take three seconds
for that: a server of its own, because the one that runs the tests may have threads, which a fork
does not bring along.
"""

from __future__ import annotations

import functools
import os
import re
import runpy
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run_python(*command: str) -> str:
    """What `python *command`, see `Started`, says on standard output; it must end with status 0."""
    child = Started(command)
    out, err = child.communicate()
    assert child.returncode == 0, out + err
    return out


def start_two(*command: str) -> list[Started]:
    """`python *command`, see `Started`, in two processes of one group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "OMP_NUM_THREADS": 1}
        about |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        children.append(Started(command, {name: str(value) for name, value in about.items()}))
    return children


def run_two(*command: str) -> list[str]:
    """What each of the two says on standard output; both must end with status 0."""
    children = start_two(*command)
    told = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [0, 0], told
    return [out for out, _ in told]


def but_progress(said: str) -> str:
    """What a training says on standard error that is no terminal, without how far it is."""
    lines = said.splitlines(keepends=True)
    return "".join(
        line for line in lines if not re.match(r"step \d+/\d|about .* for \d+ steps", line)
    )


class Started:
    """`python *command` in a forked process, with the part of subprocess.Popen that tests ask for.

    The command begins with -c PROGRAM or -m MODULE. The process leads a session, and so a process
    group, of its own.
    """

    def __init__(self, command: tuple[str, ...], about: Mapping[str, str] = {}) -> None:
        self._said = [tempfile.NamedTemporaryFile() for _ in range(2)]  # noqa: SIM115
        names = [file.name for file in self._said]
        self.returncode: int | None = None
        self.pid: int = _ask((command, {**os.environ, **about}, names))

    def communicate(self, timeout: float = 900) -> tuple[str, str]:
        """What it has said on standard output and standard error, once it has ended."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"no end after {timeout:g} s: {self._texts()}")
            time.sleep(0.01)
        out, err = self._texts()
        return out, err

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _ask(self.pid)
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, 9)

    def _texts(self) -> list[str]:
        return [Path(file.name).read_text() for file in self._said]


def _ask(request: Any) -> Any:
    connection = _server()
    connection.send(request)
    return connection.recv()


@functools.cache
def _server() -> Connection:
    """The connection to the server, which ends when this process does."""
    ours, theirs = Pipe()
    program = "import sys, several_processes; several_processes.serve(int(sys.argv[1]))"
    path = os.pathsep.join((str(ROOT / "tests" / "support"), str(ROOT)))
    subprocess.Popen(
        [sys.executable, "-c", program, str(theirs.fileno())],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    return ours


def serve(fd: int) -> None:
    """Fork a process for each command that comes, and tell of each how it ended."""
    import tiny_training  # noqa: F401
    import torch

    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)  # which imports the most
    connection = Connection(fd)
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        if isinstance(request, int):
            pid, status = os.waitpid(request, os.WNOHANG)
            connection.send(os.waitstatus_to_exitcode(status) if pid else None)
        elif pid := os.fork():
            connection.send(pid)
        else:
            connection.close()
            _run(*request)


def _run(command: tuple[str, ...], environment: dict[str, str], said: list[str]) -> None:
    """Be `python *command`, up to how it ends."""
    os.setsid()
    for descriptor, name in zip((1, 2), said, strict=True):
        file = os.open(name, os.O_WRONLY)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    kind, what, *arguments = command
    sys.argv = [what if kind == "-m" else kind, *arguments]
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(what, {"__name__": "__main__"})
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    sys.exit(0)
