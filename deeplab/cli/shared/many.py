"""A folder of pictures through a command: what is skipped, progress, a manifest, a summary, Ctrl-C.

`deeplab.data.folders` does the work; here is what is said of it.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import typer
from rich.console import Console
from rich.progress import Progress

from deeplab.cli.shared.options import option
from deeplab.cli.shared.results import print_notes
from deeplab.data.conversions import Conversion
from deeplab.data.folders import Manifest, Outcome, work_through
from deeplab.errors import InputError, OutputError, printable

Item = TypeVar("Item")
PANEL = "Folders"


@dataclass(frozen=True)
class ManyOptions:
    """How a folder of pictures is gone through."""

    recursive: Annotated[
        bool,
        typer.Option(
            "--recursive",
            help="Subfolders too; the results get the same ones.",
            rich_help_panel=PANEL,
        ),
    ] = False
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing",
            help="Leave out pictures whose results are there: go on where a run ended.",
            rich_help_panel=PANEL,
        ),
    ] = False
    skip_broken: Annotated[
        bool,
        typer.Option(
            "--skip-broken",
            help="Go on after a file that cannot be used, and name it.",
            rich_help_panel=PANEL,
        ),
    ] = False
    manifest: Annotated[
        Path | None,
        option(
            "FILE.csv|FILE.jsonl",
            "A table of all pictures: size, shares of the classes, seconds, notes.",
            panel=PANEL,
            shown="none",
        ),
    ] = None

    def refuse_for_one(self) -> None:
        """InputError where one of them is given for a single file."""
        given = [each.name for each in fields(self) if getattr(self, each.name) != each.default]
        if given:
            raise InputError(
                f"--{given[0].replace('_', '-')}: only counts with folders; leave it out"
            )


@dataclass(frozen=True)
class Job(Generic[Item]):
    """What is done with each of many; all but `file` may run in several threads.

    Attributes:
        items: what to work on.
        file: the picture of an item.
        is_there: whether the result of an item is on disk, and whole.
        found: what such a result is, read from the disk.
        work: makes and writes the result.
        verb: what that is called, such as "refined".
    """

    items: Sequence[Item]
    file: Callable[[Item], Path]
    is_there: Callable[[Item], bool]
    found: Callable[[Item], Outcome]
    work: Callable[[Item], Done]
    verb: str


@dataclass(frozen=True)
class Done:
    """A finished item: its row in a manifest, the line to print, and what there is to remark.

    Without a line its result was there before; without a row it has one.
    """

    outcome: Outcome | None = None
    line: str | None = None
    notes: Sequence[Conversion] = ()


@dataclass
class _Tally:
    done: int = 0
    there: int = 0
    broken: int = 0
    first_broken: str = ""
    error: InputError | None = None
    notes: dict[str, tuple[int, Conversion]] = field(default_factory=dict)

    def note(self, conversions: Sequence[Conversion]) -> None:
        for each in conversions:
            kind = re.sub(r"\d+", "#", each.kind)  # numbers differ from picture to picture
            count, first = self.notes.get(kind, (0, each))
            self.notes[kind] = (count + 1, first)

    def lines(self) -> Iterator[str]:
        for count, first in self.notes.values():
            yield f"{count} pictures, such as {first}" if count > 1 else str(first)


def run_many(job: Job[Item], options: ManyOptions, workers: int) -> None:
    """Work on all items, print a line for each and a summary.

    Raises InputError at the first file that cannot be used, after finishing what was in hand; with
    --skip-broken only where no file could be, or a result cannot be written. Ctrl-C finishes what
    is in hand, and then ends the command with status 130 (SIGTERM: 143).
    """
    from deeplab.stopping import stop_request

    start, tally, table = time.perf_counter(), _Tally(), options.manifest
    with (
        Manifest(table, options.skip_existing) if table else nullcontext() as manifest,
        stop_request() as stop,
        _progress(len(job.items), job.verb) as advance,
    ):

        def one(item: Item) -> Done:
            if options.skip_existing and job.is_there(item):
                has_row = manifest is None or str(job.file(item)) in manifest
                return Done(None if has_row else job.found(item))
            return job.work(item)

        def stopped() -> bool:
            return stop.signal != 0 or tally.error is not None

        for item, answer in work_through(job.items, one, workers, stopped):
            if isinstance(answer, InputError):
                if not options.skip_broken or isinstance(answer, OutputError):
                    tally.error = tally.error or answer
                else:
                    tally.broken += 1
                    tally.first_broken = tally.first_broken or str(answer)
                    typer.echo(f"Left out: {answer}", err=True)
                answer = Done(Outcome(str(job.file(item)), notes=(str(answer),)))
            elif answer.line is None:
                tally.there += 1
            else:
                tally.done += 1
                tally.note(answer.notes)
                typer.echo(answer.line)
            if manifest is not None and answer.outcome is not None:
                manifest.add(answer.outcome)
            advance()
    print_notes(tally.lines())
    _end(job, tally, time.perf_counter() - start, stop.signal)


def _end(job: Job[Item], tally: _Tally, seconds: float, signal: int) -> None:
    """The summary, and how the command ends."""
    parts = [f"{tally.done} of {len(job.items)} pictures {job.verb}"]
    if tally.there:
        parts.append(f"{tally.there} there before")
    if tally.broken:
        parts.append(f"{tally.broken} left out as broken")
    rate = f", {tally.done / seconds:.2f} a second" if tally.done else ""
    summary = f"{', '.join(parts)}; {seconds:.1f} s{rate}"
    if isinstance(tally.error, OutputError):
        raise InputError(f"{tally.error} ({summary}; --skip-existing goes on)")
    if tally.error is not None:
        raise InputError(
            f"{tally.error} ({summary}; --skip-broken goes on after such files, --skip-existing "
            "leaves out what is done)"
        )
    if tally.broken and not tally.done and not tally.there:
        raise InputError(f"none of the files could be used; the first: {tally.first_broken}")
    typer.echo(printable(summary))
    if signal:
        typer.echo("Stopped; the same command with --skip-existing goes on.", err=True)
        raise typer.Exit(128 + signal)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """One thread of torch and of our kernels a picture: the pictures are what runs side by side.

    Whatever the number of cores and of pictures, so that they change no bit of the results.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _progress(total: int, what: str) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error where it is seen, and what moves it on by one."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda: None
        return
    # Lines that are printed meanwhile go above the bar, but stay on standard output if it is piped.
    with Progress(console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)
