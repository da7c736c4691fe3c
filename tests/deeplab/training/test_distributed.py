"""Several processes: the result of one, shared evaluation, stopping together, resuming apart."""

import dataclasses
import json
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from several_processes import Started, but_progress, run_two, start_two
from tiny_training import FROZEN, TINY, float64, own_data, run, tiny_pictures

from deeplab.data.scenes import CLASSES
from deeplab.distributed import processes
from deeplab.errors import InputError
from deeplab.evaluation.evaluate import evaluate
from deeplab.training.checkpoint import Files, read_state
from deeplab.training.losses import loss_denominators
from deeplab.weights import load_model, read_metadata

ROUNDING = 1e-10  # of float64 runs: losses near 10, a few steps, another order of the sums

# torchrun itself, except that it forks its processes, which saves each the imports.
TORCHRUN = """
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from deeplab.cli import main

standalone = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "test"}
elastic_launch(LaunchConfig(1, 1, 2, max_restarts=0, start_method="fork", **standalone), main)()
"""

PROGRAM = """
import dataclasses, json, os, sys
from tiny_training import FROZEN, Signalling, float64, run, tiny_pictures

out, changes, stop = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
pictures = tiny_pictures(4)
if stop and os.environ["RANK"] == str(stop["rank"]):
    pictures = Signalling(pictures, stop["at"], stop["signal"])
config = dataclasses.replace(FROZEN, batch_size=4, **changes)
with float64():
    result = run(config, pictures, out, validation=tiny_pictures(3))
print(json.dumps({"steps": result.steps, "signal": result.signal, "loss": result.loss,
                  "metrics": result.metrics}))
"""


def two_processes(out: Path, changes: dict | None = None, stop: dict | None = None) -> list[dict]:
    """`run` in two processes; what each of them says."""
    told = run_two("-c", PROGRAM, str(out), json.dumps(changes or {}), json.dumps(stop or {}))
    return [json.loads(stdout.splitlines()[-1]) for stdout in told]


@pytest.fixture(scope="module")
def alone():
    """The run of one process."""
    config = dataclasses.replace(FROZEN, batch_size=4)
    with float64():
        return run(config, tiny_pictures(4), validation=tiny_pictures(3))


@pytest.fixture
def _in_float64():
    with float64():
        yield


def assert_same_weights(state, expected) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=ROUNDING, msg=name)


@pytest.mark.processors
@pytest.mark.usefixtures("_in_float64")
def test_pieces_of_a_step_have_the_gradient_of_one_piece():
    """Twice one sample equals two samples, also where one of them has few labels."""
    few = [(image, labels.copy()) for image, labels in tiny_pictures()]
    few[0][1][5:] = 255
    config = dataclasses.replace(FROZEN, steps=3)
    one = run(config, few)
    two = run(dataclasses.replace(config, accumulate=2), few)
    start = run(dataclasses.replace(config, steps=1, lr=1e-30), few).model.state_dict()
    assert two.loss == pytest.approx(one.loss, abs=ROUNDING)
    assert_same_weights(two.model.state_dict(), one.model.state_dict())
    moved = [(start[n] - t).abs().max() for n, t in one.model.state_dict().items() if "conv" in n]
    assert max(moved) > 1e5 * ROUNDING  # enough happened for the comparison to mean something


@pytest.mark.slow
@pytest.mark.usefixtures("_in_float64")
def test_two_processes_give_the_result_of_one(alone, tmp_path):
    out = tmp_path / "w.safetensors"
    said = two_processes(out, {"accumulate": 2, "workers": 1})
    assert said[0] == said[1]
    assert said[0]["loss"] == pytest.approx(alone.loss, abs=ROUNDING)
    assert said[0]["metrics"]["images"] == 3
    assert said[0]["metrics"]["miou"] == pytest.approx(alone.metrics["miou"], abs=1e-3)
    assert_same_weights(load_model(Files(out).last).state_dict(), alone.model.state_dict())


@pytest.mark.slow
@pytest.mark.usefixtures("_in_float64")
def test_two_processes_weigh_classes_as_one(tmp_path):
    weights = [1.0, 0.2, 3.0, 0.5, 2.0, 1.0, 4.0, 1.0, 0.1, 1.0, 2.0]
    changes = {"class_weights": weights, "loss_stride": 8, "steps": 3}
    config = dataclasses.replace(FROZEN, batch_size=4, **changes)
    expected = run(config, tiny_pictures(4), validation=tiny_pictures(3))
    out = tmp_path / "w.safetensors"
    said = two_processes(out, changes)
    assert said[0]["loss"] == pytest.approx(expected.loss, rel=ROUNDING)
    assert_same_weights(load_model(Files(out).last).state_dict(), expected.model.state_dict())


@pytest.mark.slow
def test_validation_scores_the_weights_that_are_written_where_batch_norm_is_trained(tmp_path):
    out = tmp_path / "w.safetensors"
    said = two_processes(out, {"model_options": {}, "lr": 0.05})
    model = load_model(Files(out).last)
    scores = evaluate(model, tiny_pictures(3), class_names=list(CLASSES)).network
    assert said[0]["metrics"]["pixel_accuracy"] == scores.pixel_accuracy
    assert said[0]["metrics"]["iou"] == scores.iou


@pytest.mark.slow
@pytest.mark.usefixtures("_in_float64")
def test_a_signal_to_one_stops_all_and_another_world_size_goes_on(alone, tmp_path):
    out = tmp_path / "w.safetensors"
    stop = {"rank": 1, "at": 2 * 3, "signal": int(signal.SIGTERM)}  # in the third step
    said = two_processes(out, stop=stop)
    assert [one["signal"] for one in said] == [signal.SIGTERM] * 2
    assert [one["steps"] for one in said] == [3, 3]
    assert read_state(Files(out).state)["step"] == 3
    config = dataclasses.replace(FROZEN, batch_size=4)
    resumed = run(config, tiny_pictures(4), out, validation=tiny_pictures(3), resume=True)
    assert resumed.loss == pytest.approx(alone.loss, abs=ROUNDING)
    assert_same_weights(resumed.model.state_dict(), alone.model.state_dict())


@pytest.mark.slow
def test_the_command_under_torchrun_prints_once(tmp_path):
    """Also what was converted in the pictures, those that the other process has read among them."""
    out, images = tmp_path / "w.safetensors", tmp_path / "images"
    own_data(tmp_path)
    for path in images.iterdir():
        with Image.open(path) as image:
            image.convert("L").save(path)
    _, _, *command = command_in_two(tmp_path, tmp_path)
    torchrun = Started(("-c", TORCHRUN, *command, "--steps", "2"))
    stdout, stderr = torchrun.communicate()
    assert torchrun.returncode == 0, stderr
    assert stdout.count("2 of 2 steps") == 1
    assert read_metadata(out)["step"] == 2
    converted = [line for line in stderr.splitlines() if "converted" in line]
    assert converted == [f"Note: 4 pictures, such as {images / 'p.png'}: grey converted to RGB"]


def command_in_two(tmp_path: Path, data: Path, *more: str) -> list[str]:
    """`deeplab train` on a folder of pictures, two of them in a step, one for each process."""
    command = ["-m", "deeplab", "train", "--out", str(tmp_path / "w.safetensors"), *more]
    command += ["--set", "data.name=folder", "--set", f"data.root={data}", "--device", "cpu"]
    command += ["--set", "data.train=all", "--set", "data.validation=all", "--batch-size", "2"]
    command += ["--model", "deeplab_v2_small", "--steps", "100000", "--crop", "33"]
    return [*command, "--workers", "0"]


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["pictures", "data set"])
def test_what_is_wrong_is_said_once_and_the_other_process_ends_quietly(tmp_path, broken):
    """In one process, or in all of them: no other line of an error, and no traceback."""
    data = tmp_path / "data"
    if broken == "pictures":
        data.mkdir()
        own_data(data, broken="r")
    children = start_two(*command_in_two(tmp_path, data))
    errors = [child.communicate()[1] for child in children]
    assert sorted(child.returncode for child in children) == [1, 2], errors
    said = [line for text in errors for line in text.splitlines() if "Stopped: another" not in line]
    assert len(said) == 1, errors
    assert re.match(r"Error: \S+(r\.png: |data: no such)", said[0])
    assert errors[1].count("Stopped: ") == 0


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_with_one_line(tmp_path):
    own_data(tmp_path)
    children = start_two(*command_in_two(tmp_path, tmp_path, "--set", "log_every=1"))
    log, deadline = Files(tmp_path / "w.safetensors").log, time.monotonic() + 900
    while time.monotonic() < deadline and not (log.is_file() and log.read_text().count("\n") > 2):
        time.sleep(0.05)
    children[1].kill()
    error = children[0].communicate()[1]
    children[1].communicate()
    assert children[0].returncode == 1
    line = r"Stopped: another process of this run .* --resume\n"
    assert re.fullmatch(line, but_progress(error))


HOST = """
import sys, torch
import torch.distributed as dist
from deeplab.distributed import processes

dist.init_process_group("cuda:gloo")  # for GPUs alone, as NCCL is: no tensor on the CPU
with processes("cpu") as group:
    assert group.sum(torch.tensor([1.0 + group.rank])).item() == 3
    assert group.gather(group.rank) == [0, 1]
    tensor = torch.full((3,), float(group.rank))
    group.broadcast(tensor)
    assert not tensor.any()
    linear = torch.nn.Linear(1, 1)
    parallel = torch.nn.parallel.DistributedDataParallel(linear, process_group=group.group)
    parallel(torch.full((1, 1), float(group.rank))).sum().backward()
    assert linear.weight.grad.item() == 0.5
    del parallel
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_program_whose_group_takes_no_cpu_tensors_gets_one_that_does():
    run_two("-c", HOST)


def test_an_error_that_is_no_lost_connection_stays_what_it_is(monkeypatch):
    for error in (RuntimeError("shapes do not fit"), KeyError("x")):
        with pytest.raises(type(error)), processes("cpu"):
            raise error


def test_processes_that_do_not_find_each_other_are_one_clear_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as some schedulers set it
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(InputError, match=r"WORLD_SIZE is 2, .* start them with torchrun, or unset"):
        run(TINY, tiny_pictures())


def test_a_gpu_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device: cuda, but torch sees no GPU"), processes("cuda"):
        pass
    with processes("auto") as group:
        assert (group.rank, group.world, group.device.type) == (0, 1, "cpu")


def test_synchronised_batch_norm_is_for_gpus():
    with pytest.raises(InputError, match="sync_bn: BatchNorm is synchronised on GPUs only"):
        run(dataclasses.replace(TINY, sync_bn=True), tiny_pictures())


def test_denominators_of_shares_add_up_to_those_of_the_step():
    labels = torch.randint(0, 4, (4, 33, 33))
    labels[1, :20] = 255
    weights = torch.tensor([1.0, 0.5, 2.0, 0.0])
    for w in (None, weights):
        whole = loss_denominators(labels, (8, 8, 8, 16), w)
        parts = [loss_denominators(part, (8, 8, 8, 16), w) for part in labels.chunk(2)]
        torch.testing.assert_close(sum(parts), whole)
