"""Commands in processes of their own, forked from one that has everything loaded.

A process that starts from nothing spends three seconds on imports. The parent must not have used
torch's threads, which a fork does not bring along: it runs with one (OMP_NUM_THREADS=1).
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from campaign.case import run_command

PATIENCE = 300.0  # seconds for what takes a few


def warm() -> None:
    """Load what a training loads, so that its forked processes need not."""
    import torch

    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)  # which imports the most


class Child:
    """A command in a forked process; what it says goes to a file."""

    def __init__(self, args: Sequence[str], said: Path) -> None:
        self.said = said
        self.status: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(args)

    def _become(self, args: Sequence[str]) -> None:
        status = 1
        try:
            signal.setitimer(signal.ITIMER_PROF, 0)
            file = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.stdout, sys.stderr = (os.fdopen(os.dup(fd), "w") for fd in (1, 2))
            status = run_command(args)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)

    def poll(self) -> int | None:
        """The exit status, negative for a signal, or None while it runs."""
        if self.status is None:
            pid, state = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(state)
        return self.status

    def wait(self, until: Callable[[], bool] = lambda: False) -> bool:
        """Wait until something holds, True then; or until the process ends, False then."""
        deadline = time.monotonic() + PATIENCE
        while self.poll() is None:
            if until():
                return True
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"no end after {PATIENCE:g} s: {self.text()[-500:]}")
            time.sleep(0.002)
        return False

    def kill(self) -> int:
        """kill -9; the exit status, of the process itself where it was first."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            _, state = os.waitpid(self.pid, 0)
            self.status = os.waitstatus_to_exitcode(state)
        assert self.status is not None
        return self.status

    def text(self) -> str:
        return self.said.read_text(errors="replace") if self.said.exists() else ""
