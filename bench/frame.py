"""What a comparison declares: its cases, their candidates, and the gate before the clock.

A comparison is a module `compare_NAME.py` that holds one `COMPARISON`, and a name in the topics of
`compare.py`. `runner.py` measures every comparison in the same way.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

Candidate = Callable[[], Any]
Clock = Literal["wall", "cpu"]


@dataclass(frozen=True)
class Settings:
    """How this run measures: `quick` asks for small cases and few rounds, `clock` on a CPU for wall
    or for processor seconds."""

    device: str
    threads: int
    quick: bool
    clock: Clock = "wall"


@dataclass(frozen=True)
class Check:
    """One figure of a gate; it passes when value <= limit (a NaN does not)."""

    what: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the figure is within its limit."""
        return self.value <= self.limit


@dataclass(frozen=True)
class Quality:
    """How near a candidate's marginals are to the exact ones, where candidates are approximations:
    the share of pixels with the same label, and the mean absolute difference. Where the pictures
    have labels, how near it is to these: the mIoU, and that of the pixels close to a boundary.
    """

    same_label: float | None = None
    mean_error: float | None = None
    miou: float | None = None
    trimap_miou: float | None = None


@dataclass(frozen=True)
class Cost:
    """What the task itself needs, whoever does it: the least traffic to memory, in bytes, and the
    floating-point operations (a multiplication and an addition count as two).

    `sizes` are what both were computed from; `peak` names the entry of `machine.ceilings` that
    bounds the operations, which on a GPU depends on the dtype.
    """

    bytes: int
    operations: int
    sizes: Mapping[str, int]
    peak: str = "operations_per_second"

    def floor_seconds(self, ceilings: Mapping[str, float]) -> float:
        """The least time in which a device with these ceilings can do it."""
        return max(self.bytes / ceilings["bytes_per_second"], self.operations / ceilings[self.peak])


@dataclass(frozen=True)
class Prepared:
    """A case with its inputs made.

    Attributes:
        candidates: what is timed, by name. The first is ours, and the others are held against it.
        ours: which others are ours too, such as the methods of one CRF; the rest are peers.
        gate: takes each candidate's output by name and returns the figures that must hold.
        quality: takes the same outputs; None where all candidates compute the same.
        cost: the work of one call, or None.
        images: pictures that one call takes, for pictures a second; None: not counted in them.
        facts: what else the record should say of the inputs.
        notes: what the reader must be told, such as a peer that is not installed.
        around: what holds while candidates run, such as global switches of PyTorch.
    """

    candidates: Mapping[str, Candidate]
    gate: Callable[[Mapping[str, Any]], Sequence[Check]]
    ours: Collection[str] = ()
    quality: Callable[[Mapping[str, Any]], Mapping[str, Quality]] | None = None
    cost: Cost | None = None
    images: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True)
class Case:
    """One setting of a comparison.

    Attributes:
        name: unique within the comparison.
        prepare: makes the inputs; nothing is made before it is called.
        timed: False for a case whose memory alone is of interest.
        memory: whether to measure each candidate's peak memory.
        threads, clock: of this case on a CPU, whatever the run has; None: the run's.
        rounds: how many at most, where a call takes many seconds; None: the run's.
        bar: how many times as fast as its fastest peer ours must be; None: no bar.
        floor_bar: how many times the floor ours may take; None: no bar.
        most_seconds: what a call of ours may take at its median; None: no bar.
    """

    name: str
    prepare: Callable[[], Prepared]
    timed: bool = True
    memory: bool = True
    threads: int | None = None
    clock: Clock | None = None
    rounds: int | None = None
    bar: float | None = None
    floor_bar: float | None = None
    most_seconds: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Ours beside what people use today, on one task.

    `devices` are the kinds it runs on ("cpu", "cuda"); `cases` lists what to measure, without
    making any input yet. `most_seconds` is, by kind of device, the time after which no further case
    is started: list those first that matter most.
    """

    name: str
    description: str
    devices: Sequence[str]
    cases: Callable[[Settings], Sequence[Case]]
    most_seconds: Mapping[str, float] = field(default_factory=dict)
