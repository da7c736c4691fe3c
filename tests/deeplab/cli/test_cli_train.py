"""`deeplab train`: its defaults, what it says, how it ends; and evaluating what it wrote."""

import json
import re

from commands import assert_refused, done, run

from deeplab.model import deeplab_v2_small
from deeplab.training import TrainConfig, TrainResult
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
