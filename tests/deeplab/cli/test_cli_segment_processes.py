"""`deeplab segment` and `refine` in several processes: one folder, one manifest, the same bytes."""

import csv
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from commands import assert_refused, done, picture, run
from several_processes import run_two, start_two

from deeplab.errors import InputError
from deeplab.predict import Predictor

PICTURES = 8

# The command, and process RANK ends as a killed one does when it is to write its picture AT.
KILLED = """
import os, signal, sys
from deeplab.cli import app
from deeplab.cli.shared.results import PictureFiles

rank, at, *command = sys.argv[1:]
write, written = PictureFiles.write, []

def write_or_die(self, *more, **how):
    written.append(self)
    if os.environ["RANK"] == rank and len(written) == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, *more, **how)

PictureFiles.write = write_or_die
app(command)
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(PICTURES):
        picture(tmp_path / "photos" / f"{i}.png", 33, 40, seed=i)
    return tmp_path / "photos"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="") as file:
        return list(csv.DictReader(file))


def test_two_processes_write_what_one_writes_and_one_manifest(photos, tmp_path, weights):
    command = ["segment", str(photos), "--weights", str(weights), "--manifest"]
    done(*command, tmp_path / "one.csv", "--out", tmp_path / "one", "--workers", 1)
    (photos / "broken.png").write_bytes(b"x")
    command += [str(tmp_path / "two.csv"), "--out", str(tmp_path / "two"), "--skip-broken"]
    first, second = run_two("-m", "deeplab", *command)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert f"{PICTURES} of {PICTURES + 1} pictures segmented, 1 left out as broken; " in first
    assert len(re.findall(r" -> .*_labels.png", first)) == PICTURES
    assert second == ""
    shares = {row["file"]: row["shares"] for row in rows(tmp_path / "two.csv")}
    broken = shares.pop(str(photos / "broken.png"))
    assert broken == "{}"
    assert shares == {row["file"]: row["shares"] for row in rows(tmp_path / "one.csv")}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_and_the_next_one_goes_on(photos, tmp_path, weights, rank):
    command = ["segment", str(photos), "--weights", str(weights), "--batch", "2", "--manifest"]
    done(*command, tmp_path / "whole.csv", "--out", tmp_path / "whole")
    command += [str(tmp_path / "m.csv"), "--out", str(tmp_path / "out"), "--skip-existing"]
    children = start_two("-c", KILLED, str(rank), "3", *command)
    told = [child.communicate() for child in children]
    assert children[rank].returncode == -signal.SIGKILL, told
    if rank == 0:  # without whom the other can end well, if it has nothing left to do
        assert children[1].returncode in (0, 1), told
    else:
        assert children[0].returncode == 1, told
        line = "Stopped: another process of this run .* then go on with --skip-existing\n"
        assert re.search(line, told[0][1]), told
    first, _ = run_two("-m", "deeplab", *command)
    assert "there before; " in first
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    last = {row["file"]: row["shares"] for row in rows(tmp_path / "m.csv")}
    assert last == {row["file"]: row["shares"] for row in rows(tmp_path / "whole.csv")}


def test_a_signal_to_one_process_stops_the_run(photos, tmp_path, weights):
    command = ["segment", str(photos), "--weights", str(weights), "--out", str(tmp_path / "out")]
    program = KILLED.replace("SIGKILL", "SIGTERM").replace(
        "    write(", "    time.sleep(0.3); write("
    )
    children = start_two("-c", "import time" + program, "1", "1", *command)
    told = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [1, 128 + signal.SIGTERM], told
    (done_of,) = re.findall(r"(\d) of 8 pictures segmented; ", told[0][0])
    assert 1 <= int(done_of) < PICTURES
    assert len(list((tmp_path / "out").glob("*_labels.png"))) == int(done_of)
    assert "Stopped; the same command with --skip-existing goes on." in told[0][1]


def test_processes_that_list_other_pictures_are_refused(photos, tmp_path, weights):
    for rank in range(2):
        picture(tmp_path / str(rank) / "p" / "a.png", 20, 24)
    picture(tmp_path / "1" / "p" / "b.png", 20, 24)
    program = "import os, sys; os.chdir(sys.argv[1] + '/' + os.environ['RANK'])\n"
    program += "from deeplab.cli import app; app(sys.argv[2:])"
    command = ["segment", "p", "--weights", str(weights), "--out", "out"]
    children = start_two("-c", program, str(tmp_path), *command)
    told = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [2, 1]
    assert "Error: the processes of this run do not find the same pictures (1, 2); " in told[0][1]
    assert not (tmp_path / "0" / "out").exists()


def test_what_is_wrong_for_both_is_said_once(photos, tmp_path, weights):
    (photos / "7.png").write_bytes(b"x")
    command = ["segment", str(photos), "--weights", str(weights), "--out", str(tmp_path / "out")]
    children = start_two("-m", "deeplab", *command)
    told = [child.communicate() for child in children]
    errors = [line for _, error in told for line in error.splitlines() if "Error" in line]
    assert len(errors) == 1
    assert "7.png: " in errors[0]
    assert sorted(child.returncode for child in children) == [1, 2]
    assert not (tmp_path / "out").exists()


def test_refine_shares_a_folder_too(photos, tmp_path):
    (tmp_path / "soft").mkdir()
    random = np.random.default_rng(0)
    for i in range(PICTURES):
        soft = random.dirichlet(np.ones(3), (33, 40)).transpose(2, 0, 1).astype(np.float32)
        np.save(tmp_path / "soft" / f"{i}.npy", soft)
    command = ["refine", str(photos), str(tmp_path / "soft"), "--iterations", "2", "--out"]
    done(*command, tmp_path / "one")
    first, second = run_two("-m", "deeplab", *command, str(tmp_path / "two"))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert f"{PICTURES} of {PICTURES} pictures refined; " in first
    assert second == ""


def test_pictures_of_a_batch_go_through_the_network_together(
    photos, tmp_path, weights, monkeypatch
):
    picture(photos / "3.png", 20, 24)
    (photos / "5.png").write_bytes(b"x")
    sizes: list[list[tuple[int, ...]]] = []

    call = Predictor.__call__

    def counted(self, images, **how):
        sizes.append([image.shape[:2] for image in images])
        return call(self, images, **how)

    monkeypatch.setattr(Predictor, "__call__", counted)
    command = ["segment", photos, "--weights", weights, "--batch", 4, "--out", tmp_path / "out"]
    command += ["--skip-broken", "--workers", 1]
    assert "7 of 8 pictures segmented, 1 left out" in done(*command).stdout
    usual = (33, 40)
    assert sizes == [[usual, usual, usual, (20, 24)], [usual, usual, usual]]
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "1_labels.png").unlink()
    done(*command, "--skip-existing")
    assert len(sizes[-2]) == 4  # all of the batch, so that the bytes are those of the first run
    assert contents(tmp_path / "out") == before


def test_what_a_batch_is_too_large_for_is_tried_one_by_one(photos, tmp_path, weights, monkeypatch):
    (photos / "5.png").write_bytes(b"x")
    needed = Predictor._predictions

    def short_of_memory(self, images, probabilities):
        if len(images) > 1 or images[0].shape[0] == 20:
            raise InputError("not enough memory")
        return needed(self, images, probabilities)

    monkeypatch.setattr(Predictor, "_predictions", short_of_memory)
    picture(photos / "6.png", 20, 24)
    command = ["segment", photos, "--weights", weights, "--batch", 8, "--out", tmp_path / "out"]
    result = done(*command, "--skip-broken", "--no-crf")
    assert "6 of 8 pictures segmented, 2 left out as broken" in result.stdout
    assert "5.png: no picture could be recognised" in result.stderr
    assert f"Left out: {photos}/6.png: not enough memory" in result.stderr


def test_a_manifest_that_cannot_be_is_refused_before_any_work(photos, tmp_path, weights):
    (photos / "0.png").write_bytes(b"x")
    command = ["segment", photos, "--weights", weights, "--out", tmp_path / "out", "--manifest"]
    assert_refused(tmp_path, "m.txt: a manifest must be named", *command, tmp_path / "m.txt")
    (tmp_path / "m.csv").mkdir()
    assert_refused(tmp_path, "m.csv: is a folder", *command, tmp_path / "m.csv")


def test_no_batch_and_no_workers_are_refused(photos, weights):
    for option in ("--batch", "--workers"):
        result = run("segment", photos, "--weights", weights, option, 0)
        assert result.exit_code == 2
        assert f"{option} must be 1 or more, not 0" in result.stderr


def test_threads_give_the_bytes_of_one_thread(photos, tmp_path, weights):
    command = ["segment", photos, "--weights", weights, "--probabilities", "--out"]
    done(*command, tmp_path / "one", "--workers", 1)
    done(*command, tmp_path / "three", "--workers", 3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
