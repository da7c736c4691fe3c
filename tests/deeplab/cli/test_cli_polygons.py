"""`deeplab segment --polygons`: the files, and what reads them again."""

import json
import sys

import numpy as np
import pytest
from commands import assert_refused, done, files, indices, picture

from deeplab.data.scenes import CLASSES


def test_coco_polygons_of_segment_are_imported_as_its_label_maps(tmp_path, weights):
    pytest.importorskip("rasterio", reason="rasterio is not installed")
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    photos, out, mine = (tmp_path / name for name in ("photos", "out", "mine"))
    picture(photos / "a.png")
    picture(photos / "more" / "b.png", 30, 21, seed=1)
    given = [photos / "a.png", photos / "more", "--weights", weights, "--out", out, "--no-crf"]
    result = done("segment", *given, "--polygons", "coco")
    assert result.stdout.splitlines()[-1] == f"polygons -> {out / 'coco.json'}"
    kinds = ("labels.png", "overlay.png")
    assert files(out) == [*(f"{name}_{kind}" for name in ("a", "b") for kind in kinds), "coco.json"]
    content = json.loads((out / "coco.json").read_text())
    assert [one["file_name"] for one in content["images"]] == ["a.png", "more/b.png"]
    assert [one["name"] for one in content["categories"]] == list(CLASSES)
    done("data", "import", "coco", out / "coco.json", mine, "--images", photos)
    for name in ("a", "b"):
        (found,) = (mine / "labels").rglob(f"*{name}.png")
        labels = indices(out / f"{name}_labels.png")
        assert len(np.unique(labels)) > 1
        assert np.array_equal(indices(found), labels)


def test_geojson_polygons_lie_beside_each_label_map(tmp_path, weights):
    pytest.importorskip("rasterio", reason="rasterio is not installed")
    photos, out = [picture(tmp_path / name) for name in ("a.png", "b.png")], tmp_path / "out"
    given = ["--weights", weights, "--out", out, "--no-crf", "--polygons", "geojson"]
    done("segment", *photos, *given)
    kinds = ("labels.png", "overlay.png", "polygons.geojson")
    assert files(out) == [f"{name}_{kind}" for name in ("a", "b") for kind in kinds]
    labels = indices(out / "b_labels.png")
    content = json.loads((out / "b_polygons.geojson").read_text())
    for label in np.unique(labels):
        about = [one["properties"] for one in content["features"]]
        mine = [one for one in about if one["class"] == label]
        assert {one["name"] for one in mine} == {CLASSES[label]}
        assert sum(one["area"] for one in mine) == (labels == label).sum()


def test_polygons_without_rasterio_are_refused_before_the_work(tmp_path, weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    monkeypatch.delitem(sys.modules, "rasterio.features", raising=False)
    photo = picture(tmp_path / "photo.png")
    for kind in ("coco", "geojson"):
        given = ["--weights", weights, "--out", tmp_path / "out", "--polygons", kind]
        assert_refused(
            tmp_path, r"polygons need .* 'deeplab-triton\[geo\]'", "segment", photo, *given
        )
