"""The figures of a folder of many pictures: what is timed, killed and compared."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import segment_many

# What a command does: a line for each picture, and a file unless it is there.
COMMAND = """
import pathlib, sys, time
photos, out = map(pathlib.Path, sys.argv[1:])
out.mkdir(exist_ok=True)
for file in sorted(photos.iterdir()):
    for end in ("labels", "overlay"):
        (out / f"{file.stem}_{end}.png").write_bytes(file.read_bytes())
    print(file, flush=True)
time.sleep(1)  # for who looks at the process after its last line
"""


class Alone:
    """As `segment_many.Alone`: ten seconds a picture, so it says, after a hundredth of one."""

    def __init__(self, *_: object) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.others = set(_children())  # such as workers of a compiler in an earlier test
        self.halted: list[bool] = []  # whether what was started since is

    def round(self) -> None:
        time.sleep(0.01)
        (command,) = set(_children()) - self.others
        self.halted.append(_state(command) == "T")
        self.wall.append(10.0)
        self.cpu.append(5.0)


def _children() -> list[str]:
    """The processes that this one has started."""
    tasks = Path("/proc/self/task").iterdir()
    return [child for task in tasks for child in (task / "children").read_text().split()]


def _state(process: str) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture
def quick(monkeypatch) -> None:
    """Tiny pictures, a command that only copies, and no network."""
    monkeypatch.setattr(segment_many, "CAMVID", Path("/nowhere"))
    monkeypatch.setattr(segment_many, "SOURCES", 3)
    monkeypatch.setattr(segment_many, "HEIGHT", 18)
    monkeypatch.setattr(segment_many, "WIDTH", 24)
    monkeypatch.setattr(segment_many, "Alone", Alone)

    def command(photos: Path, out: Path, *_: str) -> list[str]:
        return [sys.executable, "-c", COMMAND, str(photos), str(out)]

    monkeypatch.setattr(segment_many, "command", command)


@pytest.mark.usefixtures("quick")
def test_the_record_says_how_each_bar_is_met(tmp_path) -> None:
    arguments = ["--pictures", "40", "--at-once", "1", "--out", str(tmp_path)]
    status = segment_many.main(arguments)
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert record["command"] == "python bench/segment_many.py --pictures 40 --at-once 1"
    (found,) = record["comparisons"]
    assert found["of"] == "generated scenes"
    assert found["alone_seconds_each"] == [10.0] * 9  # after each tenth but the last
    assert found["times_alone"] == pytest.approx(found["seconds"] / 40 / 10)
    assert found["times_alone_cpu"] == pytest.approx(found["cpu_seconds"] / 40 / 5)
    assert found["times_alone"] < 1
    assert len(found["resident"]) == 2
    assert len(found["killed_after"]) == segment_many.KILLED
    assert found["same_bytes"]
    assert status == (found["memory_grown"] > segment_many.GROWN)


def test_other_bytes_and_missing_files_are_no_same_files(tmp_path) -> None:
    some, whole = tmp_path / "some", tmp_path / "whole"
    some.mkdir()
    whole.mkdir()
    assert not segment_many.same_files(some, whole)
    (some / "a").write_bytes(b"1")
    assert not segment_many.same_files(some, whole)
    (whole / "a").write_bytes(b"2")
    os.utime(some / "a", (0, 0))
    os.utime(whole / "a", (0, 0))
    assert not segment_many.same_files(some, whole)
    (whole / "a").write_bytes(b"1")
    (whole / "b").write_bytes(b"1")
    assert segment_many.same_files(some, whole)


def test_a_process_that_has_ended_has_nothing_resident() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays until it is waited for
        assert segment_many._resident(child.pid) == 0
    assert segment_many._resident(os.getpid()) > 2**20


@pytest.mark.usefixtures("quick")
def test_while_the_command_is_halted_no_time_is_counted(tmp_path) -> None:
    photos, alone = tmp_path / "photos", Alone()
    photos.mkdir()
    segment_many.write_inputs(photos, 20)
    start = time.perf_counter()
    found = segment_many.segmented(segment_many.command(photos, tmp_path / "out"), 20, alone)
    assert alone.halted == [True] * 9
    assert found["seconds"] <= time.perf_counter() - start - 0.01 * len(alone.wall)


def test_a_command_that_fails_is_no_figure() -> None:
    with pytest.raises(RuntimeError, match="status 3"):
        segment_many.segmented([sys.executable, "-c", "raise SystemExit(3)"], 20, Alone())
    with pytest.raises(subprocess.CalledProcessError):
        segment_many.killed([sys.executable, "-c", "raise SystemExit(3)"], 20)
