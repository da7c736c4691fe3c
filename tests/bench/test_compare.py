from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import compare
import machine
import pytest
import torch
from frame import Case, Check, Comparison, Prepared

CEILINGS = {"bytes_per_second": 1e9, "operations_per_second": 1e9}
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


@pytest.fixture(autouse=True)
def _threads_as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def add_comparison(
    monkeypatch: pytest.MonkeyPatch,
    error: float,
    devices: tuple[str, ...] = ("cpu",),
    others: tuple[Case, ...] = (),
    **more: Any,
) -> None:
    """Add a comparison as a developer would: a module and a line in the table."""
    prepared = Prepared(
        candidates={"ours": lambda: 0, "peer": lambda: 0},
        gate=lambda outputs: [Check("largest error", error, 1e-3)],
        notes=["the peer is made up"],
    )
    cases = [Case("one", lambda: prepared, bar=1e9), *others]
    module = SimpleNamespace(
        COMPARISON=Comparison("made_up", "Made up.", devices, lambda settings: cases, **more)
    )
    monkeypatch.setitem(sys.modules, "compare_made_up", module)
    monkeypatch.setitem(compare.COMPARISONS, "made_up", "made up")
    monkeypatch.setattr(machine, "ceilings", lambda device: CEILINGS)


def run(out: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    code = compare.main(["made_up", "--quick", "--threads", "1", "--out", str(out), *arguments])
    (path,) = out.glob("*.json")
    return code, json.loads(path.read_text())


def test_a_record_says_what_was_measured_where_and_from_which_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_comparison(monkeypatch, error=0)
    code, record = run(tmp_path / "new" / "folder")
    assert code == 0
    assert record["versions"]["torch"] == torch.__version__
    packages = {"python", "triton", "numba", "numpy", "pydensecrf2", "cuda", "cudnn"}
    assert set(record["versions"]) >= packages
    assert set(record["hardware"]) >= {"cpu", "cores", "gpu", "memory_bytes"}
    assert set(record["commit"]) == {"id", "dirty"}
    assert record["command"].startswith("python bench/compare.py made_up --quick")
    assert record["threads"] == 1
    assert record["quick"] is True
    assert record["date"].endswith("+00:00")
    assert record["ceilings"] == {"cpu": CEILINGS}
    assert [comparison["name"] for comparison in record["comparisons"]] == ["made_up"]


def test_a_table_shows_times_and_says_what_the_reader_must_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_comparison(monkeypatch, error=0)
    run(tmp_path)
    shown = capsys.readouterr().out
    for expected in ("made_up on the cpu", "p50 ms", "ours x", "peer", "the peer is made up"):
        assert expected in shown
    assert "record: " in shown


def test_outputs_that_do_not_agree_end_in_exit_code_1_and_say_by_how_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_comparison(monkeypatch, error=0.25)
    code, record = run(tmp_path)
    assert code == 1
    assert record["comparisons"][0]["passed"] is False
    shown = capsys.readouterr().out
    assert "GATE FAILED, not timed: one: largest error is 0.25, the limit is 0.001" in shown
    assert "not timed" in shown


def test_a_bar_is_shown_with_what_was_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_comparison(monkeypatch, error=0)
    code, _ = run(tmp_path)
    assert code == 0, "a bar that is missed fails nothing"
    shown = capsys.readouterr().out
    assert re.search(r"bar 1e\+09 MISSED: one: [\d.]+ times as fast as peer", shown)


def test_a_case_that_breaks_ends_in_exit_code_1_and_is_named_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks() -> Prepared:
        raise MemoryError("[too] large")

    add_comparison(monkeypatch, error=0, others=(Case("two", breaks),))
    code, record = run(tmp_path)
    assert code == 1
    assert "breaks" in record["comparisons"][0]["cases"][1]["error"]
    shown = capsys.readouterr().out
    assert "BROKE, not timed (the record has the traceback): two: MemoryError: [too] large" in shown


def test_cases_for_which_the_time_was_up_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_comparison(monkeypatch, error=0, most_seconds={"cpu": 1e9})
    code, record = run(tmp_path, "--most-seconds", "0")
    assert code == 0
    assert record["comparisons"][0]["left_out"] == ["one"]
    assert "LEFT OUT, the time was up: one" in capsys.readouterr().out


def test_every_step_is_told_on_standard_error_where_the_output_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_comparison(monkeypatch, error=0)
    run(tmp_path)
    assert re.search(
        r"^\[ +\d+ s\] made_up: one: timing ours, peer$", capsys.readouterr().err, re.M
    )


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        compare.main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_an_unknown_name_ends_in_exit_code_2_with_the_list(
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = refused(["aspp", "nope"], capsys)
    assert "unknown comparison nope; there are: crf, aspp" in message


@NO_CUDA
def test_a_device_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no CUDA device" in refused(["aspp", "--device", "cuda"], capsys)


def test_a_comparison_that_does_not_run_on_the_device_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_comparison(monkeypatch, error=0, devices=("cuda",))
    message = refused(["made_up", "--device", "cpu"], capsys)
    assert "made_up does not run on cpu" in message


def test_no_threads_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--threads must be at least 1, not 0" in refused(["--threads", "0"], capsys)


def test_a_record_folder_that_cannot_be_made_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert "no folder can be made" in refused(["--out", str(tmp_path / "file" / "out")], capsys)


def test_help_names_every_comparison_and_explains_the_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        compare.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for name in compare.COMPARISONS:
        assert f"  {name} " in shown
    for column in ("p20 p50 p80", "ours x", "peak MB", "x floor", "exit code", "first_call.py"):
        assert column in shown


def test_every_name_in_the_table_is_a_module_beside_compare() -> None:
    folder = Path(compare.__file__).parent
    assert {f"compare_{name}.py" for name in compare.COMPARISONS} == {
        path.name for path in folder.glob("compare_*.py")
    }


def test_no_module_of_bench_shadows_a_package_or_the_standard_library() -> None:
    names = {path.stem for path in Path(compare.__file__).parent.glob("*.py")}
    assert not names & {"crf", "deeplab", "kernels", "torch", "numpy"}
    assert not names & sys.stdlib_module_names
