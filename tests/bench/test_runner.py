from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import runner
import torch
from frame import Case, Check, Comparison, Cost, Formula, Prepared, Probe, Settings
from graphs import REPLAYS, DeviceTimes

QUICK = Settings(device="cpu", threads=1, quick=True)
CEILINGS = {"bytes_per_second": 1e9, "operations_per_second": 1e9}


def made_up(error: float, calls: list[str], bar: float | None = None) -> Comparison:
    """Ours beside a peer, apart by `error` where 1e-3 is allowed; each call is logged."""

    def prepare() -> Prepared:
        return Prepared(
            candidates={"ours": lambda: calls.append("ours"), "peer": lambda: calls.append("peer")},
            gate=lambda outputs: [Check("error", error, 1e-3)],
            cost=Cost(Formula("4*N", {"N": 500}), Formula("N", {"N": 500})),
            facts={"N": 500},
            notes=["made up"],
        )

    def probes(settings: Settings) -> list[Probe]:
        return [Probe("to compile", "s", lambda: {"first": 3.0, "second": 0.5}, {"first": 2.0})]

    cases = [Case("one", prepare, bar=bar)]
    return Comparison("made_up", "Made up.", ("cpu",), lambda settings: cases, probes)


def run(comparison: Comparison) -> dict[str, Any]:
    return runner.run(comparison, QUICK, CEILINGS)


def test_outputs_that_do_not_agree_are_neither_timed_nor_probed() -> None:
    calls: list[str] = []
    report = run(made_up(error=2e-3, calls=calls))
    assert not report["passed"]
    assert calls == ["ours", "peer"], "the gate's own calls and no more"
    assert report["cases"][0]["candidates"] == {"ours": {}, "peer": {}}
    assert report["cases"][0]["checks"] == [
        {"what": "error", "value": 2e-3, "limit": 1e-3, "passed": False}
    ]
    assert report["probes"] == []


def test_a_gate_that_checks_nothing_is_refused() -> None:
    prepared = Prepared(candidates={"ours": lambda: 0}, gate=lambda outputs: [])
    comparison = Comparison("empty", "", ("cpu",), lambda s: [Case("one", lambda: prepared)])
    (case,) = run(comparison)["cases"]
    assert not case["passed"]
    assert "at least one Check" in case["error"]


def test_a_case_that_breaks_says_how_and_the_next_one_is_measured() -> None:
    def breaks() -> Prepared:
        raise MemoryError("too large")

    calls: list[str] = []
    (whole,) = made_up(error=0, calls=calls).cases(QUICK)
    cases = [Case("large", breaks, bar=2.0), whole]
    report = run(Comparison("made_up", "", ("cpu",), lambda settings: cases))
    assert not report["passed"]
    broken, measured = report["cases"]
    assert not broken["passed"]
    assert "breaks" in broken["error"]
    assert broken["error"].strip().endswith("MemoryError: too large")
    assert broken["bars"] == [
        {"what": "times as fast as the fastest peer", "value": None, "bar": 2.0, "met": False}
    ]
    assert measured["passed"]
    assert measured["error"] is None
    assert measured["candidates"]["ours"]["samples"]
    json.dumps(report)


def test_the_gate_judges_each_candidates_output_by_name() -> None:
    seen: dict[str, Any] = {}

    def gate(outputs: Any) -> list[Check]:
        seen.update(outputs)
        return [Check("error", 0, 0)]

    prepared = Prepared(candidates={"ours": lambda: 1, "peer": lambda: 2}, gate=gate)
    case = Case("one", lambda: prepared, timed=False)
    run(Comparison("named", "", ("cpu",), lambda settings: [case]))
    assert seen == {"ours": 1, "peer": 2}


def test_a_report_holds_percentiles_samples_ratios_and_rates() -> None:
    report = run(made_up(error=0, calls=[]))
    assert report["passed"]
    ours, peer = (report["cases"][0]["candidates"][name] for name in ("ours", "peer"))
    assert list(ours["seconds"]) == ["p20", "p50", "p80"]
    assert len(ours["samples"]) == len(peer["samples"]) >= runner.QUICK.least_rounds
    assert "ours_is_faster_by" not in ours
    ratio = peer["seconds"]["p50"] / ours["seconds"]["p50"]
    assert peer["ours_is_faster_by"]["ratio_of_p50"] == pytest.approx(ratio)
    assert ours["bytes_per_second"] == pytest.approx(2000 / ours["seconds"]["p50"])
    assert report["cases"][0]["cost"]["bytes"] == {
        "formula": "4*N",
        "sizes": {"N": 500},
        "value": 2000,
    }
    json.dumps(report)


def test_the_floor_is_the_larger_of_moving_the_bytes_and_doing_the_operations() -> None:
    case = run(made_up(error=0, calls=[]))["cases"][0]
    assert case["floor_seconds"] == pytest.approx(2000 / 1e9)
    slow_at_arithmetic = {**CEILINGS, "operations_per_second": 1e6}
    report = runner.run(made_up(error=0, calls=[]), QUICK, slow_at_arithmetic)
    case = report["cases"][0]
    assert case["floor_seconds"] == pytest.approx(500 / 1e6)
    ours = case["candidates"]["ours"]
    assert ours["times_the_floor"] == pytest.approx(ours["seconds"]["p50"] / (500 / 1e6))


@pytest.mark.parametrize(("bar", "met"), [(1e-9, True), (1e9, False)])
def test_a_bar_that_is_missed_is_reported_and_fails_nothing(bar: float, met: bool) -> None:
    report = run(made_up(error=0, calls=[], bar=bar))
    assert report["cases"][0]["candidates"]["peer"]["bar_met"] is met
    assert report["passed"]


def prepared_with(seconds: dict[str, float], **others: Any) -> Prepared:
    return Prepared(
        candidates={name: partial(lambda s: s, s) for name, s in seconds.items()},
        gate=lambda outputs: [Check("error", 0, 0)],
        cost=Cost(Formula("N", {"N": 1}), Formula("N", {"N": 1}), peak="bf16"),
        **others,
    )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a made-up GPU, on which a call takes the seconds that it returns."""

    def device_times(candidates: Any, budget: Any) -> DeviceTimes:
        return DeviceTimes({n: [call()] * 5 for n, call in candidates.items()}, REPLAYS, ("odd",))

    monkeypatch.setattr(runner, "device_times", device_times)
    monkeypatch.setattr(runner, "time_until_done", lambda call: 10 * call())
    monkeypatch.setattr(runner, "peak_of_call", lambda call, device: 7)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return Settings(device="cuda", threads=1, quick=True)


def test_on_a_gpu_replays_count_and_the_wall_clock_stands_beside_them(gpu: Settings) -> None:
    prepared = prepared_with({"ours": 1.0, "eager": 6.0, "compiled": 4.0})
    case = Case("one", lambda: prepared, bar=5.0, floor_bar=2.0)
    comparison = Comparison("made_up", "", ("cuda",), lambda settings: [case])
    ceilings = {"bytes_per_second": 10.0, "operations_per_second": 0.01, "bf16": 2.0}
    (report,) = runner.run(comparison, gpu, ceilings)["cases"]
    assert report["error"] is None
    assert report["timed_by"] == REPLAYS
    assert report["notes"] == ["one: odd"]
    assert report["floor_seconds"] == pytest.approx(0.5), "by the peak that the cost names"
    assert report["cost"]["peak"] == "bf16"
    ours, eager = report["candidates"]["ours"], report["candidates"]["eager"]
    assert ours["seconds"]["p50"] == 1.0
    assert ours["wall"]["p50"] == 10.0
    assert len(ours["wall"]["samples"]) >= runner.WALL.least_rounds
    assert ours["peak_bytes"] == 7
    assert eager["bar_met"] is True
    fast, floor = report["bars"]
    assert fast == {
        "what": "times as fast as compiled",
        "value": pytest.approx(4.0),
        "bar": 5.0,
        "met": False,
    }, "the fastest peer decides"
    assert floor == {
        "what": "times the floor",
        "value": pytest.approx(2.0),
        "bar": 2.0,
        "met": True,
    }


def test_what_is_around_the_candidates_holds_while_they_run_and_no_longer(gpu: Settings) -> None:
    held: list[bool] = [False]

    @contextmanager
    def around() -> Iterator[None]:
        held[0] = True
        yield
        held[0] = False

    seen = []

    def ours() -> float:
        seen.append(held[0])
        return 1.0

    prepared = replace(prepared_with({"peer": 1.0}, around=around), candidates={"ours": ours})
    comparison = Comparison("made_up", "", ("cuda",), lambda s: [Case("one", lambda: prepared)])
    report = runner.run(comparison, gpu, {**CEILINGS, "bf16": 1.0})
    assert report["passed"]
    assert len(seen) > 3
    assert all(seen)
    assert not held[0]


def test_when_the_time_is_up_the_rest_is_left_out_by_name() -> None:
    (case,) = made_up(error=0, calls=[]).cases(QUICK)
    cases = [replace(case, name=name) for name in ("first", "second", "third")]
    in_no_time = Comparison(
        "made_up", "", ("cpu",), lambda settings: cases, most_seconds={"cpu": 0.0}
    )
    report = run(in_no_time)
    assert report["cases"] == []
    assert report["left_out"] == ["first", "second", "third"]
    enough = replace(in_no_time, most_seconds={"cuda": 0.0})
    assert run(enough)["left_out"] == []


def test_a_probe_is_held_against_its_bars() -> None:
    (probe,) = run(made_up(error=0, calls=[]))["probes"]
    assert probe["figures"] == {"first": 3.0, "second": 0.5}
    assert probe["bars_met"] == {"first": False}


def test_every_step_is_announced() -> None:
    said: list[str] = []
    runner.run(made_up(error=0, calls=[]), QUICK, CEILINGS, said.append)
    assert all(line.startswith("made_up: ") for line in said)
    assert re.search("agree.*timing.*compile", " ".join(said))
