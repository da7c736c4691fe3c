"""The campaign in short (`make campaign` runs it whole), and that it finds what it should find."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from campaign import case, families, runner
from campaign.case import Call, Command, Wrong
from campaign.network import check_labels
from campaign.runner import Family, Tally
from hypothesis import strategies as st
from several_processes import run_python

from deeplab.data import outputs

SHORT = {
    **{"pictures": 14, "labels": 12, "settings": 12, "checkpoints": 12, "class_files": 16},
    **{"arrays": 20, "options": 16, "crf": 20, "kernels": 20, "disk": 3},
    "annotations": 16,
}


@pytest.mark.parametrize("family", SHORT)
def test_a_short_campaign_finds_nothing(family):
    tally = families.run(family, 1, SHORT[family])
    assert tally.cases == SHORT[family]
    assert tally.result + tally.refused == tally.cases
    assert not tally.failures


def test_kills_and_two_writers_in_processes_of_their_own(tmp_path):
    record = tmp_path / "record.json"
    command = ["-m", "campaign", "--family", "kill", "--family", "writers"]
    run_python(*command, "--count", "2", "--out", str(record))
    kept = json.loads(record.read_text())
    assert kept["counts"] == {"kill": 2, "writers": 2}
    assert [tally["result"] for tally in kept["families"]] == [2, 2]
    assert kept["failures"] == 0


def test_every_family_is_in_the_short_form():
    assert set(families.PARTS) == {*SHORT, "kill", "writers", "concurrency"}
    assert sum(families.PARTS[name].count for name in families.INPUTS) == 10_000


def tally_of(*cases: case.Case) -> Tally:
    chosen = Family("f", "", lambda _shared: None, lambda _shared: st.sampled_from(cases))
    return runner.run_family(chosen, 0, len(cases))


def found(*cases: case.Case) -> str:
    """What is wrong with the only failure among the cases."""
    (failure,) = tally_of(*cases).failures
    assert failure["again"].startswith("python -m campaign --family f --seed 0 --only ")
    return str(failure["wrong"])


def acts(monkeypatch, status: int, stderr: str = "", writes: str = "") -> Command:
    """A command that behaves as told, in place of the product."""

    def run_command(_args: object) -> int:
        print(stderr, end="", file=sys.stderr)
        if writes:
            Path(writes).write_text("half")
        return status

    monkeypatch.setattr(case, "run_command", run_command)
    return Command("told", ["x"], {"input": b"1"})


@pytest.mark.parametrize(
    ("status", "stderr", "writes", "wrong"),
    [
        (1, "Traceback (most recent call last):\n", "", "a traceback"),
        (1, "boom\n", "", "status 1"),
        (139, "", "", "status 139"),
        (2, "Error: a\nError: b\n", "", "2 lines instead of one"),
        (2, "", "", "0 lines instead of one"),
        (2, "KeyError: 3\n", "", "no line of the program's own"),
        (2, f"Error: {'x' * 4000}\n", "", "a line of 4007 characters"),
        (2, "Error: <T object at 0x7f>\n", "", "an object instead of words"),
        (2, "Error: x\n", "out.png", "refused, and yet these changed: ['out.png']"),
        (0, "", ".out.part", "temporary files are left"),
        (0, "", "input", "inputs changed: ['input']"),
        (0, "x.py:1: UserWarning: y\n", "", "a warning"),
    ],
)
def test_a_command_that_ends_as_none_may_is_a_failure(monkeypatch, status, stderr, writes, wrong):
    assert wrong in found(acts(monkeypatch, status, stderr, writes))


def test_another_end_than_the_case_wants_is_a_failure(monkeypatch):
    told = acts(monkeypatch, 0)
    assert "expected refused, was result" in found(Command("x", ["x"], wanted="refused"))
    told = acts(monkeypatch, 2, "Error: other.png: no\n")
    assert "expected result, was refused" in found(Command("x", ["x"], wanted="result"))
    assert "names none of ['a.png']" in found(Command("x", ["x"], names=["a.png"]))
    assert tally_of(told).refused == 1


def test_a_wrong_label_is_a_failure(tmp_path):
    labels = np.zeros((4, 5), np.uint8)
    outputs.write_labels(tmp_path / "a_labels.png", labels, outputs.voc_palette())
    outputs.write_picture(tmp_path / "a_overlay.png", np.zeros((4, 5, 3), np.uint8))
    check_labels(tmp_path / "a_labels.png", labels)
    labels[2, 3] = 1
    with pytest.raises(Wrong, match="1 of 20 labels differ"):
        check_labels(tmp_path / "a_labels.png", labels)


def test_a_hang_a_crash_and_a_heap_of_memory_are_failures(monkeypatch):
    monkeypatch.setattr(runner, "MOST_CPU", 0.05)

    def spin() -> None:
        while True:
            time.process_time()

    assert "processor time" in found(Call("spins", spin))
    monkeypatch.setattr(runner, "MOST_CPU", 60.0)
    assert "ZeroDivisionError" in found(Call("divides", lambda: 1 // 0))
    monkeypatch.setattr(runner, "MOST_GROWTH", -1)
    assert "MiB more than anything before" in found(Call("grows", lambda: None))


def test_a_call_may_refuse_in_words_only():
    def raises(error: Exception) -> Call:
        def call() -> None:
            raise error

        return Call("refuses", call, names=["sigma"])

    assert tally_of(raises(ValueError("sigma must be positive"))).refused == 1
    assert "an empty ValueError" in found(raises(ValueError()))
    assert "names none of" in found(raises(TypeError("a truth value is ambiguous")))


def test_a_seed_makes_the_same_cases_again():
    lines: list[list[str]] = []
    for _ in range(2):
        drawn = runner._drawn(st.builds(Call, st.text(), st.just(lambda: None)), 3, 50)
        lines.append([one.said for one in drawn])
    assert lines[0] == lines[1]
    assert len(lines[0]) == 50
