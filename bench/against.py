"""What has become slower since another record of compare.py, beyond noise.

The noise of a figure is its spread (p80 - p20) / p50. Between two records it is the sum of both
spreads, and at least LEAST: one process places memory otherwise than the next. A case is judged
where both records have it of the same inputs, on the same processor, by as many threads and by the
same clock: leads too change from one processor to another, and only ours takes more threads. Each
row of ours in it, such as a method of the CRF, is judged against the same row. It has two kinds of
figures,

    its time, p50
    a peer's time over its, p50       of each peer that both have, in the same version

and is slower where the first has grown and all of the second have fallen by more than their noise:
where the peer became slower as well, the machine did. Records have the second for the first row;
for another it is the quotient of two of them, whose spreads add up.
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
class RowChange:
    """All that two records say of one row of ours; no figures where they cannot be compared."""

    row: str
    figures: Sequence[Change]

    @property
    def slower(self) -> bool:
        """Whether all figures say so."""
        return bool(self.figures) and all(figure.slower for figure in self.figures)


def changes(before: Report, after: Report) -> list[RowChange]:
    """Each row of ours that was timed in both records."""
    then = dict(_timed(before))
    found = []
    for key, case in _timed(after):
        old = then.get(key, {"candidates": {}})
        for row in _ours(case):
            if "seconds" not in old["candidates"].get(row, {}):
                continue
            figures = []
            if _conditions(before, old, key[1]) == _conditions(after, case, key[1]):
                figures = [_time(row, old, case), *_ratios(row, before, after, old, case)]
            found.append(RowChange(f"{key[0]} on the {key[1]}: {key[2]}, {row}", figures))
    return found


def show_changes(judged: Sequence[RowChange], record: str, console: Console) -> None:
    """A line for each row that is slower, then how many were judged."""
    if not judged:
        console.print(f"against {record}: it has no row that was timed now", style="yellow")
        return
    for row in judged:
        if row.slower:
            figures = "; ".join(
                f"{figure.what}: slower by {100 * figure.slower_by:.0f}%, "
                f"noise is {100 * figure.noise:.0f}%"
                for figure in row.figures
            )
            console.print(f"SLOWER: {row.row}: {figures}", style="bold red", highlight=False)
    slower = sum(row.slower for row in judged)
    able = sum(bool(row.figures) for row in judged)
    console.print(f"against {record}: {slower} of {able} rows slower beyond noise", highlight=False)
    for row in judged:
        if not row.figures:
            console.print(
                f"note: {row.row}: not judged: other inputs, or another processor, other threads "
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


def _ours(case: Report) -> list[str]:
    """The names of the rows that are ours: of records that do not say, the first."""
    rows = enumerate(case["candidates"].items())
    return [name for i, (name, entry) in rows if entry.get("ours", i == 0)]


def _time(row: str, then: Report, now: Report) -> Change:
    """How much longer the row takes."""
    old, new = (case["candidates"][row]["seconds"] for case in (then, now))
    return _change(f"time of {row}", new["p50"] / old["p50"] - 1, _spread(old), _spread(new))


def _ratios(row: str, before: Report, after: Report, then: Report, now: Report) -> Iterator[Change]:
    """How far the row's lead over each peer has fallen."""
    for peer in [name for name in now["candidates"] if name not in _ours(now)]:
        packages = [package for package in after["versions"] if package in peer] or ["torch"]
        same = all(before["versions"].get(p) == after["versions"].get(p) for p in packages)
        old, new = _lead(then, row, peer), _lead(now, row, peer)
        if same and old is not None and new is not None:
            yield _change(f"beside {peer}", old[0] / new[0] - 1, old[1], new[1])


def _lead(case: Report, row: str, peer: str) -> tuple[float, float] | None:
    """A peer's time over a row's, and its spread; None where the record does not have them."""
    entries = case["candidates"]
    first = next(iter(entries))
    lead, spread = 1.0, 0.0
    for name, power in ((peer, 1), (row, -1)):
        if name == first:
            continue
        pairs = entries.get(name, {}).get("ours_is_faster_by", {})
        if "p20" not in pairs:
            return None
        lead *= pairs["median_of_pairs"] ** power
        spread += _spread({**pairs, "p50": pairs["median_of_pairs"]})
    return lead, spread


def _spread(figure: Report) -> float:
    found: float = (figure["p80"] - figure["p20"]) / figure["p50"]
    return found


def _change(what: str, slower_by: float, *spreads: float) -> Change:
    return Change(what, slower_by, max(LEAST, sum(spreads)))
