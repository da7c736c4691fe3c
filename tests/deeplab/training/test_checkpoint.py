"""What a run may take the place of: nothing that lies there, unless it is told to."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from commands import assert_refused
from tiny_training import TINY, Signalling, contents, equal, rows, run, stop_at

from deeplab.errors import InputError
from deeplab.training.checkpoint import Files, write_state
from deeplab.training.logs import COLUMNS
from deeplab.weights import load_model, read_metadata

SHORT = replace(TINY, steps=2)
ANEW = r"start anew in its place with --overwrite, or give another --out"
FROM_LAST = r"start from its weights with --weights \S+w-last\.safetensors and another --out, "
FROM_BEST = r"start from its weights with --weights \S+w\.safetensors and another --out, "
HEADER = ",".join(COLUMNS) + "\n"


@pytest.fixture(scope="module")
def runs(pictures, tmp_path_factory):
    """A folder with a finished run, one that was stopped after the first of two steps, and one
    after the second, before the validation."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("finished", "stopped", "unscored"):
        (folder / name).mkdir()
    run(SHORT, pictures, folder / "finished" / "w.safetensors")
    run(SHORT, stop_at(1, pictures), folder / "stopped" / "w.safetensors")
    run(SHORT, stop_at(2, pictures), folder / "unscored" / "w.safetensors")
    return folder


def refused(folder: Path, message: str, pictures, **options) -> None:
    """An InputError before a picture is read, and every file as it was."""
    before, data = contents(folder), Signalling(pictures, -1, 0)
    with pytest.raises(InputError, match=message):
        run(SHORT, data, folder / "w.safetensors", **options)
    assert data.calls == 0
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("kind", "kept", "message"),
    [
        (
            "stopped",
            ["w.safetensors", "w-last.safetensors", "w.state", "w.csv"],
            r"a run that was stopped at step 1 of 2 lies here \(w\.safetensors, "
            rf"w-last\.safetensors, w\.state, w\.csv\); go on with it by --resume, {ANEW}",
        ),
        ("stopped", ["w.state"], r"stopped at step 1 of 2 lies here \(w\.state\); .* --resume, "),
        ("unscored", ["w.state"], r"stopped at step 2 of 2, before its validation, .* --resume, "),
        (
            "finished",
            ["w.safetensors", "w-last.safetensors", "w.state", "w.csv"],
            r"a run that has finished its 2 steps lies here \(.*\); train on with --resume and "
            rf"more --steps, {FROM_LAST}{ANEW}",
        ),
        ("finished", ["w.safetensors", "w.state"], rf"finished its 2 steps .*{FROM_BEST}{ANEW}"),
        ("finished", ["w.state"], rf"finished its 2 steps .* more --steps, {ANEW}"),
        (
            "finished",
            ["w.safetensors"],
            rf"weights lie here, without the state of a run \(w\.safetensors\); {FROM_BEST}{ANEW}",
        ),
        ("finished", ["w-last.safetensors", "w.csv"], rf"\(w-last.*, w\.csv\); {FROM_LAST}{ANEW}"),
        ("finished", ["w.csv"], rf"log of a run that left no weights .*\(w\.csv\); {ANEW}"),
    ],
)
def test_what_lies_at_the_place_of_a_new_run_is_named_and_kept(
    runs, pictures, tmp_path, kind, kept, message
):
    for name in kept:
        shutil.copy(runs / kind / name, tmp_path)
    refused(tmp_path, rf"w\.safetensors: .*{message}", pictures)


@pytest.mark.parametrize("damage", ["cut off", "of another version", "without its step"])
def test_a_state_that_cannot_be_read_is_no_reason_to_replace_it(runs, pictures, tmp_path, damage):
    shutil.copytree(runs / "finished", tmp_path, dirs_exist_ok=True)
    state = tmp_path / "w.state"
    if damage == "cut off":
        state.write_bytes(state.read_bytes()[:5000])
    else:
        write_state(state, {"format": "version 9"} if "version" in damage else {"config": "{}"})
    refused(tmp_path, rf"state that cannot be read lies here .*{FROM_LAST}{ANEW}", pictures)
    refused(tmp_path, rf"w\.state.*{FROM_LAST}{ANEW}", pictures, resume=True)


def test_what_a_failed_start_leaves_is_not_in_the_way(tmp_path):
    out = tmp_path / "w.safetensors"
    Files(out).log.write_text(HEADER)
    (tmp_path / ".w.state.part").write_bytes(b"killed")
    Files(out).tensorboard.mkdir()
    Files(out).check_free()


@pytest.mark.parametrize("text", ["name,score\na,1\n", "step,loss\n1,2\n", "\xff\xfe"])
@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_a_table_that_is_no_log_is_never_replaced(runs, pictures, tmp_path, text, options):
    if options:
        shutil.copytree(runs / "stopped", tmp_path, dirs_exist_ok=True)
    (tmp_path / "w.csv").write_bytes(text.encode("latin-1"))
    message = r"w\.csv: not (the log of a run|a readable log).* move it away, or give another --out"
    refused(tmp_path, message, pictures, **options)


def test_a_folder_in_the_place_of_a_file_is_found_before_training(pictures, tmp_path):
    for name in ("w.safetensors", "w-last.safetensors", "w.state", "w.csv"):
        (tmp_path / name).mkdir()
        refused(tmp_path, rf"{name}: is a folder, expected the name of a file", pictures)
        (tmp_path / name).rmdir()


@pytest.mark.parametrize("name", ["w.state", "w.csv", "w.pth", "w"])
def test_weights_of_another_name_than_safetensors_are_refused(pictures, tmp_path, name):
    with pytest.raises(InputError, match=rf"{name} must be a name that ends in \.safetensors"):
        run(TINY, pictures, tmp_path / name)


@pytest.mark.parametrize("kind", ["finished", "stopped"])
def test_overwrite_starts_anew_in_the_place_of_a_run(runs, pictures, tmp_path, kind):
    shutil.copytree(runs / kind, tmp_path, dirs_exist_ok=True)
    out = tmp_path / "w.safetensors"
    refused(tmp_path, "goes on or starts anew; leave one", pictures, resume=True, overwrite=True)
    other = replace(SHORT, steps=1, seed=1)
    result = run(other, pictures, out, overwrite=True)
    assert [row["step"] for row in rows(out)] == ["1"]
    for path in (out, Files(out).last):
        assert equal(load_model(path), result.model)
        assert read_metadata(path)["recipe"]["seed"] == 1
    assert run(other, pictures, out, resume=True).steps == 1


def test_a_run_that_fails_before_its_first_state_leaves_the_weights_but_no_state_of_the_one_before(
    runs, pictures, tmp_path
):
    shutil.copytree(runs / "finished", tmp_path, dirs_exist_ok=True)
    exploding = replace(SHORT, lr=1e30)
    with pytest.raises(FloatingPointError):
        run(exploding, pictures, tmp_path / "w.safetensors", overwrite=True)
    assert not (tmp_path / "w.state").exists()
    refused(tmp_path, "weights lie here, without the state of a run", pictures)


def test_resume_needs_a_state_and_says_what_else_to_do(runs, pictures, tmp_path):
    missing = r"w\.state: no training state to resume; give the --out of the run .*, or "
    refused(tmp_path, rf"{missing}leave out --resume to start one", pictures, resume=True)
    shutil.copy(runs / "finished" / "w.safetensors", tmp_path)
    refused(tmp_path, rf"{missing}{FROM_BEST}{ANEW}", pictures, resume=True)
    with pytest.raises(InputError, match="resume must be the weights file of the run"):
        run(SHORT, pictures, resume=True)


def test_another_run_than_the_one_there_is_refused_without_losing_it(runs, pictures, tmp_path):
    shutil.copytree(runs / "finished", tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=rf"seed 0 then, 1 now; give the same, or {FROM_LAST}"):
        run(replace(SHORT, seed=1), pictures, tmp_path / "w.safetensors", resume=True)
    assert contents(tmp_path) == before


def test_a_full_disk_tells_to_resume_only_where_there_is_a_state(tmp_path):
    for path, then in (
        (tmp_path / "no" / "w.state", r"make room, then start again$"),
        (tmp_path / "w.state", r"the state before it is kept: .* go on with --resume$"),
    ):
        if path.parent.is_dir():
            path.mkdir()  # which no file can replace
        with pytest.raises(InputError, match=rf"cannot write the training state \(.*\); {then}"):
            write_state(path, {})


def test_the_command_refuses_in_one_line_and_changes_nothing(runs, tmp_path):
    shutil.copytree(runs / "finished", tmp_path, dirs_exist_ok=True)
    out = ["--out", tmp_path / "w.safetensors"]
    assert_refused(tmp_path, "has finished its 2 steps lies here", "train", *out)
    same = ["--weights", tmp_path / "w.safetensors", *out]
    assert_refused(tmp_path, "has finished its 2 steps lies here", "train", *same)
    (tmp_path / "w.state").unlink()
    assert_refused(tmp_path, "weights lie here", "train", *out)
    assert_refused(tmp_path, "no training state to resume", "train", "--resume", *out)


def test_no_advice_replaces_weights_unasked():
    package = Path(__file__).parents[3] / "deeplab"
    for path in package.rglob("*.py"):
        assert not re.search(r"without\W+--resume", path.read_text()), path
