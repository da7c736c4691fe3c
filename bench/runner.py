"""Run comparisons: the gate, then the clock, then memory. The result is what a record holds.

gate    each candidate is called and the outputs judged; a case that fails goes no further
timing  candidates in turn, round by round (timing.py); on a GPU as CUDA graphs (graphs.py), and
        beside it the wall clock around eager calls
memory  each candidate once more: on a CPU in a process of its own (memory.py)
"""

import gc
import math
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from operator import ge, le
from typing import Any

import torch
from frame import Case, Comparison, Prepared, Settings
from graphs import device_times
from memory import peak_of_call, peak_of_candidate
from timing import Budget, clock_for, percentiles, ratios, samples, time_in_turn

Report = dict[str, Any]
Say = Callable[[str], object]

FULL, QUICK = Budget(rounds=5, seconds=0.2), Budget(rounds=3, seconds=0.1)
# A GPU runs many more cases, each far shorter.
GPU_FULL, GPU_QUICK = Budget(rounds=5, seconds=0.03), Budget(rounds=3, seconds=0.02)


def run(
    comparison: Comparison,
    settings: Settings,
    ceilings: Mapping[str, float],
    say: Say = str,
    keep: Callable[[Report], object] = bool,
) -> Report:
    """Everything that a comparison measures under these settings; `say` is told each step, and
    `keep` is given the report so far after each case."""
    most = comparison.most_seconds.get(settings.device, math.inf)
    start = time.monotonic()
    report: Report = {
        "name": comparison.name,
        "description": comparison.description,
        "device": settings.device,
        "passed": True,
        "cases": [],
        "left_out": [],
    }
    for case in comparison.cases(settings):
        if time.monotonic() - start > most:
            report["left_out"].append(case.name)
            continue
        report["cases"].append(_run_case(comparison.name, case, settings, ceilings, say))
        report["passed"] = all(case["passed"] for case in report["cases"])
        keep(report)
    return report


def _run_case(
    comparison: str, case: Case, settings: Settings, ceilings: Mapping[str, float], say: Say
) -> Report:
    """The report of one case. One that raises has the traceback in its report, and the others are
    still measured."""
    start = time.monotonic()
    report: Report = {
        "name": case.name,
        "threads": case.threads or settings.threads,
        "passed": False,
        "error": None,
        "checks": [],
        "facts": {},
        "notes": [],
        "cost": None,
        "floor_seconds": None,
        "candidates": {},
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(report["threads"])
    try:
        _measure(report, comparison, case, settings, ceilings, say)
    except Exception as error:
        report["passed"] = False
        report["error"] = "".join(traceback.format_exception(error))
    finally:
        torch.set_num_threads(threads)
    report["bars"] = _bars(case, list(report["candidates"].items()))
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
    if prepared.cost is not None:
        report["cost"] = asdict(prepared.cost)
    if prepared.cost is not None and case.threads is None:  # the ceilings are of all threads
        report["floor_seconds"] = prepared.cost.floor_seconds(ceilings)
    report["candidates"] = {
        name: {"ours": i == 0 or name in prepared.ours}
        for i, name in enumerate(prepared.candidates)
    }
    with prepared.around():
        say(f"{title}: do the outputs agree?")
        _add_gate(report, prepared)
        if not report["passed"]:
            return
        if case.timed:
            say(f"{title}: timing {', '.join(prepared.candidates)}")
            _add_times(report, case, prepared, settings)
        for name, call in prepared.candidates.items() if case.memory else ():
            if settings.device == "cuda":
                report["candidates"][name]["peak_bytes"] = peak_of_call(call, "cuda")
            elif not settings.quick:
                say(f"{title}: peak memory of {name}")
                peak = peak_of_candidate(comparison, case.name, name, settings)
                report["candidates"][name]["peak_bytes"] = peak


def _add_gate(report: Report, prepared: Prepared) -> None:
    """Whether the outputs hold, and how near to the truth those that hold are."""
    outputs = {name: call() for name, call in prepared.candidates.items()}
    checks = prepared.gate(outputs)
    if not checks:
        raise ValueError("a gate checked nothing: return at least one Check")
    report["checks"] = [{**asdict(check), "passed": check.passed} for check in checks]
    report["passed"] = all(check.passed for check in checks)
    if report["passed"] and prepared.quality is not None:
        for name, quality in prepared.quality(outputs).items():
            report["candidates"][name]["quality"] = asdict(quality)


def _add_times(report: Report, case: Case, prepared: Prepared, settings: Settings) -> None:
    """Percentiles and rates of each candidate, and how many times as fast as each peer ours is."""
    entries = report["candidates"]
    if settings.device == "cuda":
        budget = GPU_QUICK if settings.quick else GPU_FULL
        for name, eager in time_in_turn(prepared.candidates, budget).items():
            entries[name]["wall"] = percentiles(samples(eager))
        rounds, report["timed_by"], notes = device_times(prepared.candidates, budget)
        report["notes"] += [f"{report['name']}: {note}" for note in notes]
    else:
        budget = QUICK if settings.quick else FULL
        budget = replace(budget, rounds=min(budget.rounds, case.rounds or budget.rounds))
        clock = case.clock or settings.clock
        rounds = time_in_turn(prepared.candidates, budget, lambda: clock_for(clock))
        report["timed_by"] = f"{clock} clock"
    ours = next(iter(rounds.values()))
    for name, measured in rounds.items():
        entry, seconds = entries[name], samples(measured)
        entry["seconds"] = percentiles(seconds)
        entry["samples"] = seconds
        median = entry["seconds"]["p50"]
        if prepared.cost is not None:
            entry["bytes_per_second"] = prepared.cost.bytes / median
            entry["operations_per_second"] = prepared.cost.operations / median
        if report["floor_seconds"] is not None:
            entry["times_the_floor"] = median / report["floor_seconds"]
        if prepared.images is not None:
            entry["images_per_second"] = prepared.images / median
        if measured is not ours:
            pairs = percentiles(ratios(measured, ours))
            entry["ours_is_faster_by"] = {
                "p20": pairs["p20"],
                "median_of_pairs": pairs["p50"],
                "p80": pairs["p80"],
                "ratio_of_p50": median / percentiles(samples(ours))["p50"],
            }


def _bars(case: Case, entries: list[tuple[str, Report]]) -> list[Report]:
    """What was asked of the case and what it reached; None where it was not timed."""
    ours = entries[0][1] if entries else {}
    ratios = {
        name: entry["ours_is_faster_by"]["median_of_pairs"]
        for name, entry in entries
        if "ours_is_faster_by" in entry and not entry["ours"]
    }
    peer = min(ratios, key=lambda name: ratios[name], default="the fastest peer")
    asked = [
        (f"times as fast as {peer}", ratios.get(peer), ge, case.bar),
        ("times the floor", ours.get("times_the_floor"), le, case.floor_bar),
        ("s a call", ours.get("seconds", {}).get("p50"), le, case.most_seconds),
    ]
    return [
        {"what": what, "value": value, "bar": bar, "met": value is not None and holds(value, bar)}
        for what, value, holds, bar in asked
        if bar is not None
    ]
