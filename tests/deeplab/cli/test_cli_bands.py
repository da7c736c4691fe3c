"""Pictures of other bands than RGB from the check of a data set to labels on disk."""

import json
import re

import numpy as np
import pytest
import tomli_w
import torch
from commands import assert_refused, done, indices, run
from PIL import Image

from deeplab import toml
from deeplab.crf_settings import CRFSettings
from deeplab.data import outputs
from deeplab.data.bands import read_picture
from deeplab.model import build
from deeplab.predict import Predictor, as_levels
from deeplab.weights import load_model, read_metadata, save_weights

BANDS = 5
SIZE = ["--steps", 2, "--batch-size", 2, "--crop", 33, "--workers", 0, "--precision", "float32"]


@pytest.fixture
def own(tmp_path):
    """A folder of four pictures of five bands of 16 bits, in which class 1 is brighter."""
    rng = np.random.default_rng(0)
    (tmp_path / "classes.txt").write_text("low\nhigh\n")
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        for name in "ab":
            labels = np.zeros((40, 50), np.uint8)
            labels[:, rng.integers(10, 40) :] = 1
            values = rng.normal(1000 * (1 + np.arange(BANDS)), 50, (40, 50, BANDS))
            values += 800.0 * labels[..., None]
            np.save(tmp_path / "images" / split / name, values.astype(np.uint16))
            Image.fromarray(labels).save(tmp_path / "labels" / split / f"{name}.png")
    return tmp_path


def statistics(folder) -> dict:
    """What the check of the training pictures prints, as a recipe has it."""
    said = done("data", "check", "folder", folder, "--data-option", f"bands={BANDS}").stdout
    assert "nothing to mend" in said
    return toml.loads("\n".join(re.findall(r"^(?:mean|deviation) = .*$", said, re.MULTILINE)[:2]))


def recipe(folder, **model_options):
    data = {"name": "folder", "root": str(folder), "options": {"bands": BANDS}}
    content = {"model_options": {"in_channels": BANDS} | model_options, "data": data}
    path = folder / "recipe.toml"
    path.write_text(tomli_w.dumps(content))
    return path


def test_the_check_gives_mean_and_deviation_of_all_pixels(own):
    found = statistics(own)
    pixels = np.concatenate(
        [np.load(own / "images" / "train" / f"{n}.npy").reshape(-1, BANDS) for n in "ab"]
    ).astype(np.float64)
    np.testing.assert_allclose(found["mean"], pixels.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["deviation"], pixels.std(0), rtol=1e-5)


def test_bands_are_trained_scored_and_segmented(own, tmp_path):
    weights, out = tmp_path / "w.safetensors", tmp_path / "out"
    given = statistics(own)
    rgb = tmp_path / "rgb.safetensors"
    save_weights(build("deeplab_v2_small", 2), rgb)
    said = done(
        "train", "--config", recipe(own, **given), "--weights", rgb, "--out", weights, *SIZE
    )
    assert "backbone.conv1.weight of three channels adapted to 5 bands" in said.stderr
    assert read_metadata(weights)["options"]["mean"] == given["mean"]

    folder = ["--data", "folder", "--root", own, "--data-option", f"bands={BANDS}"]
    record = tmp_path / "scores.json"
    done("evaluate", "--weights", weights, *folder, "--split", "val", "--out", record)
    assert json.loads(record.read_text())["images"] == 2

    photo = own / "images" / "val" / "a.npy"
    done(
        "segment", photo, "--weights", weights, "--out", out, "--crf-bands", "4,2,0", "--no-legend"
    )
    model, image = load_model(weights), read_picture(photo, BANDS)[0]
    layer = CRFSettings().layer(2)
    expected = Predictor(model, layer, bands=(4, 2, 0))(image)
    assert np.array_equal(indices(out / "a_labels.png"), expected.labels)
    shown = np.asarray(Image.open(out / "a_overlay.png"))
    rgb = as_levels(model, image, (4, 2, 0))[0].permute(1, 2, 0).round().byte().numpy()
    palette = outputs.full_palette(read_metadata(weights)["palette"])
    assert np.array_equal(shown, outputs.overlay(rgb, expected.labels, palette))
    done("segment", photo, "--weights", weights, "--out", out, "--crf-bands", "all")
    every = CRFSettings(bands="all").refiner(2)
    assert np.array_equal(
        indices(out / "a_labels.png"), Predictor(model, every, bands="all")(image).labels
    )


def test_what_does_not_fit_is_one_line(own, tmp_path):
    weights = tmp_path / "w.safetensors"
    check = ["data", "check", "folder", own, "--data-option", "bands=0"]
    assert_refused(tmp_path, "bands must be 1 or more, not 0", *check)
    none = recipe(own)
    said = "mean, deviation must be given where in_channels is 5"
    assert_refused(tmp_path, said, "train", "--config", none, "--out", weights, *SIZE)
    given = statistics(own)
    done("train", "--config", recipe(own, **given), "--out", weights, *SIZE)
    np.save(tmp_path / "six.npy", np.zeros((20, 20, 6), np.uint16))
    six = ["segment", tmp_path / "six.npy", "--weights", weights]
    assert_refused(tmp_path, "six.npy must have 5 bands", *six)
    photo = ["segment", own / "images" / "val" / "a.npy", "--weights", weights]
    assert_refused(tmp_path, "bands must be from 0 to 4 each", *photo, "--crf-bands", "0,1,5")
    assert_refused(tmp_path, "--crf-bands 0,x,1 must be whole", *photo, "--crf-bands", "0,x,1")
    assert_refused(
        tmp_path, "CRF bands must be all, or three integers", *photo, "--crf-bands", "0,1"
    )
    folder = ["--data", "folder", "--root", own, "--data-option", "bands=4", "--split", "val"]
    assert_refused(tmp_path, "must have 4 bands", "evaluate", "--weights", weights, *folder)
    wide = ["--config", recipe(own, **{k: [*v, 1.0] for k, v in given.items()}, in_channels=6)]
    result = run("train", *wide, "--out", tmp_path / "v.safetensors", *SIZE)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "must be uint8 or uint16 or float32 [H, W, 6], not uint16 [40, 50, 5]" in line


def test_wide_values_are_shown_by_mean_and_deviation():
    model = build("deeplab_v2_small", 2, in_channels=2, mean=[100, 0], deviation=[10, 1])
    picture = np.array([[[70, 0], [100, 3], [130, 9], [999, -9]]], np.float32)
    found = as_levels(model, picture)[0, :, 0]
    ends = torch.tensor([[0, 127.5, 255, 255], [127.5, 255, 255, 0], [127.5, 255, 255, 0]])
    torch.testing.assert_close(found, ends)
    levels = np.array([[[7, 200]]], np.uint8)
    assert as_levels(model, levels).flatten().tolist() == [7, 200, 200]
    assert as_levels(model, levels, (1, 1, 0)).flatten().tolist() == [200, 200, 7]
