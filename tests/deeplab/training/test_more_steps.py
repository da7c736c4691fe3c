"""Runs that go on with other steps than they were to have, and finished ones that do not."""

import json
import re
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from commands import assert_refused, done
from tiny_training import (
    TINY,
    Signalling,
    contents,
    equal,
    rows,
    run,
    script_scores,
    stop_at,
    tiny_pictures,
)

from deeplab.data import scenes
from deeplab.errors import InputError
from deeplab.training.checkpoint import Files, read_state, stored_steps
from deeplab.training.schedule import learning_rate
from deeplab.weights import load_model, read_metadata, save_weights

SHORT = replace(TINY, steps=2)
LONGER = replace(TINY, steps=4)


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run(SHORT, pictures, folder / "w.safetensors")
    return folder


@pytest.fixture
def out(finished, tmp_path):
    """A copy of the finished run of two steps."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path / "w.safetensors"


def test_a_finished_run_resumes_to_itself_and_says_how_to_train_on(pictures, out, capfd):
    before = contents(out.parent)
    again = run(SHORT, Signalling(pictures, 1, signal.SIGKILL), out, resume=True)
    assert (again.steps, again.interrupted) == (2, False)
    assert equal(again.model, load_model(Files(out).last))
    assert again.metrics == read_metadata(out)["metrics"]
    assert contents(out.parent) == before
    assert capfd.readouterr().err == (
        f"{out}: the run has finished its 2 steps; train on with --resume and more --steps\n"
    )


def test_more_steps_of_a_rate_without_an_end_are_the_run_that_had_them_from_the_start(
    pictures, tmp_path
):
    """The step policy does not depend on the number of steps: bit for bit."""
    by_steps = replace(LONGER, policy="step", step_size=3)
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    expected = run(by_steps, pictures, whole)
    run(replace(by_steps, steps=2), pictures, parts)
    result = run(by_steps, pictures, parts, resume=True)
    assert (result.steps, result.loss) == (4, expected.loss)
    assert result.metrics == expected.metrics
    assert equal(result.model, expected.model)
    states = [read_state(Files(path).state) for path in (whole, parts)]
    for key, value in states[0]["optimizer"]["state"].items():
        other = states[1]["optimizer"]["state"][key]
        assert torch.equal(value["momentum_buffer"], other["momentum_buffer"])
    logged = [[(row["step"], row["loss"], row["lr"]) for row in rows(o)] for o in (whole, parts)]
    assert logged[0] == logged[1]
    assert [row["step"] for row in rows(parts) if row["miou"]] == ["2", "4"]


def test_the_schedule_of_more_steps_is_told_used_and_written_down(pictures, out, capfd):
    now, was = learning_rate(LONGER, 2), learning_rate(SHORT, 1)
    run(LONGER, stop_at(1, pictures), out, resume=True)
    assert capfd.readouterr().err == (
        f"{Files(out).state}: goes on from step 2 to 4, where 2 was to be the last: the learning "
        f"rate (poly) is {now:.4g} from here, and was {was:.4g} in the last step\n"
    )
    run(LONGER, pictures, out, resume=True)  # with the steps that the state has now
    assert capfd.readouterr().err == ""
    rates = [learning_rate(SHORT, 0), was, now, learning_rate(LONGER, 3)]
    assert [float(row["lr"]) for row in rows(out)] == pytest.approx(rates)
    about = read_metadata(Files(out).last)
    assert (about["step"], about["recipe"]["steps"]) == (4, 4)
    assert about["restated"] == [{"step": 2, "steps_before": 2}]


def test_a_stopped_run_takes_other_steps_too_and_ends_where_told(pictures, tmp_path, capfd):
    out = tmp_path / "w.safetensors"
    run(LONGER, stop_at(1, pictures), out)
    fewer = run(SHORT, stop_at(1, pictures), out, resume=True)
    assert "goes on from step 1 to 2, where 4 was to be the last" in capfd.readouterr().err
    assert (fewer.steps, fewer.interrupted) == (2, False)
    assert fewer.metrics == {}  # SIGTERM leaves no time for the last validation,
    made_up = run(SHORT, pictures, out, resume=True)  # which a resume makes up for
    assert made_up.metrics["images"] == 2
    assert rows(out)[-1]["step"] == "2"
    with pytest.raises(InputError, match=r"steps must be at least 2, which .* has done, not 1"):
        run(replace(SHORT, steps=1), pictures, out, resume=True)


def test_a_stopped_run_may_end_where_it_stands(pictures, tmp_path, capfd):
    out = tmp_path / "w.safetensors"
    run(LONGER, stop_at(2, pictures, signal.SIGINT), out)
    ended = run(SHORT, pictures, out, resume=True)
    assert "ends at step 2, where 4 was to be the last" in capfd.readouterr().err
    assert (ended.steps, ended.interrupted) == (2, False)
    assert stored_steps(out, read_state(Files(out).state)) == 2
    run(SHORT, pictures, out, resume=True)
    assert "the run has finished its 2 steps" in capfd.readouterr().err


def test_a_run_killed_between_its_last_state_and_its_last_weights_gets_them(pictures, tmp_path):
    out = tmp_path / "w.safetensors"
    run(SHORT, pictures, out)
    last = Files(out).last
    told, weights = read_metadata(last), load_model(last).state_dict()
    for there in (True, False):
        if there:  # the weights as they were before the last validation
            save_weights(load_model(last), last, read_metadata(last) | {"metrics": {}})
        else:
            last.unlink()
        run(SHORT, pictures, out, resume=True)
        assert read_metadata(last) == told
        assert all(map(torch.equal, load_model(last).state_dict().values(), weights.values()))


@pytest.mark.parametrize(("moved", "best"), [(False, (2, 0.5)), (True, (4, 0.3))])
def test_the_best_weights_of_a_finished_run_stay_until_there_are_better(
    pictures, tmp_path, monkeypatch, moved, best
):
    script_scores(monkeypatch, 0.5, 0.3)
    out = tmp_path / "w.safetensors"
    run(SHORT, pictures, out)
    if moved:  # then those that follow are worth keeping
        out.rename(tmp_path / "elsewhere")
    result = run(LONGER, pictures, out, resume=True)
    assert result.best == {"step": best[0], "miou": best[1]}
    assert read_metadata(out)["step"] == best[0]
    assert read_metadata(Files(out).last)["step"] == 4


def test_the_command_trains_a_finished_run_on_with_more_steps_only(out, monkeypatch, tmp_path):
    small = tiny_pictures()
    monkeypatch.setattr(scenes, "ScenesDataset", lambda start, length: small)
    resume = ["train", "--out", out, "--resume"]
    recipe = tmp_path / "recipe.toml"
    keys = ("batch_size", "crop", "lr", "warmup", "precision", "device", "workers")
    lines = [f"{key} = {json.dumps(getattr(SHORT, key))}" for key in keys]
    recipe.write_text("\n".join(lines))
    before = contents(out.parent)
    for given in ([], ["--config", recipe]):  # a recipe without steps asks for none
        result = done(*resume, *given)
        assert "finished its 2 steps; train on with --resume and more --steps" in result.stderr
        assert re.search(r"2 of 2 steps, loss [\d.]+, mIoU", result.stdout)
    assert contents(out.parent) == before
    message = r"steps must be at least 2, which .* has done, not 1"
    assert_refused(tmp_path, message, *resume, "--steps", 1)
    result = done(*resume, "--steps", 3)
    assert "goes on from step 2 to 3" in result.stderr
    assert "3 of 3 steps" in result.stdout
