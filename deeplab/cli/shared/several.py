"""Commands that torchrun may start in several processes: an error is printed once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from deeplab.errors import InputError


@contextmanager
def reported_once(then: str) -> Iterator[None]:
    """Errors as one line of the process that has them; the processes beside it end quietly.

    then: what to do once it is mended, for the first process to say where another one failed.

    Raises InputError in a process that is alone, also for a FloatingPointError; ends others.
    """
    from deeplab.distributed import OtherProcessEnded, is_first, started_with_others

    try:
        yield
    except (InputError, FloatingPointError) as error:
        if started_with_others():
            _leave(2, f"Error: {error}")
        raise InputError(str(error)) from error
    except OtherProcessEnded as error:
        _leave(1, f"Stopped: {error}; {then}" if is_first() else "")  # the other has said more


def _leave(status: int, message: str) -> NoReturn:
    """End this process among others at once, with a line on standard error if there is one.

    A usual end takes Python down under the threads of connections that are broken or in use; one of
    them that wakes up then aborts the process, with its own words behind the message.
    """
    if message:
        typer.echo(message, err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
