"""Formats of masks and label maps: VOC, ADE20K, Supervisely, Label Studio."""

import base64
import io
import json
import zlib

import numpy as np
import pytest
from annotated import photo, stored
from dataset_files import label_map, listing
from PIL import Image

from deeplab.data.datasets import IGNORE
from deeplab.data.datasets.classes import VOC
from deeplab.data.datasets.folder import read_class_file
from deeplab.data.imports import Settings, import_annotations
from deeplab.data.imports import supervisely as supervisely_format
from deeplab.data.imports.shapes import LINES
from deeplab.errors import InputError


def imported(kind, source, tmp_path, **settings):
    """The report, and the label maps by name."""
    out = tmp_path / "out"
    report = import_annotations(kind, source, out, Settings(**settings))
    maps = sorted((out / "labels").rglob("*.png"))
    return report, {
        path.relative_to(out / "labels").with_suffix("").as_posix(): stored(path) for path in maps
    }


def refused(kind, source, tmp_path, message, **settings):
    with pytest.raises(InputError, match=message):
        imported(kind, source, tmp_path, **settings)
    assert not list(tmp_path.glob("*out*")), "something is left"


@pytest.fixture
def voc(tmp_path):
    """VOC's layout, two pictures in two lists."""
    root = tmp_path / "set"
    for name, split in (("a", "train"), ("b", "val")):
        photo(root / "JPEGImages" / f"{name}.jpg")
        label_map(root / "SegmentationClass" / f"{name}.png", [0, 1, 15, 255], palette=True)
        listing(root / "ImageSets" / "Segmentation" / f"{split}.txt", name)
    listing(root / "ImageSets" / "Segmentation" / "trainval.txt", "a", "b")
    return root


def test_voc_keeps_its_classes_values_colours_and_lists(voc, tmp_path):
    report, maps = imported("voc", voc, tmp_path)
    assert report.classes == VOC
    assert report.pictures == {"train": 1, "val": 1}
    assert report.images == {"background": 2, "aeroplane": 2, "person": 2}
    assert not report.shapes
    assert np.array_equal(maps["train/a"], np.resize([0, 1, 15, 255], (20, 24)))
    palette = read_class_file(tmp_path / "out" / "classes.toml").palette
    assert palette[15].tolist() == [192, 128, 128]


def test_voc_as_cvat_writes_it_goes_by_the_colours_of_its_label_map(voc, tmp_path):
    colours = np.array([[10, 128, 0], [0, 0, 0], [224, 224, 192]], np.uint8)
    for name in "ab":
        rgb = np.repeat(colours[np.resize([0, 1, 2], 24)][None], 20, 0)
        Image.fromarray(rgb).save(voc / "SegmentationClass" / f"{name}.png")
    palette = Image.fromarray(rgb).quantize(3)  # whose indices mean nothing
    palette.save(voc / "SegmentationClass" / "b.png")
    header = "# label:color_rgb:parts:actions"
    listing(voc / "labelmap.txt", header, "background:0,0,0::", "tree: old:10,128,0::")
    report, maps = imported("voc", voc, tmp_path)
    assert report.classes == ("background", "tree: old")
    for labels in maps.values():
        assert np.array_equal(labels, np.resize([1, 0, 255], 24)[None].repeat(20, 0))


def test_voc_as_labelme2voc_writes_it_has_names_and_no_lists(voc, tmp_path):
    for path in (voc / "ImageSets" / "Segmentation").iterdir():
        path.unlink()
    for name in "ab":
        label_map(voc / "SegmentationClass" / f"{name}.png", [0, 1, 255], palette=True)
    listing(voc / "class_names.txt", "__ignore__", "_background_", "cat")
    report, maps = imported("voc", voc, tmp_path)
    assert report.classes == ("background", "cat")
    assert sorted(maps) == ["a", "b"]


def test_classes_of_label_maps_are_put_into_another_order(voc, tmp_path):
    listing(voc / "class_names.txt", *(["_background_"] + [f"c{i}" for i in range(1, 16)]))
    order = tmp_path / "order.txt"
    listing(order, *(f"c{i}" for i in range(15, 1, -1)), "background")
    _, maps = imported("voc", voc, tmp_path, classes=order, ignore=("c1",))
    assert np.array_equal(maps["train/a"], np.resize([14, 255, 0, 255], (20, 24)))
    listing(order, "c1", "c2")
    (tmp_path / "again").mkdir()
    again = tmp_path / "again"
    refused("voc", voc, again, r"order.txt: has no class 'background', .*--ignore", classes=order)


def test_voc_folders_that_make_no_sense_are_refused(voc, tmp_path):
    refused("voc", tmp_path / "set" / "JPEGImages", tmp_path, "no folder SegmentationClass there")
    for line, message in (
        ("cat:0,0", r"labelmap.txt: line 1: 'cat:0,0' must be name:red,green,blue::"),
        ("cat:0,0,256::", "line 1: 'cat:0,0,256::' must be"),
        ("cat:0,0,0::\ndog:0,0,0::", "two classes share a colour"),
        ("cat:0,0,0::", r"a.png: colour \(128, 0, 0\) at row 0, column 1 belongs to no class"),
    ):
        (voc / "labelmap.txt").write_text(f"{line}\n")
        refused("voc", voc, tmp_path, message)
    (voc / "labelmap.txt").unlink()
    listing(voc / "ImageSets" / "Segmentation" / "train.txt", "a", "b")
    refused("voc", voc, tmp_path, r"val.txt: b is in split 'train' too")
    listing(voc / "ImageSets" / "Segmentation" / "train.txt", "a", "c")
    refused("voc", voc, tmp_path, r"c.png: no such file, but split 'train' lists the picture")
    listing(voc / "ImageSets" / "Segmentation" / "train.txt", "a")
    label_map(voc / "SegmentationClass" / "a.png", [21])
    refused("voc", voc, tmp_path, r"a.png: label 21 in 480 pixels")


def test_ade20k_has_nothing_at_0_and_classes_from_1_on(tmp_path):
    root = tmp_path / "set" / "ADEChallengeData2016"
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName", "1\t0.2\t9\t2\t1\twall", "2\t0\t1\t1\t0\tsky, x"]
    listing(root / "objectInfo150.txt", *rows)
    for split in ("training", "validation"):
        photo(root / "images" / split / "a.jpg")
        label_map(root / "annotations" / split / "a.png", [0, 1, 2])
    report, maps = imported("ade20k", tmp_path / "set", tmp_path)
    assert report.classes == ("wall", "sky, x")
    assert report.pictures == {"train": 1, "val": 1}
    assert np.array_equal(maps["val/a"], np.resize([255, 0, 1], (20, 24)))
    (tmp_path / "other").mkdir()
    report, maps = imported("ade20k", root, tmp_path / "other", unlabelled="rest")
    assert report.classes == ("rest", "wall", "sky, x")
    assert np.array_equal(maps["val/a"], np.resize([0, 1, 2], (20, 24)))
    third = tmp_path / "third"
    third.mkdir()
    label_map(root / "annotations" / "training" / "a.png", [3])
    refused("ade20k", root, third, "a.png: label 3 in 480 pixels")
    listing(root / "objectInfo150.txt", *rows[:1])
    refused("ade20k", root, third, "objectInfo150.txt: must have lines that begin with 1, 2")
    (root / "objectInfo150.txt").unlink()
    refused("ade20k", root, third, "objectInfo150.txt: no such file")


def packed(mask, mode="1"):
    """A bitmap as Supervisely stores it: a PNG, deflated, as base64."""
    file = io.BytesIO()
    mask = np.asarray(mask, bool)
    if mode == "RGBA":
        Image.fromarray(np.repeat(mask[..., None], 4, -1).astype(np.uint8) * 255).save(file, "PNG")
    else:
        image = Image.fromarray(mask.astype(np.uint8))
        image.putpalette([0, 0, 0, 255, 255, 255])
        image.save(file, "PNG", transparency=0, bits=1)
    return base64.b64encode(zlib.compress(file.getvalue())).decode()


def supervisely(tmp_path, *objects, tags=(), suffix=".jpg"):
    root = tmp_path / "project"
    photo(root / "ds" / "img" / "a.jpg")
    (root / "ds" / "ann").mkdir(exist_ok=True)
    classes = [{"title": "cat", "color": "#0A0B0C"}, {"title": "dog", "color": "#FF0000"}]
    (root / "meta.json").write_text(json.dumps({"classes": classes}))
    content = {"size": {"height": 20, "width": 24}, "tags": list(tags), "objects": list(objects)}
    (root / "ds" / "ann" / f"a{suffix}.json").write_text(json.dumps(content))
    return root


def polygon(label, exterior, *interior):
    points = {"exterior": exterior, "interior": list(interior)}
    return {"classTitle": label, "geometryType": "polygon", "points": points}


@pytest.mark.parametrize("mode", ["1", "RGBA"])
def test_supervisely_polygons_with_holes_and_bitmaps(mode, tmp_path):
    mask = [[1, 0, 1], [0, 1, 0]]
    bitmap = {"origin": [20, 5], "data": packed(mask, mode)}
    objects = [
        polygon("cat", [[2, 2], [10, 2], [10, 10], [2, 10]], [[4, 4], [6, 4], [6, 6], [4, 6]]),
        {"classTitle": "dog", "geometryType": "bitmap", "bitmap": bitmap},
        {"classTitle": "dog", "geometryType": "point", "points": {"exterior": [[1, 1]]}},
        polygon("dog", [[0, 18], [24, 20]]) | {"geometryType": "rectangle"},
    ]
    root = supervisely(tmp_path, *objects, tags=[{"name": "val"}], suffix="")
    report, maps = imported("supervisely", root, tmp_path)
    labels = maps["val/a"]
    assert report.classes == ("cat", "dog")
    assert (report.shapes, report.dropped) == ({"cat": 1, "dog": 2}, {LINES: 1})
    assert (labels == 0).sum() == 64 - 4
    assert (labels[4:6, 4:6] == IGNORE).all()
    assert np.array_equal(labels[5:7, 20:23] == 1, mask)
    assert (labels[18:] == 1).all()
    colours = read_class_file(tmp_path / "out" / "classes.toml").palette.tolist()
    assert colours == [[10, 11, 12], [255, 0, 0]]


def test_supervisely_files_that_make_no_sense_are_refused(tmp_path):
    def bitmap(data):
        return {"classTitle": "dog", "bitmap": {"origin": [1, 1], "data": data}}

    far = {"origin": [10**400, 1], "data": packed([[1]])}
    for entry, message in (
        (polygon("cow", [[2, 2], [9, 2], [9, 9]]), "object 1 of a.jpg: no class is called 'cow'"),
        (polygon("cat", [[2], [9, 2]]), "a.jpg.json: not Supervisely's annotation"),
        ({"classTitle": "cat", "geometryType": "cube"}, "not Supervisely's annotation"),
        (bitmap("AAAA"), "object 1 of a.jpg: a mask that cannot be unpacked"),
        (bitmap(packed(np.ones((30, 30)))), "a mask of 30 x 30 pixels"),
        ({"classTitle": "dog", "bitmap": far}, "a.jpg.json: .*a mask a million pixels away"),
    ):
        refused("supervisely", supervisely(tmp_path, entry), tmp_path, message)
    (tmp_path / "project" / "meta.json").write_text("[]")
    refused("supervisely", tmp_path / "project", tmp_path, "not Supervisely's meta.json")
    (tmp_path / "project" / "meta.json").unlink()
    refused("supervisely", tmp_path / "project", tmp_path, "meta.json: no such file")


def test_a_mask_of_supervisely_is_not_unpacked_beyond_a_limit(tmp_path, monkeypatch):
    bitmap = {"origin": [1, 1], "data": packed(np.ones((9, 9)))}
    root = supervisely(tmp_path, {"classTitle": "dog", "bitmap": bitmap})
    monkeypatch.setattr(supervisely_format, "_MOST", 60)  # bytes, in which no PNG ends
    refused("supervisely", root, tmp_path, "a mask that cannot be decoded")
    monkeypatch.undo()
    assert (imported("supervisely", root, tmp_path)[1]["a"] == 1).sum() == 81


def label_studio(tmp_path, data="/data/upload/1/0badcafe-a%20b.jpg"):
    root = tmp_path / "export"
    photo(root / "images" / "a b.jpg")
    result = [{"from_name": name, "type": "brushlabels"} for name in ("my", "my-tag")]
    task = {"id": 7, "data": {"image": data, "n": 3}, "annotations": [{"id": 9, "result": result}]}
    (root / "project.json").write_text(json.dumps([task]))
    return root


def stroke(root, name, rows, size=(20, 24)):
    mask = np.zeros(size, np.uint8)
    mask[rows] = 255
    mask[rows.stop] = 100  # the soft edge of a brush
    Image.fromarray(mask).save(root / f"{name}.png")


@pytest.mark.parametrize(
    "data", ["/data/upload/1/0badcafe-a%20b.jpg", "/data/local-files/?d=photos/a b.jpg"]
)
def test_label_studio_masks_find_their_picture_through_the_export(data, tmp_path):
    root = label_studio(tmp_path, data)
    stroke(root, "task-7-annotation-9-by-1-my-tag-Car-0", slice(0, 4))
    stroke(root, "task-7-annotation-9-by-1-my-tag-Car-1", slice(6, 8))
    stroke(root, "task-7-annotation-9-by-1-my-tag-old tree-0", slice(10, 15))
    report, maps = imported("labelstudio", root, tmp_path, unlabelled="background")
    assert report.classes == ("background", "Car", "old tree")
    assert report.shapes == {"Car": 2, "old tree": 1}
    expected = np.zeros((20, 24), np.uint8)
    expected[:4], expected[6:8], expected[10:15] = 1, 1, 2
    assert np.array_equal(maps["a b"], expected)


def test_label_studio_exports_that_make_no_sense_are_refused(tmp_path):
    root = label_studio(tmp_path)
    refused("labelstudio", root, tmp_path, "no file task-...-annotation-")
    name = "task-7-annotation-9-by-1-my-tag-Car-0"
    for other, message in (
        ("task-8-annotation-9-by-1-my-tag-Car-0", "project.json: no task 8, but there are masks"),
        ("task-7-annotation-3-by-1-my-tag-Car-0", "task 7 has the annotations 3, 9; keep the"),
        ("task-7-annotation-9-by-1-tag-Car-0", "none of the task's tags, my-tag, my, begins"),
    ):
        stroke(root, name, slice(0, 4))
        stroke(root, other, slice(0, 4))
        refused("labelstudio", root, tmp_path, message)
        (root / f"{other}.png").unlink()
    stroke(root, name, slice(0, 4), (20, 20))
    refused("labelstudio", root, tmp_path, "20 x 20 pixels, but its picture has 24 x 20")
    (root / "project.json").write_text('{"id": 7}')
    refused("labelstudio", root, tmp_path, "project.json: not Label Studio's JSON export")
    (root / "project.json").unlink()
    refused("labelstudio", root, tmp_path, "0 JSON files; Label Studio's JSON export has to lie")
