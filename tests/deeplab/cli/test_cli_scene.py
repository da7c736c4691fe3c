"""`deeplab segment` of GeoTIFFs, alone and among other pictures."""

import json
import shutil

import numpy as np
import pytest
import torch
from commands import assert_refused, done, files, indices, picture, run
from geotiffs import damage, geotiff, needs_rasterio, noise
from PIL import Image

from deeplab.data.scenes import CLASSES, scene
from deeplab.model import build
from deeplab.predict import Predictor
from deeplab.weights import save_weights

IMAGE = scene(0, (60, 90)).image
BLOCKS = {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}


@pytest.fixture(scope="module", autouse=True)
def rasterio():
    return needs_rasterio()


def labels_of(path) -> np.ndarray:
    with needs_rasterio().open(path) as file:
        return file.read(1)


def test_a_scene_gets_the_labels_and_the_overlay_of_the_same_picture(tmp_path, weights):
    file, out = geotiff(tmp_path / "scene.tif", IMAGE), tmp_path / "out"
    Image.fromarray(IMAGE).save(tmp_path / "photo.png")
    both = ["segment", file, tmp_path / "photo.png", "--batch", 2]
    result = done(*both, "--weights", weights, "--out", out)
    kinds = ("_labels.png", "_labels.tif", "_labels.tif.aux.xml", "_overlay.png")
    assert files(out) == [
        f"photo{kinds[0]}",
        "photo_overlay.png",
        *(f"scene{k}" for k in kinds[1:]),
    ]
    labels = indices(out / "photo_labels.png")
    assert len(np.unique(labels)) > 1
    assert np.array_equal(labels_of(out / "scene_labels.tif"), labels)
    overlays = [Image.open(out / f"{name}_overlay.png") for name in ("photo", "scene")]
    assert np.array_equal(*map(np.asarray, overlays))
    lines = [line.split(";")[0].split(": ")[1] for line in result.stdout.splitlines()[:2]]
    assert lines[0] == lines[1]
    assert "90 x 60" in lines[0]


def test_probabilities_polygons_and_tiles(tmp_path, weights, rasterio):
    file, out = geotiff(tmp_path / "scene.tif", IMAGE), tmp_path / "out"
    given = ["segment", file, "--weights", weights, "--out", out, "--no-crf", "--no-legend"]
    done(*given, "--tile", 65, "--overlap", 16, "--probabilities", "--polygons", "geojson")
    labels = labels_of(out / "scene_labels.tif")
    with rasterio.open(out / "scene_probabilities.tif") as found:
        assert np.array_equal(found.read().argmax(0), labels)
        assert found.descriptions == CLASSES
    features = json.loads((out / "scene_polygons.geojson").read_text())["features"]
    assert sum(one["properties"]["area"] for one in features) == labels.size
    corner = np.array(features[0]["geometry"]["coordinates"][0])
    assert ((corner > [15, 45.14]) & (corner < [15.02, 45.16])).all()
    with Image.open(out / "scene_overlay.png") as shown:
        assert shown.size == (90, 60)


def test_ground_that_was_not_observed_is_white_and_counts_nowhere(tmp_path, weights, monkeypatch):
    monkeypatch.setattr("deeplab.cli.segment_scene.factor", lambda size: 3)
    monkeypatch.setattr("deeplab.data.geotiff.PIXELS", 500)
    there = np.ones((61, 91), bool)
    there[:, 60:] = False
    image = scene(0, (61, 91)).image
    file, out = geotiff(tmp_path / "scene.tif", image, mask=there), tmp_path / "out"
    table = tmp_path / "done.jsonl"
    given = ["segment", file, "--weights", weights, "--out", out, "--no-crf", "--no-legend"]
    done(*given, "--manifest", table)
    labels = labels_of(out / "scene_labels.tif")
    assert np.array_equal(labels == 255, ~there)
    (row,) = map(json.loads, table.read_text().splitlines())
    assert (row["width"], row["height"]) == (91, 61)
    assert row["notes"] == ["34.1% not observed"]
    for name, share in row["shares"].items():
        counted = (labels == CLASSES.index(name)).sum() / there.sum()
        assert share == pytest.approx(counted, abs=1e-6)
    with Image.open(out / "scene_overlay.png") as shown:
        assert shown.size == (91 // 3, 61 // 3)
        pixels = np.asarray(shown)
    assert (pixels[:, 21:] == 255).all()
    assert not (pixels[:, :19] == 255).all(-1).any()


def test_scenes_go_with_the_pictures_of_a_folder(tmp_path, weights):
    photos, out, table = tmp_path / "photos", tmp_path / "out", tmp_path / "m.jsonl"
    picture(photos / "a.png", 20, 24)
    picture(photos / "b" / "plain.tif", 20, 24)
    geotiff(photos / "b" / "scene.tif", IMAGE)
    broken = geotiff(photos / "b" / "torn.tif", IMAGE, **BLOCKS)
    damage(broken, 5)
    given = ["segment", photos, "--weights", weights, "--out", out, "--no-crf", "--recursive"]
    assert_refused(tmp_path, r"torn.tif: the TIFF is damaged", *given)
    given += ["--skip-broken", "--skip-existing", "--manifest", table]
    result = done(*given)
    assert "3 of 4 pictures segmented, 1 left out as broken" in result.stdout
    made = files(out)
    assert [name for name in made if "labels" in name] == [
        "a_labels.png",
        "b/plain_labels.png",
        "b/scene_labels.tif",
        "b/scene_labels.tif.aux.xml",
    ]
    assert not [name for name in made if "torn" in name]
    first = [json.loads(line) for line in table.read_text().splitlines()]
    table.unlink()
    (out / "b" / "plain_labels.png").unlink()
    result = done(*given)
    assert "1 of 4 pictures segmented, 2 there before, 1 left out" in result.stdout
    second = {row["file"]: row for row in map(json.loads, table.read_text().splitlines())}
    for row in first:
        assert second[row["file"]]["shares"] == row["shares"]
    assert second[str(photos / "b" / "scene.tif")]["notes"] == ["there before"]


def test_bands_of_sixteen_bits(tmp_path):
    torch.manual_seed(0)
    about = {"in_channels": 4, "mean": [3e4] * 4, "deviation": [2e4] * 4}
    model = build("deeplab_v2_small", 2, **about).eval()
    save_weights(model, tmp_path / "w.safetensors")
    image = noise(40, 50, 5, "uint16")
    file, out = geotiff(tmp_path / "scene.tif", image), tmp_path / "out"
    given = ["segment", file, "--weights", tmp_path / "w.safetensors", "--out", out, "--no-crf"]
    assert_refused(tmp_path, r"scene.tif must have 4 bands, .*, not 5; choose some", *given)
    assert_refused(tmp_path, r"bands must be 4 numbers from 1 to 5", *given, "--bands", "3,2,1")
    assert_refused(tmp_path, r"--bands 3,x must be whole numbers", *given, "--bands", "3,x")
    beyond = [*given[:-1], "--bands", "4,3,2,1", "--crf-bands", "0,1,4"]  # of the four, from 0 on
    result = run(*beyond)
    assert result.exit_code == 2
    assert "scene.tif: bands must be from 0 to 3 each, not [0, 1, 4]" in result.stderr
    done(*given, "--bands", "4,3,2,1")
    expected = Predictor(model)(np.ascontiguousarray(image[..., 3::-1])).labels
    assert np.array_equal(labels_of(out / "scene_labels.tif"), expected)


def test_masks_of_several_labels_a_pixel(tmp_path, rasterio):
    torch.manual_seed(0)
    model = build("deeplab_v2_small", 3, multilabel=True).eval()
    save_weights(model, tmp_path / "w.safetensors", {"class_names": ["a", "b", "c"]})
    file, out = geotiff(tmp_path / "scene.tif", IMAGE), tmp_path / "out"
    done("segment", file, "--weights", tmp_path / "w.safetensors", "--out", out, "--no-crf")
    assert files(out) == ["scene_labels.tif", "scene_overlay.png"]
    with rasterio.open(out / "scene_labels.tif") as found:
        assert found.descriptions == ("a", "b", "c")
        assert np.array_equal(found.read(), Predictor(model)(IMAGE).labels)


def test_options_that_do_not_fit_are_refused_before_the_work(tmp_path, weights):
    file, photo = geotiff(tmp_path / "scene.tif", IMAGE), picture(tmp_path / "photo.png")
    given = ["--weights", weights, "--out", tmp_path / "out"]
    message = r"--polygons must be geojson for GeoTIFFs such as .*scene.tif, not coco"
    assert_refused(tmp_path, message, "segment", photo, file, *given, "--polygons", "coco")
    message = r"--bands must be left out with .*photo.png, which is no GeoTIFF"
    assert_refused(tmp_path, message, "segment", file, photo, *given, "--bands", "1,2,3")
    message = r"scene.tif: 90 x 60 pixels are 0.0 megapixels, above the limit"
    assert_refused(tmp_path, message, "segment", file, *given, "--max-megapixels", 0.001)
    shutil.move(file, tmp_path / "a_labels.tif")
    place = ["--weights", weights, "--out", tmp_path, "--no-crf"]
    shutil.copy(tmp_path / "a_labels.tif", tmp_path / "a.tif")
    both = ["segment", tmp_path / "a.tif", tmp_path / "a_labels.tif"]
    assert_refused(tmp_path, r"a_labels.tif: is an input, and a result", *both, *place)


def test_a_network_that_overflows_gives_one_line(tmp_path):
    broken = build("deeplab_v2_small", 3).eval()
    with torch.no_grad():
        broken.head.classifier.weight.fill_(1e38)
    save_weights(broken, tmp_path / "w.safetensors")
    file, out = geotiff(tmp_path / "scene.tif", IMAGE), tmp_path / "out"
    result = run("segment", file, "--weights", tmp_path / "w.safetensors", "--out", out, "--no-crf")
    assert result.exit_code == 2
    assert "scene.tif: the network's output has NaN or Inf; load other" in result.stderr
    assert not files(out)
