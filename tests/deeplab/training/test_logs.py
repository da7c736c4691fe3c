"""The logs of a run: locked against another run, and one line where they cannot be written."""

import csv
import dataclasses
import subprocess
import sys
import threading

import numpy as np
import pytest
from tiny_training import SHORT, TINY, Acting, raises, rows, run

from deeplab.errors import InputError
from deeplab.training.callbacks import Run
from deeplab.training.logs import COLUMNS, CSVLog
from deeplab.training.trackers import TensorBoardLog

HOLDS = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


HEADER = ",".join(COLUMNS) + "\n"


def started(log):
    """The log of a run without classes, as it starts."""
    log.on_start(Run(SHORT, (), np.zeros((0, 3), np.uint8), None, None, 0))
    return log


@pytest.mark.parametrize("name", ["w.csv", ".w.csv.part"], ids=["running", "starting"])
def test_a_second_run_of_a_name_is_refused_and_changes_nothing(tmp_path, name):
    (tmp_path / "w.csv").write_text(HEADER)
    (tmp_path / "w.state").write_text("of the other")
    command = [sys.executable, "-c", HOLDS, tmp_path / name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(InputError, match=r"w\.csv: another run is writing here; wait until"):
            started(CSVLog(tmp_path / "w.csv"))
        assert (tmp_path / "w.csv").read_text() == HEADER
        other.kill()  # as a run that is killed: its lock goes with it
    log = started(CSVLog(tmp_path / "w.csv"))
    log.on_row({"step": 1})
    log.on_end(None)
    assert [row["step"] for row in csv.DictReader((tmp_path / "w.csv").open())] == ["1"]
    assert not (tmp_path / ".w.csv.part").exists()


@pytest.mark.parametrize(
    ("every", "done", "scored"),
    [(3, 0, ["3", "6"]), (4, 1, ["4", "6"]), (6, 0, ["6"]), (100, 0, ["6"])],
)
def test_a_validation_that_was_cut_short_is_made_up_for_and_has_its_row_in_the_end(
    pictures, tmp_path, every, done, scored
):
    """done: how many validations come before it."""
    config = dataclasses.replace(TINY, validate_every=every)
    cut = Acting(pictures, done * len(pictures) + 1, raises(KeyboardInterrupt()))
    out, whole = tmp_path / "w.safetensors", tmp_path / "whole.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(config, pictures, out, validation=cut)
    run(config, pictures, out, resume=True)
    run(config, pictures, whole)
    told = [[(row["step"], row["loss"], row["miou"]) for row in rows(o)] for o in (out, whole)]
    assert told[0] == told[1]
    assert [step for step, _, miou in told[0] if miou] == scored
    assert told[0][-1][0] == "6"


def test_a_log_that_cannot_be_started_leaves_nothing(tmp_path, monkeypatch):
    def full(*_paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match=r"w\.csv: cannot write the log \(No space left"):
        started(CSVLog(tmp_path / "w.csv"))
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_without_room_is_one_line(tmp_path, monkeypatch, capfd):
    writer = pytest.importorskip("tensorboard.summary.writer.record_writer")

    def full(*_data):
        raise OSError(28, "No space left on device")

    hook = threading.excepthook
    log = started(TensorBoardLog(tmp_path / "w.tensorboard"))
    monkeypatch.setattr(writer.RecordWriter, "write", full)

    def write_on() -> None:
        for step in range(100):  # the thread that writes may notice after the first
            log.on_row({"step": step, "loss": 1.0})

    with pytest.raises(InputError, match=r"w\.tensorboard: cannot write the log \(No space left"):
        write_on()
    log.on_end(None)
    assert threading.excepthook is hook
    assert "Traceback" not in capfd.readouterr().err


def test_tensorboard_in_place_of_a_file_is_one_line(pictures, tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "w.tensorboard").write_text("a file")
    with pytest.raises(InputError, match=r"w\.tensorboard: cannot write the log"):
        run(SHORT, pictures, tmp_path / "w.safetensors", tensorboard=True)
