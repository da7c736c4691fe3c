"""What a run shows: a progress bar, a CSV file, and how fast it was.

One row of the log for each `log_every` steps and each validation:

    step                       steps done
    loss                       running mean over some fifty steps
    lr                         the body's learning rate in the last step
    images_per_second          of the steps, time spent waiting for samples left out
    loader_images_per_second   what the workers can deliver: their number over the time of a sample
    wait_share                 share of the time that the step waited for samples
    memory_mib                 peak so far: of the GPU, or of this process on a CPU
    miou, pixel_accuracy       of the validation after this step; empty where there was none
    iou/NAME                   of each class; empty too where it neither occurs nor is predicted

A resumed run drops rows beyond the step where it starts again, so that no step stands twice.
"""

from __future__ import annotations

import csv
import io
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    track,
)
from rich.table import Column

from deeplab.errors import InputError
from deeplab.training.callbacks import Callback, Run

if TYPE_CHECKING:
    from deeplab.training.run import TrainResult

try:
    import fcntl
    import resource
except ImportError:  # Windows has neither locks of this kind nor a peak of memory
    fcntl = resource = None  # type: ignore[assignment]

COLUMNS = (
    *("step", "loss", "lr", "images_per_second", "loader_images_per_second", "wait_share"),
    *("memory_mib", "miou", "pixel_accuracy"),
)
IOU = "iou/"


def columns(class_names: Iterable[str]) -> tuple[str, ...]:
    """The columns of the log of a run with these classes."""
    return (*COLUMNS, *dict.fromkeys(f"{IOU}{name}" for name in class_names))


@dataclass
class Throughput:
    """Images and seconds of a stretch of training, all processes counted as fast as this one.

    images: in all processes; stepping, waiting: seconds of this process in steps and for samples;
    making: seconds that its workers spent on its share of them.
    """

    workers: int = 1
    images: int = 0
    stepping: float = 0.0
    waiting: float = 0.0
    making: float = 0.0

    def add(self, images: int, stepping: float, waiting: float, making: float) -> None:
        self.images += images
        self.stepping += stepping
        self.waiting += waiting
        self.making += making

    @property
    def images_per_second(self) -> float:
        """Of the steps alone."""
        return self.images / max(self.stepping, 1e-9)

    @property
    def loader_images_per_second(self) -> float:
        """Of the workers alone; without workers, of the one process that does both in turn."""
        return max(1, self.workers) * self.images / max(self.making, 1e-9)

    @property
    def wait_share(self) -> float:
        return self.waiting / max(self.stepping + self.waiting, 1e-9)

    def as_row(self) -> dict[str, float]:
        names = ("images_per_second", "loader_images_per_second", "wait_share")
        return {name: round(getattr(self, name), 4) for name in names}

    def __str__(self) -> str:
        makers = f"{self.workers} workers" if self.workers else "no workers"
        return (
            f"steps {self.images_per_second:.1f} images/s, loader "
            f"{self.loader_images_per_second:.1f} images/s ({makers}), "
            f"{self.wait_share:.0%} of the time waiting for data"
        )


def peak_memory_mib(device: torch.device) -> int:
    """Peak memory in MiB: allocated on the GPU, or resident in this process on a CPU; 0 where the
    system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on a Mac
    return peak >> (20 if sys.platform == "darwin" else 10)


def duration(seconds: float) -> str:
    """A time for people, to two digits or so: "8.2 s", "42 min", "3 h 20 min"."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def has_rows(path: Path) -> bool:
    """Whether the log of a run has more than its header; InputError where it is none of a run."""
    return bool(read_rows(path))


class CSVLog(Callback):
    """The log in a file, one row a step at most, each row on the disk when `on_row` returns.

    It is locked from `on_start` to `on_end`, and with it all files of the run. The lock belongs to
    the process and not to its workers, so that none outlives a run that is killed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_start(self, run: Run) -> None:
        """Keeps the rows up to the step of a resume; InputError where another run writes."""
        path, names = self.path, columns(run.class_names)
        kept = [row for row in read_rows(path) if int(row["step"]) <= run.step]
        part = path.with_name(f".{path.name}.part")
        with named_errors(path):
            self._file: IO[str] = part.open("a", newline="", encoding="utf-8")
            self._lock(self._file)  # it becomes the log, and stays locked
            try:
                if path.exists():
                    with path.open("r+") as before:
                        self._lock(before)
                self._file.truncate(0)
                self._writer = csv.DictWriter(self._file, names, extrasaction="ignore")
                self._writer.writeheader()
                self._writer.writerows(kept)
                self._file.flush()
                os.replace(part, path)
            except BaseException:
                with suppress(OSError):
                    part.unlink(missing_ok=True)
                raise

    def on_row(self, row: Mapping[str, Any]) -> None:
        with named_errors(self.path):
            self._writer.writerow(row)
            self._file.flush()

    def on_end(self, result: TrainResult | None) -> None:
        with suppress(OSError):  # `on_row` has raised it already
            self._file.close()

    def _lock(self, file: IO[str]) -> None:
        if fcntl is None:
            return
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise InputError(
                f"{self.path}: another run is writing here; wait until it ends, or give another "
                "--out"
            ) from None
        except OSError:
            pass  # some network file systems have no locks


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot write the log ({error.strerror or error}); make room, then go on with "
            "--resume"
        ) from error


@dataclass
class Logger:
    """Progress and notes on standard error, rows in the logs; silent in all but one process.

    steps: of the run; shows_progress: with a bar on a terminal, elsewhere with a line for each row
    of the logs; enabled: whether this is the one process.
    """

    steps: int
    shows_progress: bool
    enabled: bool = True
    _bar: Progress | None = None
    _task: TaskID | None = None
    _began: tuple[int, float] | None = None  # step and time, where rows are printed

    def start(self, step: int) -> None:
        if not (self.shows_progress and self.enabled):
            return
        if not sys.stderr.isatty():
            self._began = step, time.monotonic()
        else:
            self._bar = _progress_bar()
            self._task = self._bar.add_task("train", total=self.steps, completed=step, status="")
            self._bar.start()

    def reading(self, indices: Iterable[int]) -> Iterable[int]:
        """The same numbers, with a bar for pictures that are read before the first step."""
        if not (self.shows_progress and self.enabled and sys.stderr.isatty()):
            return indices
        return track(indices, "reading", console=Console(stderr=True), transient=True)

    def progress(self, step: int, status: str) -> None:
        """Move the bar; `status` stands beside it."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, status=status)

    def info(self, text: str) -> None:
        """A line for people, whether or not there is a bar."""
        if not self.enabled:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr)

    def row(self, row: Mapping[str, Any]) -> None:
        if self._began is not None:
            print(self._as_line(row, *self._began), file=sys.stderr, flush=True)

    def _as_line(self, row: Mapping[str, Any], first: int, began: float) -> str:
        step = row["step"]
        facts = [f"step {step}/{self.steps}", f"loss {row['loss']:.3f}", f"lr {row['lr']:.4g}"]
        if "miou" in row:
            facts.append(f"mIoU {row['miou']:.1%}")
        if "images_per_second" in row:
            facts.append(f"{row['images_per_second']:.1f} images/s")
        if first < step < self.steps:
            left = (time.monotonic() - began) / (step - first) * (self.steps - step)
            facts.append(f"{duration(left)} left")
        return "  ".join(facts)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of a log; a kill may have left half of the last one.

    Raises InputError where a file of another kind has its name.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: not a readable log ({error}), and that of the run would take its place; move "
            "it away, or give another --out"
        ) from error
    if text and not text.startswith(",".join(COLUMNS[:3])):
        raise InputError(
            f"{path}: not the log of a run, which would take its place; move it away, or give "
            "another --out"
        )
    whole = io.StringIO(text[: text.rfind("\n") + 1], newline="")
    return [row for row in csv.DictReader(whole) if (row.get("step") or "").isdigit()]


def _progress_bar() -> Progress:
    """Times and counts whole, and what is said beside them on a second line where it is narrow."""
    count, taken, left = (Column(no_wrap=True) for _ in range(3))
    return Progress(
        MofNCompleteColumn(table_column=count),
        BarColumn(bar_width=16),
        TimeElapsedColumn(table_column=taken),
        TimeRemainingColumn(table_column=left),
        TextColumn("{task.fields[status]}", table_column=Column()),
        console=Console(stderr=True),
    )
