"""What has become slower since another record of compare.py, beyond noise.

The noise of a figure is its spread (p80 - p20) / p50. Between two records it is the sum of both
spreads, and at least LEAST: one process places memory otherwise than the next. A case is judged
where both records have it of the same inputs, on the same processor, by as many threads and by the
same clock: leads too change from one processor to another, and only ours takes more threads. It has
two kinds of figures,

    the time of ours, p50
    a peer's time over ours, p50      of each peer that both have, in the same version

and is slower where the first has grown and all of the second have fallen by more than their noise:
where the peer became slower as well, the machine did.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

LEAST = 0.05
SLOWER = 3  # the exit code of a run in which something is

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """A figure of a case then and now: `slower_by` is 0.1 where ours takes 10% more by it."""

    what: str
    slower_by: float
    noise: float

    @property
    def slower(self) -> bool:
        """Whether that is more than noise."""
        return self.slower_by > self.noise


@dataclass(frozen=True)
class CaseChange:
    """All that two records say of one case; no figures where they cannot be compared."""

    case: str
    figures: Sequence[Change]

    @property
    def slower(self) -> bool:
        """Whether all figures say so."""
        return bool(self.figures) and all(figure.slower for figure in self.figures)


def changes(before: Report, after: Report) -> list[CaseChange]:
    """Each case that was timed in both records."""
    then = dict(_timed(before))
    found = []
    for key, case in _timed(after):
        if key not in then:
            continue
        figures = []
        if _conditions(before, then[key], key[1]) == _conditions(after, case, key[1]):
            figures = [*_times(then[key], case), *_ratios(before, after, then[key], case)]
        found.append(CaseChange(f"{key[0]} on the {key[1]}: {key[2]}", figures))
    return found


def show_changes(judged: Sequence[CaseChange], record: str, console: Console) -> None:
    """A line for each case that is slower, then how many were judged."""
    if not judged:
        console.print(f"against {record}: it has no case that was timed now", style="yellow")
        return
    for case in judged:
        if case.slower:
            figures = "; ".join(
                f"{figure.what}: slower by {100 * figure.slower_by:.0f}%, "
                f"noise is {100 * figure.noise:.0f}%"
                for figure in case.figures
            )
            console.print(f"SLOWER: {case.case}: {figures}", style="bold red", highlight=False)
    slower = sum(case.slower for case in judged)
    able = sum(bool(case.figures) for case in judged)
    console.print(
        f"against {record}: {slower} of {able} cases slower beyond noise", highlight=False
    )
    for case in judged:
        if not case.figures:
            console.print(
                f"note: {case.case}: not judged: other inputs, or another processor, other threads "
                "or another clock",
                style="yellow",
                highlight=False,
            )


def _timed(record: Report) -> Iterator[tuple[tuple[str, str, str], Report]]:
    """The cases in which ours has a time, by comparison, device and name."""
    for comparison in record["comparisons"]:
        for case in comparison["cases"]:
            if case["candidates"] and "seconds" in next(iter(case["candidates"].values())):
                yield (comparison["name"], comparison["device"], case["name"]), case


def _conditions(record: Report, case: Report, device: str) -> list[Any]:
    """What has to be the same for two times to be compared."""
    processor = record["hardware"][{"cpu": "cpu", "cuda": "gpu"}[device]]
    # Records that do not say a case's threads have the run's in all of them.
    threads = case.get("threads", record["threads"])
    return [processor, threads, case.get("timed_by"), case.get("facts"), case.get("cost")]


def _times(then: Report, now: Report) -> list[Change]:
    """How much longer ours takes."""
    name, entry = next(iter(now["candidates"].items()))
    old, new = then["candidates"].get(name, {}).get("seconds"), entry["seconds"]
    return (
        [] if old is None else [_change(f"time of {name}", new["p50"] / old["p50"] - 1, old, new)]
    )


def _ratios(before: Report, after: Report, then: Report, now: Report) -> list[Change]:
    """How far the lead over each peer has fallen."""
    found = []
    for name, entry in now["candidates"].items():
        new = entry.get("ours_is_faster_by", {})
        old = then["candidates"].get(name, {}).get("ours_is_faster_by", {})
        packages = [package for package in after["versions"] if package in name] or ["torch"]
        same = all(before["versions"].get(p) == after["versions"].get(p) for p in packages)
        if same and "p20" in new and "p20" in old:
            old, new = ({**pairs, "p50": pairs["median_of_pairs"]} for pairs in (old, new))
            found.append(_change(f"beside {name}", old["p50"] / new["p50"] - 1, old, new))
    return found


def _change(what: str, slower_by: float, old: Report, new: Report) -> Change:
    spreads = [(figure["p80"] - figure["p20"]) / figure["p50"] for figure in (old, new)]
    return Change(what, slower_by, max(LEAST, sum(spreads)))
