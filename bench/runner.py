"""Run comparisons: the gate, then the clock, then memory. The result is what a record holds.

gate    each candidate is called and the outputs judged; a case that fails goes no further
timing  candidates in turn, round by round (timing.py)
memory  each candidate once more, in a process of its own (memory.py)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from frame import Case, Check, Comparison, Cost, Formula, Prepared, Probe, Settings
from memory import peak_of_candidate
from timing import Budget, Timer, interleave, percentile, ratio_of_pairs, timer_for

Report = dict[str, Any]
Say = Callable[[str], object]

FULL = Budget(seconds=5.0, least_rounds=5, most_rounds=100)
QUICK = Budget(seconds=1.5, least_rounds=3, most_rounds=30)


def run(
    comparison: Comparison, settings: Settings, ceilings: Mapping[str, float], say: Say = str
) -> Report:
    """Everything that a comparison measures under these settings; `say` is told each step."""
    cases = [
        _run_case(comparison.name, case, settings, ceilings, say)
        for case in comparison.cases(settings)
    ]
    probes = []
    if all(case["passed"] for case in cases):
        for probe in comparison.probes(settings):
            say(f"{comparison.name}: {probe.name}")
            probes.append(_run_probe(probe))
    return {
        "name": comparison.name,
        "description": comparison.description,
        "device": settings.device,
        "passed": all(case["passed"] for case in cases),
        "cases": cases,
        "probes": probes,
    }


def _run_case(
    comparison: str, case: Case, settings: Settings, ceilings: Mapping[str, float], say: Say
) -> Report:
    title = f"{comparison}: {case.name}"
    say(f"{title}: inputs")
    prepared = case.prepare()
    say(f"{title}: do the outputs agree?")
    checks = _gate(prepared)
    passed = all(check.passed for check in checks)
    report: Report = {
        "name": case.name,
        "passed": passed,
        "checks": [{**vars(check), "passed": check.passed} for check in checks],
        "facts": dict(prepared.facts),
        "notes": list(prepared.notes),
        "cost": _cost(prepared.cost),
        "floor_seconds": _floor(prepared.cost, ceilings),
        "bar": case.bar,
        "candidates": {name: {} for name in prepared.candidates},
    }
    if not passed:
        return report
    if case.timed:
        say(f"{title}: timing {', '.join(prepared.candidates)}")
        _add_times(report, prepared, timer_for(settings.device), QUICK if settings.quick else FULL)
    if case.memory and not settings.quick:
        for name in prepared.candidates:
            say(f"{title}: peak memory of {name}")
            peak = peak_of_candidate(comparison, case.name, name, settings)
            report["candidates"][name]["peak_bytes"] = peak
    return report


def _gate(prepared: Prepared) -> Sequence[Check]:
    checks = prepared.gate({name: call() for name, call in prepared.candidates.items()})
    if not checks:
        raise ValueError("a gate checked nothing: return at least one Check")
    return checks


def _add_times(report: Report, prepared: Prepared, timer: Timer, budget: Budget) -> None:
    """Percentiles and rates of each candidate, and how many times as fast as each peer ours is."""
    seconds = interleave(prepared.candidates, timer, budget)
    ours = next(iter(seconds))
    for name, samples in seconds.items():
        median = percentile(samples, 50)
        entry = report["candidates"][name]
        entry["seconds"] = {f"p{p}": percentile(samples, p) for p in (20, 50, 80)}
        entry["samples"] = samples
        if prepared.cost is not None:
            entry["bytes_per_second"] = prepared.cost.bytes.value / median
            entry["operations_per_second"] = prepared.cost.operations.value / median
            entry["times_the_floor"] = median / report["floor_seconds"]
        if name != ours:
            pairs = ratio_of_pairs(samples, seconds[ours])
            entry["ours_is_faster_by"] = {
                "median_of_pairs": pairs,
                "ratio_of_p50": median / percentile(seconds[ours], 50),
            }
            if report["bar"] is not None:
                entry["bar_met"] = pairs >= report["bar"]


def _run_probe(probe: Probe) -> Report:
    figures = dict(probe.measure())
    met = {name: figures[name] <= bar for name, bar in probe.bars.items()}
    return {
        "name": probe.name,
        "unit": probe.unit,
        "figures": figures,
        "bars": dict(probe.bars),
        "bars_met": met,
    }


def _cost(cost: Cost | None) -> Report | None:
    if cost is None:
        return None
    return {"bytes": _formula(cost.bytes), "operations": _formula(cost.operations)}


def _formula(formula: Formula) -> Report:
    return {"formula": formula.text, "sizes": dict(formula.sizes), "value": formula.value}


def _floor(cost: Cost | None, ceilings: Mapping[str, float]) -> float | None:
    """The least time in which this device can move the bytes and do the operations."""
    if cost is None:
        return None
    return max(
        cost.bytes.value / ceilings["bytes_per_second"],
        cost.operations.value / ceilings["operations_per_second"],
    )
