"""Run comparisons: the gate, then the clock, then memory. The result is what a record holds.

gate    each candidate is called and the outputs judged; a case that fails goes no further
timing  candidates in turn, round by round (timing.py); on a GPU as CUDA graphs (graphs.py), and
        beside it the wall clock around eager calls
memory  each candidate once more: on a CPU in a process of its own (memory.py)
"""

from __future__ import annotations

import gc
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from frame import Case, Check, Comparison, Cost, Formula, Prepared, Probe, Settings
from graphs import device_times
from memory import peak_of_call, peak_of_candidate
from timing import (
    Budget,
    interleave,
    percentile,
    ratio_of_pairs,
    time_until_done,
    timer_for,
)

Report = dict[str, Any]
Say = Callable[[str], object]

FULL = Budget(seconds=4.0, least_rounds=5, most_rounds=100)
QUICK = Budget(seconds=1.5, least_rounds=3, most_rounds=30)
# A GPU runs many more cases, each far shorter and in rounds of many replays.
GPU_FULL = Budget(seconds=0.7, least_rounds=5, most_rounds=50)
GPU_QUICK = Budget(seconds=0.3, least_rounds=3, most_rounds=30)
WALL = Budget(seconds=0.3, least_rounds=5, most_rounds=30)


def run(
    comparison: Comparison, settings: Settings, ceilings: Mapping[str, float], say: Say = str
) -> Report:
    """Everything that a comparison measures under these settings; `say` is told each step."""
    most = comparison.most_seconds.get(settings.device, math.inf)
    start = time.monotonic()
    cases, left_out = [], []
    for case in comparison.cases(settings):
        if time.monotonic() - start > most:
            left_out.append(case.name)
        else:
            cases.append(_run_case(comparison.name, case, settings, ceilings, say))
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
        "left_out": left_out,
        "probes": probes,
    }


def _run_case(
    comparison: str, case: Case, settings: Settings, ceilings: Mapping[str, float], say: Say
) -> Report:
    """The report of one case. One that breaks says how in it, and the others are still measured."""
    start = time.monotonic()
    report: Report = {
        "name": case.name,
        "passed": False,
        "error": None,
        "checks": [],
        "facts": {},
        "notes": [],
        "bar": case.bar,
        "floor_bar": case.floor_bar,
        "most_seconds": case.most_seconds,
        "bars": [],
        "candidates": {},
    }
    try:
        _measure(report, comparison, case, settings, ceilings, say)
    except Exception as error:
        report["passed"] = False
        report["error"] = "".join(traceback.format_exception(error))
    report["bars"] = _bars(report)
    report["took_seconds"] = time.monotonic() - start
    if settings.device == "cuda":  # the next case starts from an empty GPU
        gc.collect()
        torch.cuda.empty_cache()
    return report


def _measure(
    report: Report,
    comparison: str,
    case: Case,
    settings: Settings,
    ceilings: Mapping[str, float],
    say: Say,
) -> None:
    """Add to the report of a case what its gate, clock and memory say."""
    title = f"{comparison}: {case.name}"
    say(f"{title}: preparing")
    prepared = case.prepare()
    report["facts"] = dict(prepared.facts)
    report["notes"] = list(prepared.notes)
    report["cost"] = _cost(prepared.cost)
    report["floor_seconds"] = _floor(prepared.cost, ceilings)
    report["candidates"] = {name: {} for name in prepared.candidates}
    with prepared.around():
        say(f"{title}: do the outputs agree?")
        outputs = {name: call() for name, call in prepared.candidates.items()}
        checks = _gate(prepared, outputs)
        report["checks"] = [{**vars(check), "passed": check.passed} for check in checks]
        report["passed"] = all(check.passed for check in checks)
        if not report["passed"]:
            return
        if prepared.quality is not None:
            for name, quality in prepared.quality(outputs).items():
                report["candidates"][name]["quality"] = vars(quality)
        del outputs
        if case.timed:
            say(f"{title}: timing {', '.join(prepared.candidates)}")
            _add_times(report, prepared, settings)
        for name, call in prepared.candidates.items() if case.memory else ():
            if settings.device == "cuda":
                report["candidates"][name]["peak_bytes"] = peak_of_call(call, "cuda")
            elif not settings.quick:
                say(f"{title}: peak memory of {name}")
                peak = peak_of_candidate(comparison, case.name, name, settings)
                report["candidates"][name]["peak_bytes"] = peak


def _gate(prepared: Prepared, outputs: Mapping[str, Any]) -> Sequence[Check]:
    checks = prepared.gate(outputs)
    if not checks:
        raise ValueError("a gate checked nothing: return at least one Check")
    return checks


def _add_times(report: Report, prepared: Prepared, settings: Settings) -> None:
    """Percentiles and rates of each candidate, and how many times as fast as each peer ours is."""
    if settings.device == "cuda":
        _add_wall_times(report, prepared)
        times = device_times(prepared.candidates, GPU_QUICK if settings.quick else GPU_FULL)
        seconds, report["timed_by"] = times.seconds, times.how
        report["notes"] += [f"{report['name']}: {note}" for note in times.notes]
    else:
        budget = QUICK if settings.quick else FULL
        seconds = interleave(prepared.candidates, timer_for(settings.device), budget)
        report["timed_by"] = "wall clock"
    ours = next(iter(seconds))
    for name, samples in seconds.items():
        median = percentile(samples, 50)
        entry = report["candidates"][name]
        entry["seconds"] = _percentiles(samples)
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


def _add_wall_times(report: Report, prepared: Prepared) -> None:
    """What the caller of an eager call waits, Python and launches included."""
    for name, samples in interleave(prepared.candidates, time_until_done, WALL).items():
        report["candidates"][name]["wall"] = {**_percentiles(samples), "samples": samples}


def _percentiles(samples: Sequence[float]) -> dict[str, float]:
    return {f"p{p}": percentile(samples, p) for p in (20, 50, 80)}


def _bars(report: Report) -> list[Report]:
    """What was asked of the case and what it reached; None where it was not timed."""
    bars: list[Report] = []
    entries = {name: entry for name, entry in report["candidates"].items() if "seconds" in entry}
    if report["bar"] is not None:
        ratios = {
            name: entry["ours_is_faster_by"]["median_of_pairs"]
            for name, entry in entries.items()
            if "ours_is_faster_by" in entry
        }
        peer = min(ratios, key=lambda name: ratios[name], default=None)
        value = None if peer is None else ratios[peer]
        met = value is not None and value >= report["bar"]
        what = f"times as fast as {peer or 'the fastest peer'}"
        bars.append({"what": what, "value": value, "bar": report["bar"], "met": met})
    if report["floor_bar"] is not None:
        value = next(iter(entries.values()))["times_the_floor"] if entries else None
        met = value is not None and value <= report["floor_bar"]
        what = "times the floor"
        bars.append({"what": what, "value": value, "bar": report["floor_bar"], "met": met})
    if report["most_seconds"] is not None:
        value = next(iter(entries.values()))["seconds"]["p50"] if entries else None
        met = value is not None and value <= report["most_seconds"]
        bars.append({"what": "s a call", "value": value, "bar": report["most_seconds"], "met": met})
    return bars


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
    return {
        "bytes": _formula(cost.bytes),
        "operations": _formula(cost.operations),
        "peak": cost.peak,
    }


def _formula(formula: Formula) -> Report:
    return {"formula": formula.text, "sizes": dict(formula.sizes), "value": formula.value}


def _floor(cost: Cost | None, ceilings: Mapping[str, float]) -> float | None:
    """The least time in which this device can move the bytes and do the operations."""
    if cost is None:
        return None
    return max(
        cost.bytes.value / ceilings["bytes_per_second"],
        cost.operations.value / ceilings[cost.peak],
    )
