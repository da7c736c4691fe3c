"""A folder of pictures through a command: what is skipped, progress, a manifest, a summary, Ctrl-C.

`deeplab.data.folders` does the work; here is what is said of it.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import typer
from rich.console import Console
from rich.progress import Progress

from deeplab.cli.shared.options import option
from deeplab.cli.shared.results import print_notes
from deeplab.data.conversions import Conversion
from deeplab.data.folders import Manifest, Outcome, check_manifest_name, cores, work_through
from deeplab.data.outputs import check_writable_file
from deeplab.errors import InputError, OutputError, printable

if TYPE_CHECKING:
    from deeplab.distributed import Processes

Item = TypeVar("Item")
PANEL = "Folders"
ON_GPU = 4  # one in the network, others read and written


@dataclass(frozen=True)
class ManyOptions:
    """How a folder of pictures is gone through."""

    workers: Annotated[
        int | None,
        option(
            "N",
            "How many pictures at a time.",
            panel=PANEL,
            shown="one a processor core; 4 on a GPU",
        ),
    ] = None
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

    def check_manifest(self) -> None:
        """InputError for a manifest that cannot be written, before any work."""
        if self.manifest is not None:
            check_manifest_name(self.manifest)
            check_writable_file(self.manifest)

    def at_once(self, group: Processes) -> int:
        """How many pictures this process works on at a time; InputError for none."""
        if self.workers is None:
            most = cores() if group.device.type == "cpu" else min(cores(), ON_GPU)
            return max(1, most // group.beside)
        if self.workers < 1:
            raise InputError(f"--workers must be 1 or more, not {self.workers}")
        return self.workers


@dataclass(frozen=True)
class Done:
    """A finished item: its row in a manifest, the line to print, and what there is to remark.

    Without a row and a line its result was there before.
    """

    outcome: Outcome | None = None
    line: str | None = None
    notes: Sequence[Conversion] = ()


Answer = Sequence[Done | InputError] | InputError  # of a batch: for each item, or of all


@dataclass(frozen=True)
class Job(Generic[Item]):
    """What is done with each of many; all but `file` may run in several threads.

    Attributes:
        items: what to work on.
        file: the picture of an item.
        is_there: whether the result of an item is on disk, and whole.
        found: what such a result is, read from the disk.
        work: makes and writes the results of a batch, and answers for each of its items.
        verb: what that is called, such as "refined".
        things: what the items are called.
        batch: how many items `work` is given at a time, counted from the first item on. With
            --skip-existing a batch of which a result is missing is worked on as a whole, so that
            results do not depend on what was there before.
    """

    items: Sequence[Item]
    file: Callable[[Item], Path]
    is_there: Callable[[Item], bool]
    found: Callable[[Item], Outcome]
    work: Callable[[Sequence[Item]], Sequence[Done | InputError]]
    verb: str
    things: str = "pictures"
    batch: int = 1

    def items_of(self, position: int) -> Sequence[Item]:
        """The batch at a position among the batches."""
        return self.items[position * self.batch : (position + 1) * self.batch]


def run_many(job: Job[Item], options: ManyOptions, group: Processes) -> None:
    """Work on all items, several at a time; print a line for each and a summary.

    The processes of a group share the batches, each takes from what is left. The first of them
    prints, and writes the manifest.

    Raises InputError at the first file that cannot be used, after finishing what was in hand; with
    --skip-broken only where no file could be, or a result cannot be written. Ctrl-C finishes what
    is in hand, and then ends the command with status 130 (SIGTERM: 143).
    """
    from deeplab.shared_work import SharedWork
    from deeplab.stopping import stop_request

    start = time.perf_counter()
    shared = SharedWork(group, -(-len(job.items) // job.batch))

    def one(position: int) -> Sequence[Done | InputError]:
        items = job.items_of(position)
        if options.skip_existing and all(map(job.is_there, items)):
            return [Done() for _ in items]
        return job.work(items)

    with ExitStack() as stack:
        stop = stack.enter_context(stop_request())
        stack.enter_context(one_thread_each(group, len(job.items)))
        _check_lists(group, job)
        with group.together():
            manifest = None
            if options.manifest is not None and group.first:
                manifest = stack.enter_context(Manifest(options.manifest, options.skip_existing))

        def stopped() -> bool:
            return stop.signal != 0

        answers = work_through(shared.claims(), one, options.at_once(group), stopped)
        if not group.first:
            for position, answer in answers:
                shared.tell(_as_text(position, answer))
            if stop.signal:
                shared.stop()
            shared.end()
        else:
            with _progress(len(job.items), job.verb) as advance:
                tally = Tally(job, options.skip_broken, manifest, advance, shared.stop)
                with ThreadPoolExecutor(1) as pool:
                    others = pool.submit(tally.add_all, map(_of_text, shared.heard()))
                    tally.add_all(answers)
                    if stop.signal:
                        shared.stop()
                    others.result()
            tally.end(time.perf_counter() - start, stop.signal)
        if stop.signal:
            raise typer.Exit(128 + stop.signal)


def _check_lists(group: Processes, job: Job[Item]) -> None:
    """InputError in the first process unless all of them have the same files, in the same order."""
    digest = sha256("\0".join(str(job.file(item)) for item in job.items).encode(errors="replace"))
    lists = group.gather((len(job.items), digest.hexdigest()))
    with group.together():
        if group.first and len(set(lists)) > 1:
            counts = ", ".join(str(count) for count, _ in lists)
            raise InputError(
                f"the processes of this run do not find the same pictures ({counts}); give all the "
                "same folder by the same name, and start when nothing is added to it any more"
            )


def _as_text(position: int, answer: Answer) -> str:
    """What another process is told of a batch."""

    def plain(each: Done | InputError) -> dict[str, Any]:
        if isinstance(each, InputError):
            return {"error": str(each), "of_output": isinstance(each, OutputError)}
        return asdict(each)

    whole = isinstance(answer, InputError)
    answers = [answer] if isinstance(answer, InputError) else answer
    return json.dumps([position, whole, [plain(each) for each in answers]])


def _of_text(text: str) -> tuple[int, Answer]:
    """The position and answer that `_as_text` was given."""

    def restored(plain: dict[str, Any]) -> Done | InputError:
        if "error" in plain:
            return (OutputError if plain["of_output"] else InputError)(plain["error"])
        outcome = plain["outcome"] and Outcome(**plain["outcome"])
        return Done(outcome, plain["line"], [Conversion(**each) for each in plain["notes"]])

    position, whole, answers = json.loads(text)
    answer = [restored(each) for each in answers]
    return position, answer[0] if whole and isinstance(answer[0], InputError) else answer


class Tally(Generic[Item]):
    """What became of the items: printed, in the manifest, and counted for the summary.

    In the order of the items, whenever they are ready, so that a run says what the last one said.

    stop: what is called when the work has to end before all is done.
    """

    def __init__(
        self,
        job: Job[Item],
        skip_broken: bool,
        manifest: Manifest | None,
        advance: Callable[[int], None],
        stop: Callable[[], None],
    ) -> None:
        self.job, self.skip_broken, self.manifest = job, skip_broken, manifest
        self.advance, self.stop = advance, stop
        self.done = self.there = self.broken = 0
        self.first_broken = ""
        self.error: InputError | None = None
        self.notes: dict[str, tuple[int, Conversion]] = {}
        self._one_at_a_time = Lock()
        self._ready: dict[int, Sequence[Done | InputError]] = {}
        self._next = 0

    def add_all(self, answers: Iterable[tuple[int, Answer]]) -> None:
        """Take in answers as they come, in any order; called by several threads."""
        try:
            for position, answer in answers:
                count = len(self.job.items_of(position))
                each = [answer] * count if isinstance(answer, InputError) else answer
                if any(isinstance(one, InputError) and self._ends(one) for one in each):
                    self.stop()
                with self._one_at_a_time:
                    self.advance(count)
                    self._ready[position] = each
                    while self._next in self._ready:
                        self._add_batch(self._next)
                        self._next += 1
        except BaseException:
            self.stop()
            raise

    def _ends(self, error: InputError) -> bool:
        return not self.skip_broken or isinstance(error, OutputError)

    def _add_batch(self, position: int) -> None:
        answers = self._ready.pop(position)
        for item, answer in zip(self.job.items_of(position), answers, strict=True):
            self._add(item, answer)

    def _add(self, item: Item, answer: Done | InputError) -> None:
        try:
            if isinstance(answer, InputError):
                raise answer
            outcome = answer.outcome
            if answer.line is not None:
                self.done += 1
                self._note(answer.notes)
                typer.echo(answer.line)
            else:
                if self.manifest is not None and str(self.job.file(item)) not in self.manifest:
                    outcome = self.job.found(item)
                self.there += 1
        except InputError as error:
            outcome = Outcome(str(self.job.file(item)), notes=(str(error),))
            self._add_broken(error)
        if self.manifest is not None and outcome is not None:
            self.manifest.add(outcome)

    def _add_broken(self, error: InputError) -> None:
        if self._ends(error):
            self.error = self.error or error
            self.stop()
        else:
            self.broken += 1
            self.first_broken = self.first_broken or str(error)
            typer.echo(f"Left out: {error}", err=True)

    def _note(self, conversions: Sequence[Conversion]) -> None:
        for each in conversions:
            kind = re.sub(r"\d+", "#", each.kind)  # numbers differ from picture to picture
            count, first = self.notes.get(kind, (0, each))
            self.notes[kind] = (count + 1, first)

    def end(self, seconds: float, signal: int) -> None:
        """Print notes and the summary; InputError where the work ended for one."""
        print_notes(
            f"{count} {self.job.things}, such as {first}" if count > 1 else str(first)
            for count, first in self.notes.values()
        )
        parts = [f"{self.done} of {len(self.job.items)} {self.job.things} {self.job.verb}"]
        if self.there:
            parts.append(f"{self.there} there before")
        if self.broken:
            parts.append(f"{self.broken} left out as broken")
        rate = f", {self.done / seconds:.2f} a second" if self.done else ""
        summary = f"{', '.join(parts)}; {seconds:.1f} s{rate}"
        if isinstance(self.error, OutputError):
            raise InputError(f"{self.error} ({summary}; --skip-existing goes on)")
        if self.error is not None:
            raise InputError(
                f"{self.error} ({summary}; --skip-broken goes on after such files, --skip-existing "
                "leaves out what is done)"
            )
        if self.broken and not self.done and not self.there:
            raise InputError(f"none of the files could be used; the first: {self.first_broken}")
        typer.echo(printable(summary))
        left = len(self.job.items) - self.done - self.there - self.broken
        if signal or left:
            typer.echo("Stopped; the same command with --skip-existing goes on.", err=True)
        if left and not signal:  # another process was asked to stop
            raise typer.Exit(1)


@contextmanager
def one_thread_each(group: Processes, count: int) -> Iterator[None]:
    """One thread of torch and of our kernels a picture: the pictures are what runs side by side.

    Whatever the number of cores and of pictures at a time, so that they change no bit of the
    results; only a picture that is the only one has all threads.
    """
    import torch

    before = torch.get_num_threads()
    if group.device.type == "cpu" and count > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error where it is seen, and what moves it on."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    # Lines that are printed meanwhile go above the bar, but stay on standard output if it is piped.
    with Progress(console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
