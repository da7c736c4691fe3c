"""Every command that takes weights takes those of other projects, and their MSC with them."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from commands import assert_refused, done, picture, run
from msc_by_areas import random_msc
from PIL import Image
from tiny_training import SHORT, tiny_pictures
from tiny_training import run as train_shortly

from deeplab.data.scenes import CLASSES
from deeplab.errors import InputError
from deeplab.model import deeplab_v2_small
from deeplab.model import table as models
from deeplab.model.backbones import ResNetBody
from deeplab.model.table import ASPP_L, V2
from deeplab.weights import load_model, read_metadata, save_weights

TAKEN = "of kazuto1011/deeplab-pytorch, taken for little with 11 classes, rates 6, 12, 18, 24"


@pytest.fixture
def his(monkeypatch):
    """His network in small, which one more line of the table fits."""
    monkeypatch.setitem(models.MODELS, "little", V2.on(ResNetBody((2, 1, 3, 1), width=4)))
    return random_msc(classes=len(CLASSES), rates=ASPP_L)


@pytest.fixture
def path(his, tmp_path):
    path = tmp_path / "his.pth"
    torch.save({"state_dict": {f"module.{n}": t for n, t in his.state_dict().items()}}, path)
    return path


def his_probabilities(his, file):
    """His evaluation, from the file on."""
    bgr = torch.from_numpy(np.asarray(Image.open(file)).copy()).float().flip(2)
    x = (bgr - torch.tensor([104.008, 116.669, 122.675])).permute(2, 0, 1)[None]
    with torch.no_grad():
        return his.published(x)[0].softmax(0)


def test_segment_predicts_what_his_evaluation_does(his, path, tmp_path):
    photo, out = picture(tmp_path / "photo.png"), tmp_path / "out"
    command = ("segment", photo, "--weights", path, "--no-crf", "--probabilities", "--out", out)

    def error():
        found = torch.from_numpy(np.load(out / "photo_probabilities.npz")["probabilities"])
        return (found - his_probabilities(his, photo)).abs().max().item()

    told = done(*command).stderr
    assert f"Note: {path}: {TAKEN}, style caffe, MSC at 1, 0.75, 0.5, resize torch" in told
    assert error() < 1e-4  # float32 logits of some units
    assert "style caffe, one scale" in done(*command, "--msc", "none").stderr
    assert error() > 0.1


def test_convert_keeps_his_scales_unless_told_otherwise(his, path, tmp_path):
    out, x = tmp_path / "out.safetensors", torch.randn(1, 3, 41, 50)
    told = done("convert", path, out).stderr
    assert f"Note: {path}: {TAKEN}" in told
    options = read_metadata(out)["options"]
    assert (options["scales"], options["resize"]) == ([1.0, 0.75, 0.5], "torch")
    model = load_model(out)
    with torch.no_grad():
        torch.testing.assert_close(model(x), his.published(x), rtol=1e-4, atol=1e-4)
    for msc, scales in (("none", None), ("1,0.5", [1.0, 0.5])):
        again = tmp_path / "again.safetensors"
        done("convert", out, again, "--msc", msc)  # of a file of ours
        assert read_metadata(again)["options"] == options | {"scales": scales}


def test_other_commands_take_it_too(path, tmp_path, monkeypatch):
    seen, scores = [], tmp_path / "scores.json"

    def stop(*arguments, **_):
        seen.extend(a.config for a in arguments if isinstance(a, models.DeepLab))
        raise InputError("far enough")

    monkeypatch.setattr("deeplab.export.export", stop)
    monkeypatch.setattr("deeplab.evaluation.logit_cache.LogitCache", stop)
    evaluate = ("evaluate", "--scenes", 1, "--no-crf", "--out", scores)
    tune = ("tune-crf", "--images", 2, "--out", tmp_path / "crf")
    export = ("export", tmp_path / "model.pt2")
    for command in (evaluate, tune, export):
        result = run(*command, "--weights", path, "--msc", "1,0.5")
        assert result.exit_code == (0 if command is evaluate else 2)
        assert f"{TAKEN}, style caffe, MSC at 1, 0.5, resize torch" in result.stderr
    seen.append(json.loads(scores.read_text())["model"])
    assert [(c["resize"], c["scales"]) for c in seen] == 3 * [("torch", [1.0, 0.5])]


def test_msc_sets_the_scales_of_our_own_weights(tmp_path):
    path, scores = tmp_path / "ours.pth", tmp_path / "scores.json"
    torch.save(deeplab_v2_small(len(CLASSES)).state_dict(), path)
    shipped = ("evaluate", "--scenes", 1, "--no-crf", "--out", scores)
    for given, scales in (([], None), (["--msc", "1,0.75,0.5"], [1.0, 0.75, 0.5])):
        assert "taken for" not in done(*shipped, *given).stderr
        assert json.loads(scores.read_text())["model"]["scales"] == scales
    assert "a state dict of this package, taken for" in done(*shipped, "--weights", path).stderr


def test_a_contradiction_is_one_line_and_writes_nothing(path, tmp_path):
    photo = picture(tmp_path / "photo.png")
    given = ["segment", photo, "--weights", path, "--out", tmp_path / "out"]
    assert_refused(tmp_path, "it fits little", *given, "--model", "deeplab_v2_resnet101")
    assert_refused(tmp_path, "--msc must be none, or 1 and smaller", *given, "--msc", "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "scales [1, 0.5] and resize torch, and trained on here with scales none and resize"),
        ({"scales": [1, 0.5]}, "here with scales [1, 0.5] and resize caffe; to keep theirs: --set"),
        ({"scales": [1, 0.5], "resize": "torch"}, ""),
    ],
)
def test_training_tells_that_it_drops_the_scales_of_its_weights(tmp_path, capfd, options, said):
    path = tmp_path / "w.safetensors"
    scaled = deeplab_v2_small(len(CLASSES), scales=(1.0, 0.5), resize="torch")
    save_weights(scaled, path, {"class_names": CLASSES})
    changes = {"steps": 1, "loss_stride": 8, "weights": str(path), "model_options": options}
    config = dataclasses.replace(SHORT, **changes)
    train_shortly(config, tiny_pictures())
    told = capfd.readouterr().err
    assert said in told
    assert ("trained with" in told) == bool(said)
    keep = "--set 'model_options.scales=[1, 0.5]' --set model_options.resize=torch\n"
    assert told.endswith(keep) == bool(said)
