"""A family's cases in this process, one after another, each under a limit of time and memory."""

import faulthandler
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis.strategies import SearchStrategy

from campaign.case import Case, Outcome, Wrong

MOST_CPU = 60.0  # seconds of processor time of a case, whatever else the machine does
MOST_WALL = 600.0  # seconds of a case that waits for something and never gets it
MOST_GROWTH = 1 << 30  # bytes that the peak of memory may grow by within a case
MOST_ADDRESSES = 12 << 30  # bytes of address space of a family: what asks for more gets MemoryError


@dataclass(frozen=True)
class Family:
    """A stream of cases.

    cases: a strategy that makes them, given a folder of valid files that `prepare` has filled;
    handmade: those that somebody thought of, run first.
    """

    name: str
    what: str
    prepare: Callable[[Path], None]
    cases: Callable[[Path], SearchStrategy[Case]]
    handmade: Callable[[Path], list[Case]] = lambda _shared: []


@dataclass
class Tally:
    """What became of a family's cases."""

    family: str
    seed: int
    cases: int = 0
    result: int = 0
    refused: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def ended(self, outcome: Outcome) -> None:
        setattr(self, outcome, getattr(self, outcome) + 1)

    def fail(self, case: int, said: str, line: str, wrong: str, **more: str) -> None:
        """Record a failure: of which case, what it is, its command line, what is wrong."""
        self.failures.append({"case": case, "said": said, "line": line, "wrong": wrong, **more})


class TooLong(BaseException):
    """Not an Exception, which the product may catch."""


@contextmanager
def world(tally: Tally) -> Iterator[Path]:
    """A folder that is the working folder inside, and gone behind; times the family."""
    home, start = Path.cwd(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="campaign-") as name:
        root = Path(name).resolve()
        os.chdir(root)
        try:
            yield root
        finally:
            os.chdir(home)
    tally.seconds = round(time.perf_counter() - start, 1)


@contextmanager
def emptied(root: Path) -> Iterator[Path]:
    """A new folder below `root` that is the working folder inside."""
    folder = root / "case"
    folder.mkdir()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(root)
        shutil.rmtree(folder)


def run_family(
    family: Family, seed: int, count: int, only: int | None = None, keep: Path | None = None
) -> Tally:
    """Run `count` cases. only: run this one alone, with its folder kept in `keep`."""
    tally = Tally(family.name, seed)
    with world(tally) as root, _bounded_memory():
        shared = root / "shared"
        shared.mkdir()
        family.prepare(shared)
        for number, case in enumerate(_stream(family, shared, seed, count, tally)):
            tally.cases += 1
            if only is None or number == only:
                print("case", number, file=sys.stderr)  # what is said last, should a case crash
                _run(case, number, root / "case", tally, seed, keep)
    return tally


def _stream(family: Family, shared: Path, seed: int, count: int, tally: Tally) -> Iterator[Case]:
    """Hand-made cases in an order of the seed's, at most half of all; then hypothesis's."""
    handmade = family.handmade(shared)
    random.Random(seed).shuffle(handmade)
    yield from handmade[: max(1, count // 2)]
    turn = 0
    while tally.cases < count:  # hypothesis ends early where it has seen everything
        made = _drawn(family.cases(shared), seed * 1000 + turn, min(200, count - tally.cases))
        yield from made
        turn += 1


def _drawn(strategy: SearchStrategy[Case], seed: int, count: int) -> list[Case]:
    made: list[Case] = []

    quiet = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=count, phases=[Phase.generate], **quiet)
    @hypothesis.given(strategy)
    def draw(case: Case) -> None:
        made.append(case)

    draw()
    return made[:count]


def _run(case: Case, number: int, folder: Path, tally: Tally, seed: int, keep: Path | None) -> None:
    folder.mkdir()
    os.chdir(folder)
    peak = _peak()
    try:
        with _limited_time():
            outcome = case.run(folder)
        grown = _peak() - peak
        if grown > MOST_GROWTH:
            raise Wrong(f"took {grown >> 20} MiB more than anything before")
        tally.ended(outcome)
    except Wrong as wrong:
        _record(tally, case, number, seed, str(wrong))
    except TooLong:
        _record(tally, case, number, seed, f"more than {MOST_CPU:g} s of processor time")
    except Exception:
        _record(tally, case, number, seed, traceback.format_exc()[-3000:])
    finally:
        os.chdir(folder.parent)
        if keep is not None:
            shutil.copytree(folder, keep, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(folder)


def _record(tally: Tally, case: Case, number: int, seed: int, what: str) -> None:
    again = f"python -m campaign --family {tally.family} --seed {seed} --only {number}"
    tally.fail(number, case.said, case.line(), what, again=again)


@contextmanager
def _limited_time() -> Iterator[None]:
    """Processor time, which load does not change; and a wall for what waits for ever."""

    def late(_number: int, _frame: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGPROF, late)
    faulthandler.dump_traceback_later(MOST_WALL, exit=True)
    signal.setitimer(signal.ITIMER_PROF, MOST_CPU)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, before)


@contextmanager
def _bounded_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = MOST_ADDRESSES if soft == resource.RLIM_INFINITY else min(soft, MOST_ADDRESSES)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
