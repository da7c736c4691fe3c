from __future__ import annotations

import json
import re
from typing import Any

import pytest
import runner
from frame import Case, Check, Comparison, Cost, Formula, Prepared, Probe, Settings

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
    with pytest.raises(ValueError, match="at least one Check"):
        run(comparison)


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


def test_a_probe_is_held_against_its_bars() -> None:
    (probe,) = run(made_up(error=0, calls=[]))["probes"]
    assert probe["figures"] == {"first": 3.0, "second": 0.5}
    assert probe["bars_met"] == {"first": False}


def test_every_step_is_announced() -> None:
    said: list[str] = []
    runner.run(made_up(error=0, calls=[]), QUICK, CEILINGS, said.append)
    assert all(line.startswith("made_up: ") for line in said)
    assert re.search("agree.*timing.*compile", " ".join(said))
