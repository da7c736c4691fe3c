import importlib
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
pytestmark = pytest.mark.usefixtures("set_threads")

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


def add_comparison(
    monkeypatch: pytest.MonkeyPatch,
    error: float,
    devices: tuple[str, ...] = ("cpu",),
    others: tuple[Case, ...] = (),
    **more: Any,
) -> None:
    """Add a comparison as a developer would: a module and a line in the table."""
    calls = {"ours": lambda: 0, "peer": lambda: 0}
    check = Check("largest error", error, 1e-3)
    prepared = Prepared(calls, lambda outputs: [check], notes=["the peer is made up"])
    cases = [Case("one", lambda: prepared, bar=1e9), *others]
    comparison = Comparison("made_up", "Made up.", devices, lambda settings: cases, **more)
    module = SimpleNamespace(COMPARISON=comparison)
    monkeypatch.setitem(sys.modules, "compare_made_up", module)
    monkeypatch.setitem(compare.TOPICS, "made_up", compare.Topic(["made_up"], "made up"))
    monkeypatch.setattr(machine, "ceilings", lambda device: CEILINGS)


def run(out: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    code = compare.main(["made_up", "--quick", "--threads", "1", "--out", str(out), *arguments])
    (path,) = out.glob("*.json")
    return code, json.loads(path.read_text())


def test_a_record_says_what_was_measured_where_and_from_which_sources(tmp_path, monkeypatch):
    add_comparison(monkeypatch, error=0)
    code, record = run(tmp_path / "new" / "folder")
    assert code == 0
    assert record["versions"]["torch"] == torch.__version__
    packages = {"python", "triton", "numba", "numpy", "pydensecrf2", "cuda", "cudnn"}
    assert set(record["versions"]) >= packages
    assert set(record["hardware"]) >= {"cpu", "cores", "gpu", "memory_bytes"}
    assert set(record["commit"]) == {"id", "dirty"}
    assert record["command"].startswith("python bench/compare.py made_up --quick")
    assert "--out" not in record["command"], "a folder of this machine is nobody else's"
    assert record["threads"] == 1
    assert record["quick"] is True
    assert record["date"].endswith("+00:00")
    assert record["ceilings"] == {"cpu": CEILINGS}
    assert [comparison["name"] for comparison in record["comparisons"]] == ["made_up"]


def test_a_table_shows_times_and_says_what_the_reader_must_know(tmp_path, monkeypatch, capsys):
    add_comparison(monkeypatch, error=0)
    code, _ = run(tmp_path)
    assert code == 0, "a bar that is missed fails nothing"
    out, err = capsys.readouterr()
    for expected in ("made_up on the cpu", "p50 ms", "ours x", "peer", "the peer is made up"):
        assert expected in out
    assert re.search(r"bar 1e\+09 MISSED: one: [\d.]+ times as fast as peer", out)
    assert "record: " in out
    steps = re.search(r"^\[ +\d+ s\] made_up: one: timing ours, peer$", err, re.M)
    assert steps, "steps are told on standard error where the output is no terminal"


def test_outputs_that_do_not_agree_end_in_exit_code_1_and_by_how_much(
    tmp_path, monkeypatch, capsys
):
    add_comparison(monkeypatch, error=0.25)
    code, record = run(tmp_path)
    assert code == 1
    assert record["comparisons"][0]["passed"] is False
    shown = capsys.readouterr().out
    assert "GATE FAILED, not timed: one: largest error is 0.25, the limit is 0.001" in shown
    assert "not timed" in shown


def test_a_case_that_breaks_ends_in_exit_code_1_named_with_its_error(tmp_path, monkeypatch, capsys):
    def breaks() -> Prepared:
        raise MemoryError("[too] large")

    add_comparison(monkeypatch, error=0, others=(Case("two", breaks),))
    code, record = run(tmp_path)
    assert code == 1
    assert "breaks" in record["comparisons"][0]["cases"][1]["error"]
    shown = capsys.readouterr().out
    assert "BROKE, not timed (the record has the traceback): two: MemoryError: [too] large" in shown


def test_cases_for_which_the_time_was_up_are_named(tmp_path, monkeypatch, capsys):
    add_comparison(monkeypatch, error=0, most_seconds={"cpu": 1e9})
    code, record = run(tmp_path, "--most-seconds", "0")
    assert code == 0
    assert record["comparisons"][0]["left_out"] == ["one"]
    assert "LEFT OUT, the time was up: one" in capsys.readouterr().out


def test_a_run_that_is_stopped_leaves_the_record_of_the_cases_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped() -> Prepared:
        raise KeyboardInterrupt

    add_comparison(monkeypatch, error=0, others=(Case("two", stopped),))
    with pytest.raises(KeyboardInterrupt):
        compare.main(["made_up", "--quick", "--threads", "1", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("*-made_up-quick.json")
    (comparison,) = json.loads(path.read_text())["comparisons"]
    assert [case["name"] for case in comparison["cases"]] == ["one"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["aspp", "nope"], "unknown comparison nope; there are: aspp, crf"),
        (["aspp", "--against", "no.json"], "--against no.json must be a record of compare.py"),
        (["made_up", "--device", "cpu"], "made_up does not run on cpu"),
        (["--threads", "0"], "--threads must be at least 1, not 0"),
        (["--out", f"{__file__}/out"], "no folder can be made"),
        pytest.param(["aspp", "--device", "cuda"], "no CUDA device", marks=NO_CUDA),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_runs(arguments, message, monkeypatch, capsys):
    add_comparison(monkeypatch, error=0, devices=("cuda",))
    with pytest.raises(SystemExit) as stop:
        compare.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_all_are_run_together_and_those_of_another_device_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_comparison(monkeypatch, error=0, devices=("cuda",))
    alone = dict(compare.TOPICS)
    monkeypatch.setattr(compare, "TOPICS", {"made_up": alone["made_up"]})
    arguments = ["all", "--quick", "--device", "cpu", "--out", str(tmp_path)]
    assert compare.main(arguments) == 0
    assert "left out, not made for cpu: made_up" in capsys.readouterr().out


def test_what_is_slower_than_a_record_beyond_noise_ends_in_exit_code_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_comparison(monkeypatch, error=0)
    _, record = run(tmp_path / "then")
    (case,) = record["comparisons"][0]["cases"]
    spread = {"p20": 1.0, "p50": 1.0, "p80": 1.0}
    for name, seconds in (("ours", 1e-12), ("peer", 1.0)):
        case["candidates"][name]["seconds"] = dict.fromkeys(spread, seconds)
    case["candidates"]["peer"]["ours_is_faster_by"] = {
        "p20": 1e12, "median_of_pairs": 1e12, "p80": 1e12,
    }  # fmt: skip
    for expected, tampered in ((3, record), (0, {**record, "comparisons": []})):
        before = tmp_path / f"{expected}.json"
        before.write_text(json.dumps(tampered))
        code, _ = run(tmp_path / str(expected), "--against", str(before))
        assert code == expected
    shown = capsys.readouterr().out
    assert shown.count("SLOWER: made_up on the cpu: one, ours: time of ours: slower by") == 1
    assert "against 3.json: 1 of 1 rows slower" in shown
    assert "against 0.json: it has no row that was timed now" in shown


def test_a_clock_of_the_processor_is_refused_for_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SystemExit) as stop:
        compare.main(["aspp", "--clock", "cpu"])
    assert stop.value.code == 2
    assert "add --device cpu" in capsys.readouterr().err


def test_help_names_every_comparison_and_explains_the_table(capsys):
    with pytest.raises(SystemExit) as stop:
        compare.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for name in compare.TOPICS:
        assert f"  {name} " in shown
    for column in ("p20 p50 p80", "ours x", "peak MB", "x floor", "exit code", "first_call.py"):
        assert column in shown


def test_every_comparison_is_in_the_table_under_the_name_of_its_module():
    folder = Path(compare.__file__).parent
    modules = [p.name for p in folder.glob("*.py") if "\nCOMPARISON = " in p.read_text()]
    listed = [name for topic in compare.TOPICS.values() for name in topic.comparisons]
    assert sorted(f"compare_{name}.py" for name in listed) == sorted(modules)
    for name in listed:
        assert importlib.import_module(f"compare_{name}").COMPARISON.name == name


def test_no_module_of_bench_shadows_a_package_or_the_standard_library():
    names = {path.stem for path in Path(compare.__file__).parent.glob("*.py")}
    assert not names & {"crf", "deeplab", "kernels", "torch", "numpy"}
    assert not names & sys.stdlib_module_names
