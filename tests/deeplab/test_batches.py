"""Batches of files become what `deeplab segment` writes, whatever batches they come in."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import done, indices, picture, plain_weights, random_weights
from picture_files import turned
from PIL import Image

from crf import Gaussian
from deeplab.crf_settings import CRFSettings
from deeplab.data.images import find_images
from deeplab.data.scenes import CLASSES
from deeplab.errors import InputError
from deeplab.model import deeplab_v2_small
from deeplab.predict import BatchSegmenter, Predictor
from deeplab.weights import load_model, save_weights

Batch = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(tmp_path_factory.mktemp("weights") / "random.safetensors")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name, size in (("a.png", (20, 24)), ("b.png", (20, 24)), ("c.png", (33, 17))):
        picture(folder / name, *size, seed=len(name) + size[0])
    Image.open(folder / "a.png").save(folder / "turned.jpg", exif=turned(6))
    Image.open(folder / "b.png").convert("L").save(folder / "grey.png")
    return folder


def batch_of(folder: Path) -> Batch:
    """What `ray.data.read_binary_files(folder, include_paths=True)` makes of it, all in one."""
    files = find_images([folder])
    content = np.array([*(file.read_bytes() for file in files), None], object)[:-1]
    return {"bytes": content, "path": np.array([str(file) for file in files], object)}


def rows(batch: Mapping[str, np.ndarray]) -> list[dict[str, object]]:
    return [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]


@pytest.mark.parametrize("crf", [True, False], ids=["CRF", "network"])
def test_rows_are_the_files_and_the_manifest_of_segment(crf, photos, weights, tmp_path):
    options = [] if crf else ["--no-crf"]
    options += ["--weights", weights, "--out", tmp_path, "--manifest", tmp_path / "m.jsonl"]
    done("segment", photos, *options)
    found = BatchSegmenter(weights, crf=crf, overlay=True)(batch_of(photos))
    lines = map(json.loads, (tmp_path / "m.jsonl").read_text().splitlines())
    line_of = {line["file"]: line for line in lines}
    assert len(line_of) == len(found["path"]) == 5
    for row in rows(found):
        line = line_of[str(row["path"])]
        name, notes = Path(str(row["path"])).stem, row["notes"]
        assert row["labels"] == (tmp_path / f"{name}_labels.png").read_bytes()
        assert row["overlay"] == (tmp_path / f"{name}_overlay.png").read_bytes()
        assert (line["width"], line["height"]) == (row["width"], row["height"])
        assert json.loads(str(row["shares"])) == line["shares"]
        assert notes == "; ".join(line["notes"])
        assert (name in ("turned", "grey")) == bool(notes)
        assert row["error"] == ""


def test_rows_are_the_same_in_whatever_batches_and_other_columns_go_along(photos, weights):
    segmenter, batch = BatchSegmenter(weights), batch_of(photos)
    batch |= {"city": np.array([*"vwxyz"], object), "number": np.arange(5.0)}
    whole = segmenter(batch)
    assert [*whole] == [
        "path", "city", "number", "labels", "width", "height", "shares", "notes", "error"
    ]  # fmt: skip
    order = [3, 0, 4, 2, 1]
    parts = [order[:1], order[1:4], order[4:]]
    found = [segmenter({name: column[part] for name, column in batch.items()}) for part in parts]
    assert [row for part in found for row in rows(part)] == [rows(whole)[i] for i in order]
    assert whole["path"] is batch["path"]


def test_a_broken_picture_is_a_row_and_types_depend_on_no_row(photos, weights):
    segmenter, batch = BatchSegmenter(weights, overlay=True), batch_of(photos)
    expected = segmenter(batch)
    batch["bytes"] = batch["bytes"].copy()
    batch["bytes"][1:3] = [batch["bytes"][1][:-100], b""]
    found = segmenter(batch)
    good = [0, 3, 4]
    assert [rows(found)[i] for i in good] == [rows(expected)[i] for i in good]
    for row, message in zip(rows(found)[1:3], ("truncated", "0 bytes"), strict=True):
        assert str(row["error"]).startswith(f"{row['path']}: ")
        assert message in str(row["error"])
        left = {name: row[name] for name in row if name not in ("path", "error")}
        nothing = {"labels": b"", "overlay": b"", "width": 0, "height": 0}
        assert left == nothing | {"shares": "{}", "notes": ""}
    broken = segmenter({name: column[1:3] for name, column in batch.items()})
    nothing = segmenter({name: column[:0] for name, column in batch.items()})
    kinds = [{name: column.dtype for name, column in each.items()} for each in (broken, nothing)]
    assert kinds == [{name: column.dtype for name, column in found.items()}] * 2
    assert len(nothing["labels"]) == 0


def test_an_error_of_the_network_is_a_row_too(photos, weights):
    segmenter = BatchSegmenter(weights, crf=False)
    with torch.no_grad():
        segmenter.predictor.model.head.classifier.bias[1] = float("nan")
    for row in rows(segmenter(batch_of(photos))):
        assert str(row["error"]).startswith(f"{row['path']}: ")
        assert "NaN or Inf" in str(row["error"])
        assert row["labels"] == b""


def test_settings_of_a_crf_and_options_of_the_predictor_count(weights, tmp_path):
    settings = CRFSettings(3, Gaussian(2.0, 2.0), None)
    options = {"scales": (1.0, 1.5), "flip": True, "tile": 65, "overlap": 16}
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    batch = batch_of(tmp_path)
    found = BatchSegmenter(weights, crf=settings, **options)(batch)["labels"][0]
    (tmp_path / "labels.png").write_bytes(found)
    predictor = Predictor(load_model(weights), settings.refiner(len(CLASSES)), **options)
    np.testing.assert_array_equal(indices(tmp_path / "labels.png"), predictor(noise).labels)
    for others in ({"crf": settings}, options, options | {"crf": False}):
        assert BatchSegmenter(weights, **others)(batch)["labels"][0] != found


def test_pictures_of_other_bands_are_arrays_and_tiffs_by_their_names(tmp_path):
    model = deeplab_v2_small(3, in_channels=4, mean=[100] * 4, deviation=[50] * 4)
    save_weights(model, tmp_path / "w.safetensors")
    values = np.random.default_rng(0).integers(0, 200, (12, 16, 4), dtype=np.uint16)
    np.save(tmp_path / "a.npy", values)
    content = np.array([(tmp_path / "a.npy").read_bytes(), None], object)[:1]
    batch = {"path": np.array(["bucket/a.npy"], object), "bytes": content}
    segmenter = BatchSegmenter(tmp_path / "w.safetensors", crf=False, overlay=True)
    row = rows(segmenter(batch))[0]
    assert row["error"] == ""
    assert (row["width"], row["height"]) == (16, 12)
    assert row["overlay"] != b""
    batch["path"][0] = "bucket/a.png"
    assert "no picture could be recognised" in str(rows(segmenter(batch))[0]["error"])


def refused(message: str, action, *arguments, **options) -> None:
    with pytest.raises(InputError, match=message) as caught:
        action(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_batches_without_their_columns_are_refused(photos, weights):
    segmenter, batch = BatchSegmenter(weights), batch_of(photos)
    needs = "batch must have the columns path and bytes, .* include_paths=True, not "
    refused(needs + "bytes$", segmenter, {"bytes": batch["bytes"]})
    refused(needs + "image, path$", segmenter, {"image": batch["bytes"], "path": batch["path"]})
    refused(needs + "none$", segmenter, {})
    labelled = batch | {"labels": batch["path"]}
    refused("batch must not have the column labels, .*; rename it", segmenter, labelled)
    drawn = batch | {"overlay": batch["path"]}
    assert "overlay" in segmenter(drawn)
    refused("must not have the column overlay", BatchSegmenter(weights, overlay=True), drawn)


def test_what_cannot_work_is_refused_where_a_worker_starts(tmp_path, weights, monkeypatch):
    refused(
        "no_such_name: no such weights file; .*deeplab weights list", BatchSegmenter, "no_such_name"
    )
    several = tmp_path / "several.safetensors"
    save_weights(deeplab_v2_small(2, multilabel=True), several)
    refused("several.safetensors: must be weights of one label a pixel", BatchSegmenter, several)
    many = plain_weights(tmp_path / "many.safetensors", 257)
    refused("257 classes do not fit 8-bit label maps", BatchSegmenter, many)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(
        "device must be cpu .*, not cuda:0; .*num_gpus=1", BatchSegmenter, weights, device="cuda:0"
    )
    with pytest.raises(ValueError, match="scales must be"):
        BatchSegmenter(weights, scales=())


def test_weights_left_out_are_those_for_photographs_that_suit_the_device(weights, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(
        "deeplab.weights.registry.for_photographs", lambda kind: asked.append(kind) or weights
    )
    assert BatchSegmenter(device="cpu").predictor.model.num_classes == len(CLASSES)
    assert asked == ["cpu"]
