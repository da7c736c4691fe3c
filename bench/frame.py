"""What a comparison is: cases, each with a gate that its candidates pass before they are timed.

A comparison is a module `compare_NAME.py` that holds one `COMPARISON`, and a line in the table of
`compare.py`. It declares what to run and how to judge it; the runner does the rest (gate, timing,
memory, table, record), so every comparison is measured in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

Candidate = Callable[[], Any]


@dataclass(frozen=True)
class Settings:
    """How this run measures. `quick` asks for small cases and few rounds."""

    device: str
    threads: int
    quick: bool


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
    """How near a candidate's output is to the truth, where candidates are approximations.

    Attributes:
        same_label: share of pixels whose most likely label is the true one.
        mean_error: mean absolute difference of the marginals.
    """

    same_label: float
    mean_error: float


@dataclass(frozen=True)
class Formula:
    """An arithmetic expression over named sizes. The text is what is evaluated, so that the
    formula that a record shows is the one behind its number."""

    text: str
    sizes: Mapping[str, int]

    @property
    def value(self) -> int:
        """The number that the formula gives for these sizes."""
        return int(eval(self.text, {"__builtins__": {}}, dict(self.sizes)))


@dataclass(frozen=True)
class Cost:
    """What the task itself needs, whoever does it: the least traffic to memory, in bytes, and the
    floating-point operations (a multiplication and an addition count as two).

    `peak` names the ceiling of `machine.ceilings` that bounds the operations: on a GPU it depends
    on the dtype.
    """

    bytes: Formula
    operations: Formula
    peak: str = "operations_per_second"


@dataclass(frozen=True)
class Prepared:
    """A case with its inputs made.

    Attributes:
        candidates: what is timed, by name. The first is ours; the others are its peers.
        gate: takes each candidate's output by name and returns the figures that must hold.
        quality: takes the same outputs and says how near each is to the truth; None where all
            candidates compute the same.
        cost: the work of one call, None where no formula is meant.
        facts: what else the record should say of the inputs.
        notes: what the reader must be told, such as a peer that is not installed.
        around: what holds while candidates run, such as global switches of PyTorch.
    """

    candidates: Mapping[str, Candidate]
    gate: Callable[[Mapping[str, Any]], Sequence[Check]]
    quality: Callable[[Mapping[str, Any]], Mapping[str, Quality]] | None = None
    cost: Cost | None = None
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
        bar: times as fast as each peer, so as the fastest, that ours must be; None where nothing is
            asked.
        floor_bar: times the floor that ours may take at most; None where nothing is asked.
        most_seconds: what a call of ours may take at most, at its median; None: nothing is asked.
    """

    name: str
    prepare: Callable[[], Prepared]
    timed: bool = True
    memory: bool = True
    bar: float | None = None
    floor_bar: float | None = None
    most_seconds: float | None = None


@dataclass(frozen=True)
class Probe:
    """A one-off figure that rounds of timing do not fit, such as the time to compile.

    `measure` returns figures by name, in `unit`; `bars` names those that must not be exceeded.
    """

    name: str
    unit: str
    measure: Callable[[], Mapping[str, float]]
    bars: Mapping[str, float] = field(default_factory=dict)


def no_probes(settings: Settings) -> Sequence[Probe]:
    """The probes of a comparison that has none."""
    return ()


@dataclass(frozen=True)
class Comparison:
    """Ours beside what people use today, on one task.

    `devices` are the kinds it runs on ("cpu", "cuda"); `cases` and `probes` list what to measure
    under given settings, without making any input yet. `most_seconds` is, by kind of device, the
    time after which no further case is started: list those first that matter most.
    """

    name: str
    description: str
    devices: Sequence[str]
    cases: Callable[[Settings], Sequence[Case]]
    probes: Callable[[Settings], Sequence[Probe]] = no_probes
    most_seconds: Mapping[str, float] = field(default_factory=dict)
