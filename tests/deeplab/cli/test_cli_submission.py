"""`deeplab evaluate` writes predictions for servers and others, also where there are no labels."""

import shutil
import zipfile

import numpy as np
import pytest
import torch
from commands import assert_refused, done, plain_weights
from dataset_files import label_map, own_data, picture
from PIL import Image

from deeplab.data.datasets import open_pictures
from deeplab.data.images import read_image
from deeplab.predict import Predictor
from deeplab.weights import load_model


@pytest.mark.parametrize("labels", ["none", "dummies", "no folder"])
def test_the_test_split_of_cityscapes_is_predicted_whatever_its_labels(tmp_path, labels):
    image = picture(tmp_path / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png")
    if labels != "no folder":
        truth = tmp_path / "gtFine" / "test" / "berlin"
        truth.mkdir(parents=True)
    if labels == "dummies":
        label_map(truth / "berlin_000000_000019_gtFine_labelIds.png", [1, 2, 3])
    path = plain_weights(tmp_path / "w.safetensors", 19)
    given = ["evaluate", "--weights", path, "--data", "cityscapes", "--root", tmp_path]
    given += ["--split", "test", "--no-crf", "--no-score"]
    up = tmp_path / "up"
    result = done(*given, "--submission", up, "--predictions", tmp_path / "own")
    assert f"1 predictions -> {up / 'results.zip'}" in result.stdout.replace("\n", " ")
    expected = Predictor(load_model(path))(read_image(image)[0]).labels
    ids = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33])
    with zipfile.ZipFile(up / "results.zip") as packed:
        assert packed.namelist() == ["berlin_000000_000019_labelIds.png"]
    name = "berlin_000000_000019"
    for file in (up / "results" / f"{name}_labelIds.png", tmp_path / "own" / f"{name}.png"):
        with Image.open(file) as found:
            np.testing.assert_array_equal(np.asarray(found), ids[expected])


def test_scores_of_a_split_without_labels_are_refused_in_one_line(tmp_path):
    picture(tmp_path / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png")
    path = plain_weights(tmp_path / "w.safetensors", 19)
    given = ["evaluate", "--weights", path, "--data", "cityscapes", "--root", tmp_path]
    message = r"gtFine.test: no such folder; .* can be predicted only: deeplab evaluate --no-score"
    assert_refused(tmp_path, message, *given, "--split", "test", "--no-crf")
    (tmp_path / "gtFine" / "test").mkdir(parents=True)
    assert_refused(tmp_path, r"no file CITY/\*_gtFine_labelIds", *given, "--split", "test")


@pytest.mark.parametrize("missing", ["labels", "labels/val"])
def test_pictures_of_ones_own_are_predicted_without_a_folder_of_labels(tmp_path, missing):
    root = own_data(tmp_path / "mine")
    shutil.rmtree(root / missing)
    path = plain_weights(tmp_path / "w.safetensors", 3)
    given = ["evaluate", "--weights", path, "--data", "folder", "--root", root, "--split", "val"]
    given += ["--no-crf"]
    assert_refused(tmp_path, "labels.*: no such f", *given)
    done(*given, "--no-score", "--predictions", tmp_path / "found")
    data = open_pictures("folder", root, "val")
    expected = Predictor(load_model(path))(data.image(0)).labels
    with Image.open(tmp_path / "found" / "val" / "c.png") as found:
        np.testing.assert_array_equal(np.asarray(found), expected)


@pytest.mark.parametrize("scored", [[], ["--no-score"]])
@pytest.mark.parametrize(
    "options",
    [{"precision": torch.bfloat16}, {"tile": 17, "overlap": 8}],
    ids=["bfloat16", "tiles"],
)
def test_predictions_are_made_as_it_is_asked_for(tmp_path, scored, options):
    root = own_data(tmp_path / "mine")
    data = open_pictures("folder", root, "val")
    path = plain_weights(tmp_path / "w.safetensors", 3)
    given = ["evaluate", "--weights", path, "--data", "folder", "--root", root, "--split", "val"]
    given += ["--no-crf", "--predictions", tmp_path / "found", *scored]
    for name, value in options.items():
        given += [f"--{name}", str(value).removeprefix("torch.")]
    done(*given)
    expected = Predictor(load_model(path), **options)(data.image(0)).labels
    with Image.open(tmp_path / "found" / "val" / "c.png") as found:
        np.testing.assert_array_equal(np.asarray(found), expected)
    assert not np.array_equal(expected, Predictor(load_model(path))(data.image(0)).labels)
    if "tile" in options:
        assert_refused(tmp_path, "--tile must be at least 17", *given, "--tile", 16)


def test_a_set_without_a_server_is_told_what_can_be_had_instead(tmp_path):
    root = own_data(tmp_path / "mine")
    path = plain_weights(tmp_path / "w.safetensors", 3)
    given = ["evaluate", "--weights", path, "--data", "folder", "--root", root, "--split", "val"]
    message = "--submission: no evaluation server is known for folder; --predictions DIR writes"
    assert_refused(tmp_path, message, *given, "--submission", tmp_path / "up")
    assert_refused(tmp_path, "--no-score: leaves nothing to do; give", *given, "--no-score")
    message = "c.png: belongs to mine val, and a prediction would overwrite it"
    assert_refused(tmp_path, message, *given, "--predictions", root / "labels")


def test_generated_scenes_have_no_server(tmp_path):
    given = ["evaluate", "--scenes", 1, "--submission", tmp_path / "up"]
    assert_refused(tmp_path, "no evaluation server is known for scenes", *given)
