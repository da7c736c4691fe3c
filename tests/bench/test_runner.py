import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import runner
import torch
from frame import Case, Check, Comparison, Cost, Prepared, Quality, Settings
from graphs import REPLAYS
from timing import Budget, time_in_turn

QUICK = Settings(device="cpu", threads=1, quick=True)
CEILINGS = {"bytes_per_second": 1e9, "operations_per_second": 1e9}


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "QUICK", Budget(rounds=3, seconds=1e-4))
    monkeypatch.setattr(runner, "GPU_QUICK", Budget(rounds=3, seconds=1e-4))


def made_up(error: float, calls: list[str], **case: Any) -> Comparison:
    """Ours beside a peer, apart by `error` where 1e-3 is allowed; each call is logged."""

    def prepare() -> Prepared:
        return Prepared(
            candidates={name: lambda name=name: calls.append(name) for name in ("ours", "peer")},
            gate=lambda outputs: [Check("error", error, 1e-3)],
            quality=lambda outputs: {name: Quality(0.9, 0.1) for name in outputs},
            cost=Cost(2000, 500, {"N": 500}),
            images=4,
            facts={"N": 500},
            notes=["made up"],
        )

    cases = [Case("one", prepare, **case)]
    return Comparison("made_up", "Made up.", ("cpu", "cuda"), lambda settings: cases)


def run(comparison: Comparison, settings: Settings = QUICK) -> dict[str, Any]:
    return runner.run(comparison, settings, CEILINGS)


def test_outputs_that_do_not_agree_are_not_timed() -> None:
    calls: list[str] = []
    report = run(made_up(error=2e-3, calls=calls))
    assert not report["passed"]
    assert calls == ["ours", "peer"], "the gate's own calls and no more"
    assert report["cases"][0]["candidates"] == {"ours": {"ours": True}, "peer": {"ours": False}}
    failed = {"what": "error", "value": 2e-3, "limit": 1e-3, "passed": False}
    assert report["cases"][0]["checks"] == [failed]


def test_a_gate_that_checks_nothing_is_refused() -> None:
    prepared = Prepared(candidates={"ours": lambda: 0}, gate=lambda outputs: [])
    comparison = Comparison("empty", "", ("cpu",), lambda s: [Case("one", lambda: prepared)])
    (case,) = run(comparison)["cases"]
    assert not case["passed"]
    assert "at least one Check" in case["error"]


def test_a_case_that_raises_has_the_traceback_and_the_next_one_is_measured() -> None:
    def breaks() -> Prepared:
        raise MemoryError("too large")

    (whole,) = made_up(error=0, calls=[]).cases(QUICK)
    cases = [Case("large", breaks, bar=2.0), whole]
    report = run(Comparison("made_up", "", ("cpu",), lambda settings: cases))
    assert not report["passed"]
    broken, measured = report["cases"]
    assert not broken["passed"]
    assert broken["error"].strip().endswith("MemoryError: too large")
    unmet = {"what": "times as fast as the fastest peer", "value": None, "bar": 2.0, "met": False}
    assert broken["bars"] == [unmet]
    assert measured["passed"]
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


@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_a_report_holds_percentiles_samples_ratios_rates_and_quality(clock: str) -> None:
    report = run(made_up(error=0, calls=[]), replace(QUICK, clock=clock))
    assert report["passed"]
    case = report["cases"][0]
    ours, peer = (case["candidates"][name] for name in ("ours", "peer"))
    assert case["timed_by"] == f"{clock} clock"
    assert list(ours["seconds"]) == ["p20", "p50", "p80"]
    assert len(ours["samples"]) >= 3
    assert (ours["quality"]["same_label"], ours["quality"]["mean_error"]) == (0.9, 0.1)
    assert ours["images_per_second"] == pytest.approx(4 / ours["seconds"]["p50"])
    assert "ours_is_faster_by" not in ours
    ratio = peer["seconds"]["p50"] / ours["seconds"]["p50"]
    lead = peer["ours_is_faster_by"]
    assert lead["ratio_of_p50"] == pytest.approx(ratio)
    assert lead["p20"] <= lead["median_of_pairs"] <= lead["p80"]
    assert ours["bytes_per_second"] == pytest.approx(2000 / ours["seconds"]["p50"])
    assert case["floor_seconds"] == pytest.approx(2000 / 1e9)
    assert case["cost"]["sizes"] == {"N": 500}
    json.dumps(report)


def test_a_case_may_have_threads_and_a_clock_of_its_own_and_fewer_rounds() -> None:
    threads: list[int] = []

    def prepare() -> Prepared:
        calls = {"ours": lambda: threads.append(torch.get_num_threads()) or time.sleep(2e-4)}
        return Prepared(calls, lambda outputs: [Check("error", 0, 0)], cost=Cost(1, 1, {}))

    case = Case("one", prepare, threads=1, clock="cpu", rounds=1)
    comparison = Comparison("made_up", "", ("cpu",), lambda settings: [case])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (report,) = run(comparison, replace(QUICK, threads=2))["cases"]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {1} == {report["threads"]}
    assert report["timed_by"] == "cpu clock"
    assert report["floor_seconds"] is None, "the ceilings are of all threads"
    assert report["passed"]


def test_bars_are_held_against_what_was_measured_and_fail_nothing() -> None:
    report = run(made_up(error=0, calls=[], bar=1e9, floor_bar=1e-9, most_seconds=1e9))
    assert report["passed"]
    fast, floor, seconds = report["cases"][0]["bars"]
    assert (fast["what"], fast["met"]) == ("times as fast as peer", False)
    assert (floor["what"], floor["met"]) == ("times the floor", False)
    assert (seconds["what"], seconds["met"]) == ("s a call", True)


def test_the_fastest_peer_decides_whether_a_bar_is_met() -> None:
    def row(faster: float, ours: bool = False) -> dict[str, Any]:
        return {"ours": ours, "ours_is_faster_by": {"median_of_pairs": faster}}

    entries = [("ours", {"ours": True}), ("eager", row(6.0)), ("compiled", row(4.0))]
    entries.append(("ours in another way", row(2.0, ours=True)))
    (bar,) = runner._bars(Case("one", lambda: pytest.fail("prepared"), bar=5.0), entries)
    assert bar == {"what": "times as fast as compiled", "value": 4.0, "bar": 5.0, "met": False}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a made-up GPU."""

    def times(calls: Any, budget: Budget) -> Any:
        return time_in_turn(calls, budget), REPLAYS, ["odd"]

    monkeypatch.setattr(runner, "device_times", times)
    monkeypatch.setattr(runner, "peak_of_call", lambda call, device: 7)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return Settings(device="cuda", threads=1, quick=True)


def test_on_a_gpu_replays_count_and_the_wall_clock_stands_beside_them(gpu: Settings) -> None:
    (report,) = run(made_up(error=0, calls=[]), gpu)["cases"]
    assert report["error"] is None
    assert report["timed_by"] == REPLAYS
    assert report["notes"] == ["made up", "one: odd"]
    ours = report["candidates"]["ours"]
    assert ours["wall"]["p50"] > 0
    assert ours["seconds"]["p50"] > 0
    assert ours["peak_bytes"] == 7


def test_what_is_around_the_candidates_holds_while_they_run_and_no_longer(gpu: Settings) -> None:
    held: list[bool] = [False]
    seen = []

    @contextmanager
    def around() -> Iterator[None]:
        held[0] = True
        yield
        held[0] = False

    calls = {"ours": lambda: seen.append(held[0])}
    prepared = Prepared(calls, lambda outputs: [Check("error", 0, 0)], around=around)
    comparison = Comparison("made_up", "", ("cuda",), lambda s: [Case("one", lambda: prepared)])
    assert run(comparison, gpu)["passed"]
    assert len(seen) > 3
    assert all(seen)
    assert not held[0]


def test_when_the_time_is_up_the_rest_is_left_out_by_name() -> None:
    comparison = replace(made_up(error=0, calls=[]), most_seconds={"cpu": 0.0})
    report = run(comparison)
    assert report["cases"] == []
    assert report["left_out"] == ["one"]
    assert run(replace(comparison, most_seconds={"cuda": 0.0}))["left_out"] == []


def test_every_step_is_announced() -> None:
    said: list[str] = []
    runner.run(made_up(error=0, calls=[]), QUICK, CEILINGS, said.append)
    assert all(line.startswith("made_up: ") for line in said)
    assert re.search("agree.*timing", " ".join(said))
