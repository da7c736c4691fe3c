"""What counts as slower than in another record, and what cannot be judged."""

from typing import Any

import against
import pytest
from rich.console import Console


def record(
    ours: float, peer: float, spread: float = 0.02, cpu: str = "A", torch: str = "2"
) -> dict[str, Any]:
    """One case in which ours takes so many seconds beside a peer."""

    def around(middle: float) -> dict[str, float]:
        return {"p20": middle * (1 - spread / 2), "p50": middle, "p80": middle * (1 + spread / 2)}

    lead = around(peer / ours)
    lead["median_of_pairs"] = lead.pop("p50")
    candidates = {
        "ours": {"seconds": around(ours)},
        "peer": {"seconds": around(peer), "ours_is_faster_by": lead},
    }
    case = {"name": "one", "threads": 1, "timed_by": "cpu clock", "candidates": candidates}
    return {
        "hardware": {"cpu": cpu, "gpu": "of the same machine"},
        "versions": {"torch": torch},
        "threads": 2,
        "comparisons": [{"name": "made_up", "device": "cpu", "cases": [case]}],
    }


def slower(before: dict[str, Any], after: dict[str, Any]) -> bool:
    (case,) = against.changes(before, after)
    return case.slower


def test_more_time_beside_the_same_peer_is_slower():
    assert slower(record(1.0, 3.0), record(1.2, 3.0))
    assert not slower(record(1.0, 3.0), record(1.0, 3.0))
    assert not slower(record(1.2, 3.0), record(1.0, 3.0)), "faster"


def test_a_machine_that_slowed_both_down_is_none_of_ours():
    assert not slower(record(1.0, 3.0), record(1.5, 4.5))


def test_a_peer_that_became_faster_does_not_make_ours_slower():
    assert not slower(record(1.0, 3.0), record(1.0, 2.0))


def test_noise_is_both_spreads_together_and_never_less_than_the_least():
    assert not slower(record(1.0, 3.0, spread=0.15), record(1.2, 3.0, spread=0.15))
    assert slower(record(1.0, 3.0, spread=0.05), record(1.2, 3.0, spread=0.05))
    assert not slower(record(1.0, 3.0, spread=0.0), record(1.0 + against.LEAST / 2, 3.0, 0.0))


def test_on_another_processor_nothing_is_judged():
    (case,) = against.changes(record(1.0, 3.0), record(3.0, 6.0, cpu="B"))
    assert case.figures == []
    assert not case.slower


def test_on_a_gpu_it_is_that_which_has_to_be_the_same():
    before, after = record(1.0, 3.0), record(1.2, 3.0, cpu="B")
    for each in (before, after):
        each["comparisons"][0]["device"] = "cuda"
    (case,) = against.changes(before, after)
    assert [figure.what for figure in case.figures] == ["time of ours", "beside peer"]
    assert case.slower


def test_a_peer_of_another_version_does_not_count():
    (case,) = against.changes(record(1.0, 3.0), record(1.2, 3.0, torch="3"))
    assert [figure.what for figure in case.figures] == ["time of ours"]
    assert case.slower


def test_each_package_that_a_peer_is_named_after_has_to_be_of_one_version():
    before, after = record(1.0, 3.0), record(1.2, 3.0)
    for each, version in ((before, "1"), (after, "2")):
        each["versions"]["onnxruntime"] = version
        (case,) = each["comparisons"][0]["cases"]
        case["candidates"]["onnxruntime + more"] = case["candidates"].pop("peer")
    (found,) = against.changes(before, after)
    assert [figure.what for figure in found.figures] == ["time of ours"]


def test_what_cannot_be_judged_is_said(capsys):
    judged = against.changes(record(1.0, 3.0), record(9.0, 3.0, cpu="B", torch="3"))
    assert judged[0].figures == []
    assert not judged[0].slower
    against.show_changes(judged, "old.json", Console(width=200))
    shown = capsys.readouterr().out
    assert "against old.json: 0 of 0 rows slower beyond noise" in shown
    assert "note: made_up on the cpu: one, ours: not judged" in shown


@pytest.mark.parametrize(
    "change",
    [
        {"threads": 2},
        {"timed_by": "wall clock"},
        {"facts": {"pictures": 3}},
        {"cost": {"bytes": 1}},
    ],
)
def test_other_threads_another_clock_and_other_inputs_are_not_compared(change):
    after = record(2.0, 3.0)  # of which the lead has fallen too
    after["comparisons"][0]["cases"][0] |= change
    (case,) = against.changes(record(1.0, 3.0), after)
    assert case.figures == []


def with_another(found: dict[str, Any], seconds: float, first: float = 1.0) -> dict[str, Any]:
    """The record, whose first row takes `first` seconds, with one more row of ours."""

    def around(middle: float, name: str) -> dict[str, float]:
        return {"p20": 0.99 * middle, name: middle, "p80": 1.01 * middle}

    candidates = found["comparisons"][0]["cases"][0]["candidates"]
    candidates["ours"]["ours"], candidates["peer"]["ours"] = True, False
    candidates["other"] = {
        "ours": True,
        "seconds": around(seconds, "p50"),
        "ours_is_faster_by": around(seconds / first, "median_of_pairs"),
    }
    return found


@pytest.mark.parametrize(("seconds", "verdicts"), [(2.0, [False, False]), (3.0, [False, True])])
def test_each_row_of_ours_is_judged_against_the_same_row(seconds, verdicts):
    before, after = (with_another(record(1.0, 3.0), each) for each in (2.0, seconds))
    first, other = against.changes(before, after)
    assert [first.slower, other.slower] == verdicts
    assert [figure.what for figure in first.figures] == ["time of ours", "beside peer"]
    assert [figure.what for figure in other.figures] == ["time of other", "beside peer"]
    for figure in other.figures:
        assert figure.slower_by == pytest.approx(seconds / 2 - 1)


@pytest.mark.parametrize(
    ("ours", "peer", "other"), [(1.5, 4.5, 3.0), (0.5, 3.0, 2.0)], ids=["machine", "first row"]
)
def test_a_machine_that_slowed_down_and_a_faster_first_row_make_no_other_slower(ours, peer, other):
    before = with_another(record(1.0, 3.0), 2.0)
    after = with_another(record(ours, peer), other, first=ours)
    assert not any(row.slower for row in against.changes(before, after))


def test_another_case_is_none_of_both():
    after = record(2.0, 3.0)
    after["comparisons"][0]["cases"][0]["name"] = "two"
    assert against.changes(record(1.0, 3.0), after) == []


def test_a_record_of_an_earlier_form_gives_its_times():
    before = record(1.0, 3.0)
    (case,) = before["comparisons"][0]["cases"]
    del case["threads"]
    case["candidates"]["peer"]["ours_is_faster_by"] = {"median_of_pairs": 3.0}
    after = record(2.0, 3.0)
    after["comparisons"][0]["cases"][0]["threads"] = before["threads"]
    (change,) = against.changes(before, after)
    assert [figure.what for figure in change.figures] == ["time of ours"]
    assert change.slower


@pytest.mark.parametrize(
    ("ours", "words"), [(2.0, "SLOWER: made_up on the cpu: one, ours: time of ours"), (1.0, "0 of")]
)
def test_each_slower_case_is_told_with_its_noise(ours, words, capsys):
    judged = against.changes(record(1.0, 3.0), record(ours, 3.0))
    against.show_changes(judged, "old.json", Console(width=200))
    assert words in capsys.readouterr().out
