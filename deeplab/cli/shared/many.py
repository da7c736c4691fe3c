"""A folder of pictures through a command: what is skipped, progress, a manifest, a summary, Ctrl-C.

`deeplab.data.folders` does the work; here is what is said of it.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import typer
from rich.console import Console
from rich.progress import Progress

from deeplab.cli.shared.options import option
from deeplab.cli.shared.results import print_notes
from deeplab.data.conversions import Conversion
from deeplab.data.folders import Manifest, Outcome, cores, work_through
from deeplab.errors import InputError, printable

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
    workers: Annotated[
        int | None,
        option("N", "How many pictures at a time.", panel=PANEL, shown="one a processor core"),
    ] = None

    def refuse_for_one(self) -> None:
        """InputError where one of them is given for a single file."""
        given = [each.name for each in fields(self) if getattr(self, each.name) != each.default]
        if given:
            raise InputError(
                f"--{given[0].replace('_', '-')}: only counts with folders; leave it out"
            )

    def number_of_workers(self) -> int:
        """InputError for fewer than one."""
        if self.workers is not None and self.workers < 1:
            raise InputError(f"--workers must be 1 or more, not {self.workers}")
        return self.workers or cores()


@dataclass(frozen=True)
class Job(Generic[Item]):
    """What is done with each of many.

    Attributes:
        items: what to work on.
        total: how many.
        file: the picture of an item.
        is_there: whether the result of an item is on disk, and whole.
        found: what such a result is, read from the disk.
        work: makes and writes the result; runs in several threads.
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
    """A finished item: its outcome, the line to print, and what there is to remark."""

    outcome: Outcome
    line: str
    notes: Sequence[Conversion] = ()


@dataclass
class _Tally:
    done: int = 0
    there: int = 0
    broken: list[str] = field(default_factory=list)  # the first message alone
    broken_count: int = 0
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


def run_many(job: Job[Item], options: ManyOptions) -> None:
    """Work on all items, print a line for each and a summary.

    Raises InputError at the first file that cannot be used, after finishing what was in hand;
    with --skip-broken only where no file could be. Ctrl-C finishes what is in hand, and then ends
    the command with status 130 (SIGTERM: 143).
    """
    from deeplab.stopping import stop_request

    workers, start, tally = options.number_of_workers(), time.perf_counter(), _Tally()
    with ExitStack() as stack:
        manifest = None
        if options.manifest is not None:
            manifest = stack.enter_context(Manifest(options.manifest, options.skip_existing))
        stop = stack.enter_context(stop_request())
        advance = stack.enter_context(_progress(len(job.items), job.verb))
        stack.enter_context(_one_thread_each())

        def left() -> Iterator[Item]:
            for item in job.items:
                if not (options.skip_existing and job.is_there(item)):
                    yield item
                    continue
                tally.there += 1
                if manifest is not None and str(job.file(item)) not in manifest:
                    manifest.add(job.found(item))
                advance()

        def stopped() -> bool:
            return stop.signal != 0 or tally.error is not None

        for item, answer in work_through(left(), job.work, workers, stopped):
            if isinstance(answer, InputError):
                tally.broken_count += 1
                if not options.skip_broken:
                    tally.error = tally.error or answer
                else:
                    tally.broken = tally.broken or [str(answer)]
                    typer.echo(f"Left out: {answer}", err=True)
                outcome = Outcome(str(job.file(item)), notes=(str(answer),))
            else:
                tally.done += 1
                tally.note(answer.notes)
                outcome = answer.outcome
                typer.echo(answer.line)
            if manifest is not None:
                manifest.add(outcome)
            advance()
    print_notes(tally.lines())
    _end(job, tally, time.perf_counter() - start, stop.signal)


def _end(job: Job[Item], tally: _Tally, seconds: float, signal: int) -> None:
    """The summary, and how the command ends."""
    parts = [f"{tally.done} of {len(job.items)} pictures {job.verb}"]
    if tally.there:
        parts.append(f"{tally.there} there before")
    if tally.broken_count:
        parts.append(f"{tally.broken_count} left out as broken")
    rate = f", {tally.done / seconds:.2f} a second" if tally.done else ""
    summary = f"{', '.join(parts)}; {seconds:.1f} s{rate}"
    if tally.error is not None:
        raise InputError(
            f"{tally.error} ({summary}; --skip-broken leaves such files out, --skip-existing what "
            "is done)"
        )
    if tally.broken and not tally.done and not tally.there:
        raise InputError(f"none of the files could be used; the first: {tally.broken[0]}")
    typer.echo(printable(summary))
    if signal:
        typer.echo("Stopped; the same command with --skip-existing goes on.", err=True)
        raise typer.Exit(128 + signal)


@contextmanager
def _one_thread_each() -> Iterator[None]:
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
