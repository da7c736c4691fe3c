"""The script for a machine with a GPU, rehearsed with steps that need none."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gpu
import pytest
import torch
from gpu import FAILED, LATE, PASSED, UNFINISHED, Step

BENCH = Path(gpu.__file__).parent
TESTS = BENCH.parent / "tests"


def python(name: str, code: str, most_seconds: float = 30.0) -> Step:
    return Step(name, ("-c", code), most_seconds)


def touch(path: Path) -> str:
    """Code that leaves a mark each time that it runs."""
    return f"open({str(path)!r}, 'a').write('x')"


def states(out: Path, part: str = "suite") -> dict[str, str]:
    results = json.loads((out / "gpu.json").read_text())[part]
    return {name: found["status"] for name, found in results.items()}


def run(out: Path, *steps: Step, seconds: float = 100.0) -> int:
    return gpu.run_part("suite", steps, out, seconds)


def test_a_step_that_fails_does_not_stop_the_next_and_shows_in_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = python("bad", "print('FAILED tests/x.py::y'); print('fine'); raise SystemExit(3)")
    assert run(tmp_path, bad, python("good", "print('12 passed')")) == 1
    assert states(tmp_path) == {"bad": FAILED, "good": PASSED}
    shown = capsys.readouterr().out
    assert "FAILED tests/x.py::y" in shown
    assert "12 passed" in shown
    assert "suite: 1 of 2 steps passed" in shown


def test_all_steps_passed_is_exit_code_0(tmp_path: Path) -> None:
    assert run(tmp_path, python("good", "")) == 0


@pytest.fixture(params=["a terminal", "nohup"])
def start(request: pytest.FixtureRequest) -> Iterator[None]:
    """What begins the suite: behind `nohup` and `&` of a shell, SIGINT is ignored at first."""
    ignored = signal.SIG_IGN if request.param == "nohup" else signal.default_int_handler
    before = signal.signal(signal.SIGINT, ignored)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("start")
def test_a_step_that_hangs_is_asked_to_end_at_its_limit_and_the_next_one_runs(
    tmp_path: Path,
) -> None:
    mark = tmp_path / "asked"
    code = f"""
import time
try:
    time.sleep(60)
except KeyboardInterrupt:
    {touch(mark)}
"""
    begin = time.monotonic()
    assert run(tmp_path, python("hangs", code, 3.0), python("next", "")) == 1
    assert time.monotonic() - begin < 35
    assert states(tmp_path) == {"hangs": LATE, "next": PASSED}
    assert mark.exists()


def test_a_step_that_does_not_listen_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    child = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    code = f"""
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", {child!r}])
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
child.wait()
"""
    run(tmp_path, python("deaf", code, 2.0))
    assert states(tmp_path) == {"deaf": LATE}
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):  # until its new parent has noticed
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text():
            break
        time.sleep(0.1)
    else:
        os.kill(pid, signal.SIGKILL)
        pytest.fail("the child outlived its step")


def test_after_a_kill_the_same_command_goes_on_with_the_step_that_was_running(
    tmp_path: Path,
) -> None:
    marks = [tmp_path / name for name in ("first", "second", "third")]
    kill = f"import os, signal\nif {str(marks[1])!r} and not os.path.exists({str(marks[1])!r}):\n"
    kill += f"    {touch(marks[1])}; os.kill(os.getppid(), signal.SIGKILL)"
    codes = [touch(marks[0]), kill, touch(marks[2])]
    steps = [python(f"step {i}", code) for i, code in enumerate(codes)]
    driver = (
        f"import sys; sys.path.insert(0, {str(BENCH)!r}); import gpu; from pathlib import Path\n"
    )
    driver += f"from gpu import Step; gpu.run_part('suite', {steps!r}, Path({str(tmp_path)!r}), 90)"
    killed = subprocess.run([sys.executable, "-c", driver], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert states(tmp_path) == {"step 0": PASSED}
    assert run(tmp_path, *steps) == 0
    assert states(tmp_path) == {"step 0": PASSED, "step 1": PASSED, "step 2": PASSED}
    assert [mark.read_text() for mark in marks] == ["x", "x", "x"]


def test_a_step_with_more_to_do_is_run_again_and_one_that_ended_is_not(tmp_path: Path) -> None:
    more, ended = tmp_path / "more", tmp_path / "ended"
    unfinished = f"{touch(more)}; raise SystemExit({gpu.MORE_TO_DO})"
    steps = python("more", unfinished), python("ended", f"{touch(ended)}; raise SystemExit(1)")
    for _ in range(2):
        assert run(tmp_path, *steps) == 1
    assert states(tmp_path) == {"more": UNFINISHED, "ended": FAILED}
    assert (more.read_text(), ended.read_text()) == ("xx", "x")


def test_a_step_without_time_left_is_not_started_and_runs_in_the_next_call(tmp_path: Path) -> None:
    assert run(tmp_path, python("one", ""), seconds=gpu.LEAST - 1) == 1
    assert not (tmp_path / "gpu.json").exists()
    assert run(tmp_path, python("one", "")) == 0


def test_a_step_that_the_part_had_no_time_for_is_not_held_to_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "run_step", lambda step, log, seconds: LATE)
    run(tmp_path, python("own limit", "", 5), python("cut short", "", 1000), seconds=50)
    assert states(tmp_path) == {"own limit": LATE, "cut short": UNFINISHED}


def test_a_step_that_takes_a_limit_is_told_to_start_nothing_before_it(tmp_path: Path) -> None:
    code = "import sys; print(sys.argv[1:])"
    run(tmp_path, Step("told", ("-c", code), 30.0, margin=10.0))
    assert "['--most-seconds', '20']" in (tmp_path / "suite.log").read_text()
    for step in gpu.steps("compare", tmp_path, "sm_90"):
        assert step.margin is not None
        assert step.margin < step.most_seconds


def test_no_step_may_take_more_than_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    monkeypatch.setattr(gpu, "run_step", lambda step, log, seconds: given.append(seconds) or PASSED)
    run(tmp_path, python("long", "", 1000), python("short", "", 5), seconds=50)
    assert given[0] == pytest.approx(50 - gpu.GRACE, abs=1)
    assert given[1] == 5


def test_a_summary_has_60_lines_at_most(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, python("loud", "[print('FAILED', i) for i in range(500)]"), python("good", ""))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= gpu.MOST_LINES
    assert "more lines" in lines[-2]
    assert lines[-1] == "suite: 2 of 2 steps passed"


def test_both_parts_leave_at_most_eight_files_and_a_step_replaces_its_own(tmp_path: Path) -> None:
    patterns = [
        s.writes for part in ("suite", "compare") for s in gpu.steps(part, tmp_path, "sm_90")
    ]
    records = [pattern for pattern in patterns if pattern]
    tables = 2  # tuning writes a table and a record, of fixed names
    assert len(records) + tables + len(("gpu.json", "suite.log", "compare.log")) <= 8
    (tmp_path / "1-aspp.json").touch()
    write = f"open({str(tmp_path / '2-aspp.json')!r}, 'w')"
    run(tmp_path, Step("aspp", ("-c", write), 30, "*-aspp.json"))
    assert [path.name for path in tmp_path.glob("*-aspp.json")] == ["2-aspp.json"]


def test_a_part_ends_within_five_minutes() -> None:
    assert gpu.SECONDS + gpu.GRACE < 300


def test_every_file_with_gpu_tests_is_in_a_group() -> None:
    listed = [TESTS / path for paths in gpu.GPU_TESTS.values() for path in paths]
    assert all(path.exists() for path in listed)
    marked = [
        path
        for path in TESTS.rglob("test_*.py")
        if "mark.gpu" in path.read_text() or TESTS / "triton" in path.parents
    ]
    assert marked
    for path in marked:
        assert any(place in (path, *path.parents) for place in listed), path


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        gpu.main(["suite", "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.slow
def test_nothing_that_it_runs_needs_packages_of_the_command_line(tmp_path: Path) -> None:
    """A machine with a GPU may have its own Python, without these."""
    missing = ("pydantic", "tomli_w", "typer", "optuna", "pycocotools", "pydensecrf")
    block = f"import sys\nfor name in {missing!r}:\n    sys.modules[name] = None\n"
    (tmp_path / "sitecustomize.py").write_text(block)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{BENCH.parent}"}
    names = "compare, compare_aspp, compare_crf, crf_problem, gpu, report, runner, static"
    code = f"import sys; sys.path.insert(0, {str(BENCH)!r}); import {names}, tune_atrous\n"
    code += "crf_problem.PHOTOGRAPHS = ()\nprint(crf_problem.photograph(8, 9)[0].shape)\n"
    code += "try:\n    import pydantic\nexcept ImportError:\n    print('blocked')"
    tests = [f"tests/{path}" for paths in gpu.GPU_TESTS.values() for path in paths]
    collect = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", "-m", "gpu"]
    for arguments, told in ((["-c", code], "blocked"), ([*collect, *tests], "tests collected")):
        found = subprocess.run(
            [sys.executable, *arguments], cwd=BENCH.parent, env=environment, text=True,
            capture_output=True,
        )  # fmt: skip
        assert found.returncode == 0, found.stdout + found.stderr
        assert told in found.stdout
