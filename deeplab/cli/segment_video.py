"""`deeplab segment` on videos: what goes with them, progress, a line and a row for each."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from deeplab.cli.shared.many import Done, Job, ManyOptions, Tally, one_thread_each
from deeplab.cli.shared.options import option
from deeplab.cli.shared.results import areas_text
from deeplab.data import images, outputs
from deeplab.data.folders import Manifest, Outcome, area_shares
from deeplab.errors import InputError

if TYPE_CHECKING:
    from deeplab.distributed import Processes
    from deeplab.predict import Predictor
    from deeplab.predict.video import LabelFormat, VideoFiles

PANEL = "Videos"
EACH = 10.0  # seconds between lines of progress, where no bar is seen
VideoLabels = StrEnum("VideoLabels", ["ffv1", "png"])
Video = tuple[Path, str]  # the file, and the name of its results


@dataclass(frozen=True)
class VideoOptions:
    """How videos are segmented."""

    every: Annotated[
        int, option("N", "Only each Nth frame; the overlay shows it until the next.", panel=PANEL)
    ] = 1
    video_labels: Annotated[
        VideoLabels,
        typer.Option(
            help="Labels, lossless: ffv1, a grey video NAME_labels.mkv; png, a folder NAME_labels "
            "of palette PNGs, called after their frames.",
            rich_help_panel=PANEL,
        ),
    ] = VideoLabels.ffv1

    @property
    def labels(self) -> LabelFormat:
        return "png" if self.video_labels is VideoLabels.png else "ffv1"

    def apply_to(self, files: Sequence[Path], refused: Sequence[str], processes: int) -> bool:
        """Whether the files are videos, which have to be alone, in one process.

        refused: options that were given and do not go with videos.
        """
        videos = [file for file in files if file.suffix.lower() in images.VIDEOS]
        if not videos:
            if self != VideoOptions():
                raise InputError("--every, --video-labels: only count with videos; leave them out")
            return False
        if others := [file for file in files if file.suffix.lower() not in images.VIDEOS]:
            raise InputError(
                f"{videos[0]}: is a video, and {others[0]} is none; segment them one after another"
            )
        if refused:
            raise InputError(f"{refused[0]} must be left out with videos")
        if processes > 1:
            raise InputError("videos must be segmented by one process, not by those of torchrun")
        if self.every < 1:
            raise InputError(f"--every must be 1 or more, not {self.every}")
        return True


def segment_videos(
    videos: Sequence[Video],
    predictor: Predictor,
    classes: outputs.NamedPalette,
    out: Path,
    options: VideoOptions,
    many: ManyOptions,
    group: Processes,
    *,
    legend: bool,
    max_megapixels: float | None,
) -> None:
    """One video after another, the frames of each side by side; else as `run_many`.

    Raises InputError before any work for a predictor or a video that cannot be used.
    """
    from deeplab.predict.video import check_predictor
    from deeplab.stopping import stop_request

    try:
        check_predictor(predictor)
    except ValueError as error:
        raise InputError(str(error)) from error
    workers = many.at_once(group)
    predictor = replace(predictor, at_once=workers)
    work = _Work(predictor, classes, out, options, many, workers, legend, max_megapixels)
    todo = [video for video in videos if not (many.skip_existing and work.is_there(video))]
    _check(todo, map(work.files_of, videos), many.skip_broken, max_megapixels)
    job = Job(videos, _file, work.is_there, work.found, lambda _: (), "segmented", "videos")
    start, table = time.perf_counter(), many.manifest
    with stop_request() as stop, one_thread_each(group, count=2):  # frames, of which are several
        with Manifest(table, many.skip_existing) if table else nullcontext() as manifest:
            tally = Tally(job, many.skip_broken, manifest, lambda _: None, lambda: None)
            for position, video in enumerate(videos):
                answer: Done | InputError | None = Done()
                try:
                    if video in todo:
                        answer = work.segment(video, lambda: stop.signal != 0)
                except InputError as error:
                    answer = error
                if answer is not None:
                    tally.add_all([(position, [answer])])
                if stop.signal or tally.error:
                    break
        tally.end(time.perf_counter() - start, stop.signal)
    if stop.signal:
        raise typer.Exit(128 + stop.signal)


def _file(video: Video) -> Path:
    return video[0]


@dataclass(frozen=True)
class _Work:
    """How videos become results."""

    predictor: Predictor
    classes: outputs.NamedPalette
    out: Path
    options: VideoOptions
    many: ManyOptions
    workers: int
    legend: bool
    max_megapixels: float | None

    def files_of(self, video: Video) -> VideoFiles:
        """Where the results go."""
        from deeplab.predict.video import VideoFiles

        return VideoFiles(self.out, video[1], self.options.labels)

    def is_there(self, video: Video) -> bool:
        """Whether the results are on disk."""
        return self.files_of(video).are_there()

    def found(self, video: Video) -> Outcome:
        """What the results on disk say."""
        areas, size, frames = np.zeros(256, np.int64), None, 0
        for labels in self.files_of(video).read_labels():
            areas += np.bincount(labels.ravel(), minlength=len(areas))
            size, frames = (labels.shape[1], labels.shape[0]), frames + 1
        notes = (f"{frames} frames", "there before")
        shares = area_shares(areas, int(areas.sum()), self.classes.names)
        return Outcome(str(video[0]), size, shares, notes=notes)

    def segment(self, video: Video, stopped: Callable[[], bool]) -> Done | None:
        """The results of a video, written; None where it was stopped before its end."""
        from deeplab.predict.video import segment_video

        start, file = time.perf_counter(), video[0]
        with _progress(file) as progress:
            result = segment_video(
                self.predictor,
                file,
                self.out,
                video[1],
                classes=self.classes,
                every=self.options.every,
                labels=self.options.labels,
                legend=self.legend,
                skip_broken=self.many.skip_broken,
                go_on=self.many.skip_existing,
                workers=self.workers,
                max_megapixels=self.max_megapixels,
                progress=progress,
                stopped=stopped,
            )
        if result is None:
            return None
        seconds, size = time.perf_counter() - start, result.size
        frames = f"{result.frames} frames"
        frames += "" if self.options.every == 1 else f" of {result.decoded}"
        areas, pixels = result.areas, int(result.areas.sum())
        line = (
            f"{file}: {size[0]} x {size[1]}, {frames}, "
            f"{areas_text(areas, pixels, self.classes)}; {seconds:.1f} s "
            f"({result.frames / seconds:.1f} frames a second) -> {result.files.labels}"
        )
        notes = (frames, *(each.text for each in result.conversions))
        shares = area_shares(areas, pixels, self.classes.names)
        outcome = Outcome(str(file), size, shares, seconds, notes)
        return Done(outcome, line, result.conversions)


def _check(
    todo: Sequence[Video],
    results: Iterable[VideoFiles],
    skip_broken: bool,
    max_megapixels: float | None,
) -> None:
    """InputError for a video that cannot be opened, or that a result would overwrite."""
    from deeplab.data.video import Clip, require_av

    require_av()
    inputs = {file.resolve() for file, _ in todo}
    for result in results:
        for target in (result.overlay, result.labels):
            if target.resolve() in inputs:
                raise InputError(
                    f"{target}: is an input, and a result would overwrite it; choose another "
                    "output folder with --out"
                )
    for file, _ in [] if skip_broken else todo:
        Clip(file, max_megapixels=max_megapixels).close()


@contextmanager
def _progress(file: Path) -> Iterator[Callable[[int, int | None], None]]:
    """What is told of each frame that is done: a bar on standard error, or lines where it is piped.

    The rate is that since the last line or, of the bar, since the first frame.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(file)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} frames, {task.fields[rate]:.1f} a second"),
        TimeRemainingColumn(),
    )
    start = time.perf_counter()
    # Lines that are printed meanwhile go above the bar, but stay on standard output if it is piped.
    with Progress(
        *columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()
    ) as bar:
        task = bar.add_task(file.name, total=None, rate=0.0)

        def show(done: int, expected: int | None) -> None:
            rate = done / (time.perf_counter() - start)
            bar.update(task, completed=done, total=expected, rate=rate)

        yield show


def _lines(file: Path) -> Callable[[int, int | None], None]:
    last, before = time.perf_counter(), 0

    def tell(done: int, expected: int | None) -> None:
        nonlocal last, before
        now = time.perf_counter()
        if now - last >= EACH:
            of = "" if expected is None else f" of {expected}"
            rate = (done - before) / (now - last)
            typer.echo(f"{file}: {done}{of} frames, {rate:.1f} a second", err=True)
            last, before = now, done

    return tell
