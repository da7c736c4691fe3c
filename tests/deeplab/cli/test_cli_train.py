"""`deeplab train`: its defaults, what it says, how it ends; and evaluating what it wrote."""

import json
import re

import pytest
from commands import assert_refused, done, run
from dataset_files import own_data

from deeplab.model import deeplab_v2_small
from deeplab.training import TrainConfig, TrainResult
from deeplab.training.config import DataConfig
from deeplab.weights import read_metadata, save_weights

TINY = ["--steps", 2, "--batch-size", 2, "--crop", 33, "--scenes", 2, "--validation-scenes", 1]


def test_train_writes_weights_that_evaluate_and_segment_take(tmp_path):
    out = tmp_path / "new" / "w.safetensors"
    result = done("train", "--out", out, *TINY, "--workers", 0, "--precision", "float32")
    said = r"deeplab_v2_small: 2 of 2 steps, loss [\d.]+, mIoU [\d.]+ on 1 "
    assert re.match(said, result.stdout)
    recipe = read_metadata(out)["recipe"]
    assert (recipe["steps"], recipe["crop"], recipe["lr"]) == (2, 33, TrainConfig().lr)

    record = tmp_path / "scores.json"
    result = done("evaluate", "--weights", out, "--scenes", 1, "--iterations", 1, "--out", record)
    assert re.search(r"score .* before .* after", result.stdout)
    scores = json.loads(record.read_text())
    assert (scores["images"], scores["data"], scores["split"]) == (1, "scenes", "test")
    assert scores["crf_settings"]["iterations"] == 1
    assert f"{100 * scores['network']['miou']:.2f}" in result.stdout
    assert f"{100 * scores['crf']['miou']:.2f}" in result.stdout


def test_train_shows_the_defaults_of_the_recipe():
    text = done("train", "--help").stdout
    options = text.split("--model")[1].split("--help")[0].split("--")
    shown = {o.split()[0]: re.search(r"default: +\((.*?)\)", o) for o in options[1:]}
    assert {"steps", "lr", "crop", "batch-size"} <= set(shown)
    for name, default in shown.items():
        assert default is not None, name
        assert default[1] == str(getattr(TrainConfig(), name.replace("-", "_")))


def test_evaluate_refuses_what_makes_no_sense(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(deeplab_v2_small(num_classes=3), path)
    message = "has 3 classes, scenes test has 11 classes"
    assert_refused(tmp_path, message, "evaluate", "--weights", path)
    for count in (0, 1_000_001):  # the validation scenes end where the test scenes start
        assert_refused(tmp_path, "--scenes must be 1 to 1000000", "evaluate", "--scenes", count)


def test_interrupted_training_exits_with_130_and_says_where_it_is(tmp_path, monkeypatch):
    model = deeplab_v2_small(num_classes=3)
    stopped = TrainResult(model, 7, True, 1.5, {"miou": 0.25})
    monkeypatch.setattr("deeplab.training.train", lambda *args, **kwargs: stopped)
    result = run("train", "--out", tmp_path / "w.safetensors")
    assert result.exit_code == 130
    assert f"7 of {TrainConfig().steps} steps, loss 1.500, mIoU 25.00" in result.stdout


def test_diverged_training_is_one_line(tmp_path, monkeypatch):
    def diverge(*args: object, **kwargs: object) -> None:
        raise FloatingPointError("the loss is nan at step 3: training diverged; lower lr")

    monkeypatch.setattr("deeplab.training.train", diverge)
    out = ["--out", tmp_path / "w.safetensors"]
    assert_refused(tmp_path, "the loss is nan at step 3", "train", *out)


@pytest.fixture
def recipe_of(monkeypatch, tmp_path):
    """The recipe that a command line gives, and the note about it; nothing is trained."""

    class Stop(Exception):
        pass

    def stop(config, *_args, note, **_options):
        raise Stop(config, note)

    def recipe(*args):
        with pytest.raises(Stop) as stopped:
            run("train", "--out", tmp_path / "w.safetensors", "--device", "cpu", *args)
        return stopped.value.args

    monkeypatch.setattr("deeplab.training.train", stop)
    return recipe


def test_the_options_of_the_data_come_before_set_and_set_before_the_recipe(recipe_of):
    own = ["--data", "folder", "--root", "mine", "--data-option", "bands=3"]
    config, note = recipe_of(*own)
    assert config.data == DataConfig("folder", "mine", options={"bands": 3})
    assert note.startswith("no weights to start from, on a CPU: deeplab_v2_small, 6000 steps")

    said = ["--set", "data.root=theirs", "--set", "data.train=most", "--set", "data.validation=few"]
    config, _ = recipe_of(*said, *own, "--validation-split", "rest")
    assert config.data == DataConfig("folder", "mine", "most", "rest", {"bands": 3})

    voc = ["--config", "voc12_resnet101", "--root", "VOC2012"]
    config, note = recipe_of(*voc, "--split", "trainval")
    assert config.data == DataConfig("voc2012", "VOC2012", "trainval")
    assert note == ""  # a recipe says its model


def test_another_data_set_than_the_recipes_leaves_its_root_and_splits_behind(recipe_of):
    recipe = ["--config", "voc12_resnet101", "--set", "starts_from="]
    config, _ = recipe_of(*recipe, "--data", "folder", "--root", "mine")
    assert config.data == DataConfig("folder", "mine")
    assert config.model == "deeplab_v2_resnet101"
    config, _ = recipe_of(*recipe, "--data", "voc2012")
    assert config.data.train == "trainaug"


@pytest.mark.parametrize(
    ("message", "args"),
    [
        (r"--root must be none for generated scenes; name other data with --data", ["--root", "x"]),
        (r"no data set 'foldr'", ["--data", "foldr"]),
        (r"folder: a folder is needed", ["--data", "folder"]),
        (r"--data-option bands must be KEY=VALUE", ["--data", "folder", "--data-option", "bands"]),
    ],
    ids=["no set", "unknown", "no root", "no value"],
)
def test_data_options_without_sense_are_one_line(tmp_path, message, args):
    assert_refused(tmp_path, message, "train", "--out", tmp_path / "new" / "w.safetensors", *args)
    assert not (tmp_path / "new").exists()


def test_a_folder_without_a_split_to_validate_on_is_told_how_to_get_one(tmp_path):
    root = own_data(tmp_path)
    (root / "images" / "val").rename(root / "images" / "rest")
    (root / "labels" / "val").rename(root / "labels" / "rest")
    given = ["train", "--data", "folder", "--root", root, "--out", tmp_path / "w.safetensors"]
    message = (
        r"no split 'val'; there are rest, train, all; name the one for it with --validation-split, "
        rf"list its pictures in {root}/splits/val\.txt, or let deeplab data import --split 0\.8 "
    )
    assert_refused(tmp_path, message, *given)
    assert_refused(tmp_path, "no split 'x'; .* with --split, list", *given, "--split", "x")


def test_a_run_on_data_of_ones_own_starts_from_its_weights_and_resumes_as_it_was(tmp_path):
    root, start = own_data(tmp_path / "mine"), tmp_path / "start.safetensors"
    save_weights(deeplab_v2_small(5, rates=[2, 4]), start)
    out = ["--out", tmp_path / "w.safetensors"]
    size = ["--batch-size", 2, "--crop", 17, "--workers", 0, "--precision", "float32"]
    own = ["--data", "folder", "--root", root, "--weights", start]
    said = done("train", *own, *out, *size, "--steps", 2, "--set", "log_every=1").stderr
    assert f"Note: {start}: weights of a whole network: deeplab_v2_small, 2 steps of 2" in said
    lines = [line for line in said.splitlines() if line.startswith("step ")]
    assert re.fullmatch(r"step 1/2  loss [\d.]+  lr [\de.-]+  [\d.]+ images/s  .* left", lines[0])
    assert re.fullmatch(r"step 2/2  loss .*  mIoU [\d.]+%  [\d.]+ images/s", lines[1])
    recipe = read_metadata(out[1])["recipe"]
    assert (recipe["optimizer"], recipe["lr"]) == ("adamw", 1e-4)
    assert recipe["model_options"]["rates"] == [2, 4]
    said = done("train", *out, "--resume", "--steps", 3).stderr
    assert "Note: " not in said.replace("Note: validation", "")
    assert read_metadata(tmp_path / "w-last.safetensors")["recipe"] == recipe | {"steps": 3}
