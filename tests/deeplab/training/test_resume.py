"""Runs that stop and go on: bit for bit, after signals, kills and full disks; and their logs."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import done
from commands import run as command
from several_processes import Started, but_progress
from tiny_training import (
    FROZEN,
    TINY,
    Acting,
    Signalling,
    equal,
    raises,
    rows,
    run,
    script_scores,
    stop_at,
)

from deeplab.data import scenes
from deeplab.errors import InputError
from deeplab.training.checkpoint import FORMAT, Files, read_state, write_state
from deeplab.training.logs import Throughput, columns
from deeplab.training.samples import step_seed
from deeplab.weights import load_model, read_metadata


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    """The run that nothing stops, and its state."""
    out = tmp_path_factory.mktemp("whole") / "w.safetensors"
    return run(TINY, pictures, out), read_state(Files(out).state)


@pytest.fixture(scope="module")
def stopped(pictures, tmp_path_factory):
    """The weights of a run that was stopped after two steps."""
    out = tmp_path_factory.mktemp("stopped") / "w.safetensors"
    run(TINY, stop_at(2, pictures), out)
    return out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_resumed_run_is_that_of_one_piece_bit_for_bit(pictures, tmp_path, whole, number):
    expected, state = whole
    out = tmp_path / "w.safetensors"
    first = run(TINY, stop_at(3, pictures, number), out)
    assert (first.steps, first.interrupted, first.signal) == (3, True, number)
    second = run(TINY, pictures, out, resume=True)
    assert (second.steps, second.interrupted) == (6, False)
    assert second.loss == expected.loss
    assert second.metrics == expected.metrics
    assert equal(second.model, expected.model)
    momenta = [s["optimizer"]["state"] for s in (state, read_state(Files(out).state))]
    assert momenta[0].keys() == momenta[1].keys()
    for key, value in momenta[0].items():
        assert torch.equal(value["momentum_buffer"], momenta[1][key]["momentum_buffer"])


def test_a_scaled_loss_resumes_with_its_scale(pictures, tmp_path):
    half = replace(TINY, precision="float16", steps=4)
    whole = run(half, pictures)
    out = tmp_path / "w.safetensors"
    run(half, stop_at(2, pictures), out)
    assert read_state(Files(out).state)["scaler"]["scale"] > 1
    assert equal(run(half, pictures, out, resume=True).model, whole.model)


def test_sigterm_saves_without_a_validation_and_ctrl_c_with_one(pictures, stopped, tmp_path):
    about = read_metadata(Files(stopped).last)
    assert (about["step"], about["metrics"]) == (2, {})
    result = run(TINY, stop_at(2, pictures, signal.SIGINT), tmp_path / "w.safetensors")
    assert result.metrics["images"] == 2


def test_dropout_is_drawn_anew_for_each_step_and_process(pictures):
    run(TINY, pictures)
    assert torch.initial_seed() == step_seed(TINY.seed, TINY.steps - 1, 0)
    draws = {step_seed(0, step, rank) for step in range(50) for rank in range(4)}
    assert len(draws) == 200
    assert step_seed(0, 3, 1) == step_seed(0, 3, 1) != step_seed(1, 3, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.03}, "lr 0.02 then, 0.03 now"),
        ({"model_options": {"rates": [6]}}, r"model_options.rates absent then, \[6\] now"),
    ],
)
def test_another_configuration_is_refused_with_the_difference(pictures, stopped, change, message):
    with pytest.raises(InputError, match=message):
        run(replace(TINY, **change), pictures, stopped, resume=True)


def test_other_data_are_refused_and_other_places_are_not(pictures, stopped, tmp_path):
    shutil.copytree(stopped.parent, tmp_path, dirs_exist_ok=True)
    out = tmp_path / stopped.name
    with pytest.raises(InputError, match="pictures 2 then, 1 now"):
        run(TINY, pictures[:1], out, resume=True)
    free = replace(TINY, accumulate=2, validate_every=50, log_every=2, workers=1)
    assert run(free, pictures, out, resume=True).steps == 6


def test_a_state_that_would_run_code_is_refused(tmp_path):
    torch.save({"format": FORMAT, "code": os.system}, tmp_path / "w.state")
    with pytest.raises(InputError, match="not a readable training state"):
        read_state(tmp_path / "w.state")


def test_a_state_is_written_without_a_copy_of_it_in_memory(tmp_path):
    state = {"model": torch.zeros(4 << 20), "optimizer": torch.zeros(4 << 20)}
    tracemalloc.start()
    write_state(tmp_path / "w.state", state)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20  # of 32 MiB
    assert torch.equal(read_state(tmp_path / "w.state")["model"], state["model"])


def test_a_broken_picture_leaves_the_state_to_go_on_from_without_it(pictures, tmp_path, whole):
    broken = raises(InputError("picture 1 is broken"))
    out = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match=r"broken .skip_broken = true .* goes on from step 3"):
        run(TINY, Acting(pictures, 2 * 3 + 1, broken), out)
    assert read_state(Files(out).state)["step"] == 3
    skipping = replace(TINY, skip_broken=True)
    resumed = run(skipping, pictures, out, resume=True)
    assert equal(resumed.model, whole[0].model)
    early = tmp_path / "early.safetensors"
    with pytest.raises(InputError, match=r"passes over it\)$"):
        run(TINY, Acting(pictures, 1, broken), early)
    assert not early.exists()  # nothing was learned


def _checksum(weights: torch.Tensor) -> int:
    """A sum of the bits: exact, whatever the number of threads."""
    return int(weights.view(torch.int32).sum())


def _write_for_ever(path: Path, written) -> None:
    torch.set_num_threads(1)  # the threads of the parent did not come along
    generator = torch.Generator().manual_seed(0)
    while True:
        weights = torch.randn(400_000, generator=generator)
        write_state(path, {"model": weights, "total": _checksum(weights)})
        written.value += 1


def test_kill_9_while_a_state_is_written_leaves_a_whole_one(tmp_path):
    path = tmp_path / "w.state"
    chance, context = random.Random(0), multiprocessing.get_context("fork")
    for _ in range(12):
        written = context.Value("i", 0)
        child = context.Process(target=_write_for_ever, args=(path, written))
        child.start()
        deadline = time.monotonic() + 900
        while written.value < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert written.value >= 2
        time.sleep(chance.uniform(0, 0.04))
        child.kill()
        child.join()
        state = read_state(path)
        assert _checksum(state["model"]) == state["total"]
    assert {entry.name for entry in tmp_path.iterdir()} <= {"w.state", ".w.state.part"}


def test_a_crash_between_checkpoints_goes_on_from_the_last_one(pictures, tmp_path, whole):
    """What a kill leaves: a state of step 2, a log up to step 4 and half a row."""
    config = replace(TINY, save_every=2)
    out = tmp_path / "w.safetensors"
    with pytest.raises(ZeroDivisionError):
        run(config, Acting(pictures, 2 * 3 + 1, raises(ZeroDivisionError())), out)
    assert read_state(Files(out).state)["step"] == 2
    assert [row["step"] for row in rows(out)] == ["1", "2", "3"]
    with Files(out).log.open("a") as file:
        file.write("4,0.1")
    resumed = run(config, pictures, out, resume=True)
    assert equal(resumed.model, whole[0].model)
    assert [row["step"] for row in rows(out)] == ["1", "2", "3", "4", "5", "6"]
    assert all(row["loss"] and row["lr"] for row in rows(out))
    assert rows(out)[-1]["miou"]


def test_the_weights_file_keeps_the_best_and_last_the_last(pictures, tmp_path, monkeypatch):
    script_scores(monkeypatch, 0.2, 0.5, 0.3)
    out = tmp_path / "w.safetensors"
    result = run(replace(TINY, validate_every=2), pictures, out)
    assert result.best == {"step": 4, "miou": 0.5}
    assert read_metadata(out)["step"] == 4
    assert read_metadata(Files(out).last)["step"] == 6
    assert equal(load_model(Files(out).last), result.model)
    assert not equal(load_model(out), result.model)


@pytest.fixture(params=["tmpfs", "late"])
def full_disk(request, tmp_path, monkeypatch):
    """A folder and a function that leaves no room in it, known at once or when data reach it."""
    if request.param == "late":

        def refuse(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        yield tmp_path, lambda: monkeypatch.setattr(os, "fsync", refuse)
        return
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")

    def fill() -> None:
        with (folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 16))

    yield folder, fill
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_is_one_clear_error_and_keeps_the_state_before(pictures, full_disk):
    folder, fill = full_disk
    out = folder / "w.safetensors"
    config = replace(TINY, save_every=2, log_every=100)
    with pytest.raises(InputError, match=r"w\.state: cannot write the training state \(.*kept"):
        run(config, Acting(pictures, 2 * 3, fill), out)
    assert read_state(Files(out).state)["step"] == 2
    assert load_model(Files(out).last).num_classes == len(scenes.CLASSES)
    assert not list(folder.glob(".*.part"))


def test_the_log_tells_speed_memory_and_scores(pictures, tmp_path):
    out = tmp_path / "w.safetensors"
    result = run(TINY, pictures, out)
    logged = rows(out)
    assert list(logged[0]) == list(columns(scenes.CLASSES))
    for row in logged:
        assert float(row["images_per_second"]) > 0
        assert float(row["loader_images_per_second"]) > 0
        assert 0 <= float(row["wait_share"]) <= 1
        assert int(row["memory_mib"]) > 10
    assert float(logged[-1]["miou"]) == result.metrics["miou"]
    assert result.throughput.images == 12
    assert "images/s, loader" in str(result.throughput)


def test_throughput_counts_steps_without_waiting_and_workers_side_by_side():
    measured = Throughput(workers=3)
    for _ in range(2):  # a process's half of 8 images, 0.1 s each in a worker
        measured.add(8, stepping=0.5, waiting=0.25, making=0.4)
    assert measured.images_per_second == pytest.approx(16)
    assert measured.loader_images_per_second == pytest.approx(60)  # 2 processes x 3 workers x 10
    assert measured.wait_share == pytest.approx(1 / 3)
    assert "steps 16.0 images/s, loader 60.0 images/s (3 workers), 33%" in str(measured)


def test_tensorboard_gets_the_same_numbers(pictures, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "w.safetensors"
    run(TINY, stop_at(3, pictures), out, tensorboard=True)
    run(TINY, pictures, out, tensorboard=True, resume=True)
    found = events.EventAccumulator(str(Files(out).tensorboard))
    found.Reload()
    losses = {event.step: event.value for event in found.Scalars("loss")}
    assert losses == pytest.approx({int(row["step"]): float(row["loss"]) for row in rows(out)})


def test_tensorboard_that_is_missing_names_the_extra(pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pip install 'deeplab-triton\[logs\]'"):
        run(TINY, pictures, tmp_path / "w.safetensors", tensorboard=True)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_stops_with_the_signals_status_and_resumes_by_itself(
    pictures, tmp_path, monkeypatch, number, status
):
    def stopping(start, length):
        return Signalling(pictures, 4 if start == scenes.TRAIN_START else -1, number)

    monkeypatch.setattr(scenes, "ScenesDataset", stopping)
    out = tmp_path / "w.safetensors"
    options = ["--steps", 4, "--batch-size", 2, "--crop", 33, "--workers", 0]
    first = command("train", "--out", out, *options)
    assert first.exit_code == status, first.output
    assert "2 of 4 steps" in first.stdout
    assert "go on with: deeplab train --out" in first.stdout
    monkeypatch.setattr(scenes, "ScenesDataset", lambda start, length: pictures)
    assert "4 of 4 steps" in done("train", "--out", out, "--resume").stdout
    assert json.loads(json.dumps(read_metadata(out)["recipe"]))["batch_size"] == 2


def test_sigterm_to_the_whole_process_group_lets_workers_end_the_step(tmp_path):
    out = tmp_path / "w.safetensors"
    command = ["-m", "deeplab", "train", "--out", str(out), "--crop", "33", "--batch-size", "2"]
    command += ["--steps", "100000", "--scenes", "4", "--workers", "2", "--set", "log_every=1"]
    child = Started((*command, "--device", "cpu"))
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline and child.poll() is None:
        if Files(out).log.is_file() and Files(out).log.read_text().count("\n") > 2:
            break
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGTERM)
    stdout, stderr = child.communicate()
    assert child.returncode == 143, stderr
    assert but_progress(stderr) == ""
    step = read_state(Files(out).state)["step"]
    assert f"{step} of 100000 steps" in stdout
    assert int(rows(out)[-1]["step"]) == step > 1


def test_what_is_frozen_stays_frozen_through_a_resume(pictures, tmp_path):
    out = tmp_path / "w.safetensors"
    run(FROZEN, stop_at(2, pictures), out)
    model = run(FROZEN, pictures, out, resume=True).model
    assert torch.equal(model.backbone.bn1.running_mean, torch.zeros(16))
