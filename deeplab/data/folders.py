"""Folders of many pictures: which files, in pairs; work on them side by side; what became of each.

    for pair in pair_by_stem(photos, softmaxes).names: ...
    for item, answer in work_through(items, work, workers, stopped): ...
    with Manifest(Path("done.csv")) as manifest: manifest.add(Outcome(...))

Names are held once, as text relative to their folder, so that hundreds of thousands take little
memory; only a few items are in hand at a time.
"""

from __future__ import annotations

import csv
import io
import json
import os
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from deeplab.data.conversions import Conversion
from deeplab.data.large import class_areas
from deeplab.errors import InputError, printable

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_NONE_LEFT: Any = object()
COLUMNS = ("file", "width", "height", "shares", "seconds", "notes")
MANIFESTS = (".csv", ".jsonl")


def cores() -> int:
    """Processor cores that this process may use, where the system tells; else those there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def files_below(folder: Path, suffixes: Container[str], recursive: bool) -> Iterator[str]:
    """The files with these suffixes (lower case, with a dot), relative to `folder`, with slashes.

    In the order of their names within each folder, files before subfolders, hidden ones left out.
    Linked subfolders count; one that leads back to a folder above it is left out.

    Raises InputError for a folder that cannot be listed.
    """
    yield from _below(folder, "", suffixes, recursive, ())


def _below(
    folder: Path, start: str, suffixes: Container[str], recursive: bool, above: Sequence[Path]
) -> Iterator[str]:
    try:
        above = (*above, folder.resolve())
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
            subfolders = sorted(entry.name for entry in visible if entry.is_dir()) * recursive
            names = sorted(
                entry.name
                for entry in visible
                if os.path.splitext(entry.name)[1].lower() in suffixes and entry.is_file()
            )
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before 3.13
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{folder}: cannot be listed ({reason})") from error
    del visible
    yield from (start + name for name in names)
    for name in subfolders:
        if (folder / name).resolve() not in above:
            yield from _below(folder / name, f"{start}{name}/", suffixes, recursive, above)


@dataclass
class Pairs:
    """Pictures with what belongs to each.

    Attributes:
        names: of both files, relative to their folders, in the order of `files_below`.
        alone: how many pictures have no other file, and the first of them.
        unused: how many of the other files belong to no picture.
    """

    names: list[tuple[str, str]] = field(default_factory=list)
    alone: int = 0
    first_alone: str = ""
    unused: int = 0


def pair_by_stem(
    pictures: Path,
    others: Path,
    picture_suffixes: Container[str],
    other_suffixes: Container[str],
    endings: Sequence[str] = ("",),
    recursive: bool = False,
) -> Pairs:
    """Each picture with the other file of its name, suffix apart, in the same subfolder.

    endings: what may stand behind the picture's name in that of the other file.

    Raises InputError where two pictures have one name, or two other files belong to one picture.
    """
    suffix_of: dict[str, str] = {}
    doubles: dict[str, str] = {}
    for name in files_below(others, other_suffixes, recursive):
        stem, suffix = os.path.splitext(name)
        if stem in suffix_of:
            doubles[stem] = suffix
        else:
            suffix_of[stem] = suffix
    found = Pairs()
    before: dict[str, str] = {}
    used = 0
    for name in files_below(pictures, picture_suffixes, recursive):
        stem, suffix = os.path.splitext(name)
        if stem in before:
            raise InputError(
                f"{pictures / (stem + before[stem])} and {pictures / name} have one name, and so "
                "would their results; rename one of them"
            )
        before[stem] = suffix
        fits = [stem + end + suffix_of[stem + end] for end in endings if stem + end in suffix_of]
        fits += [stem + end + doubles[stem + end] for end in endings if stem + end in doubles]
        if len(fits) > 1:
            raise InputError(
                f"{others / fits[0]} and {others / fits[1]} both belong to {pictures / name}; move "
                "one of them elsewhere"
            )
        if fits:
            found.names.append((name, fits[0]))
        else:
            found.alone += 1
            found.first_alone = found.first_alone or name
        used += len(fits)
    found.unused = len(suffix_of) - used
    return found


def work_through(
    items: Iterable[Item],
    work: Callable[[Item], Answer],
    workers: int,
    stopped: Callable[[], bool],
) -> Iterator[tuple[Item, Answer | InputError]]:
    """Each item with what `work` made of it, or the InputError that it raised, as they are ready.

    Threads do the work, which has to release Python's lock for most of its time. Each takes an item
    when it is free for it; at most as many answers as there are threads wait to be taken. Once
    `stopped` says so, none is begun any more: what is in hand is finished, and answered.
    """
    source, taking = iter(items), threading.Lock()

    def one() -> tuple[Item, Answer | InputError] | None:
        with taking:
            try:
                item = next(source) if not stopped() else _NONE_LEFT
            except StopIteration:
                item = _NONE_LEFT
        if item is _NONE_LEFT:
            return None
        try:
            return item, work(item)
        except InputError as error:
            return item, error

    with ThreadPoolExecutor(workers, thread_name_prefix="pictures") as pool:
        in_hand = [pool.submit(one) for _ in range(2 * workers)]
        try:
            while in_hand:
                wait(in_hand, return_when=FIRST_COMPLETED)
                for future in [each for each in in_hand if each.done()]:
                    in_hand.remove(future)
                    answer = future.result()
                    if answer is not None:
                        in_hand.append(pool.submit(one))
                        yield answer
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Outcome:
    """What became of one picture.

    Attributes:
        file: the picture, as its row in a manifest names it.
        size: (width, height); None where it was not read.
        shares: of the area, by class, largest first.
        seconds: what it took; None where it was there before.
        notes: what was said about it, an error among them.
    """

    file: str
    size: tuple[int, int] | None = None
    shares: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        file: Path,
        labels: np.ndarray,
        names: Sequence[str] | None,
        seconds: float | None = None,
        conversions: Iterable[Conversion] = (),
    ) -> Outcome:
        """That of a picture with these labels `[H, W]` or masks `[C, H, W]`.

        names: of the labels; None numbers them. Without seconds it was there before.
        """
        notes = tuple(each.text for each in conversions)
        notes += ("there before",) if seconds is None else ()
        size = (labels.shape[-1], labels.shape[-2])
        return cls(str(file), size, class_shares(labels, names), seconds, notes)


def class_shares(labels: np.ndarray, names: Sequence[str] | None) -> dict[str, float]:
    """The share of the area of each class that is there, by its name or number, largest first."""
    return area_shares(class_areas(labels), labels.shape[-2] * labels.shape[-1], names)


def area_shares(areas: np.ndarray, pixels: int, names: Sequence[str] | None) -> dict[str, float]:
    """The same of areas in pixels, int64 `[C]`, and of how many that is the share."""
    order = np.argsort(-areas, kind="stable")
    return {
        names[label] if names else f"class {label}": areas[label] / pixels
        for label in order[areas[order] > 0].tolist()
    }


def check_manifest_name(path: Path) -> None:
    """InputError unless the name says which kind of table it is."""
    if path.suffix.lower() not in MANIFESTS:
        raise InputError(f"{path}: a manifest must be named .csv or .jsonl")


class Manifest:
    """A table of outcomes on disk, a row each, written as they come: .csv, or JSON lines (.jsonl).

    continues: keep the rows that are there, which `in` tells by file; a last row that a killed
    process left unfinished is dropped. A file that is done again has two rows, the last counts.

    Raises InputError for another suffix, or where it cannot be written or is another table.
    """

    def __init__(self, path: Path, continues: bool = False) -> None:
        self.path = path
        self.is_csv = path.suffix.lower() == ".csv"
        check_manifest_name(path)
        self._there: set[str] = set()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if continues and path.exists():
                self._take_up()
            self._file = path.open("a" if continues else "w", encoding="utf-8", newline="")
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise InputError(
                f"{path}: is no manifest to go on with; name another, or move it elsewhere"
            ) from error
        if self.is_csv and self._file.tell() == 0:
            self._write(_csv_row(COLUMNS))

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, file: str) -> bool:
        return printable(file) in self._there

    def add(self, outcome: Outcome) -> None:
        """Write its row, to the system at once."""
        width, height = outcome.size or (None, None)
        shares = {name: round(share, 6) for name, share in outcome.shares.items()}
        seconds = None if outcome.seconds is None else round(outcome.seconds, 3)
        values = printable(outcome.file), width, height, shares, seconds, list(outcome.notes)
        row = dict(zip(COLUMNS, values, strict=True))
        if self.is_csv:
            cells = row | {"shares": _json(shares), "notes": "; ".join(outcome.notes)}
            self._write(_csv_row(cells.values()))
        else:
            self._write(_json(row) + "\n")

    def _write(self, row: str) -> None:
        try:
            self._file.write(row)
            self._file.flush()
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror})") from error

    def _take_up(self) -> None:
        with self.path.open("r+b") as file:
            content = file.read()
            whole = content.rfind(b"\n") + 1
            file.truncate(whole)
        text = io.StringIO(content[:whole].decode(), newline="")
        if not self.is_csv:
            self._there = {json.loads(line)["file"] for line in text}
        elif whole:
            rows = csv.DictReader(text)
            if tuple(rows.fieldnames or ()) != COLUMNS:
                raise ValueError
            self._there = {row["file"] for row in rows}


def _csv_row(cells: Iterable[Any]) -> str:
    row = io.StringIO()
    csv.writer(row, lineterminator="\n").writerow(cells)
    return row.getvalue()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
