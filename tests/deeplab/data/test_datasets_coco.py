"""MS-COCO's instances drawn as VOC's classes: masks, crowds, overlaps, damaged files."""

import json

import numpy as np
import pytest
from dataset_files import picture

from deeplab.data.datasets import IGNORE, available_splits, open_dataset
from deeplab.data.datasets import classes as known
from deeplab.data.datasets.coco import draw
from deeplab.errors import InputError


def box(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


@pytest.fixture
def coco(tmp_path):
    """Three pictures: of a couch and a person who overlap, of too little, of a crowd and a tie."""
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    names = {1: "person", 63: "couch", 32: "tie", 44: "bottle"}
    rle = {"size": [20, 24], "counts": [0, 20 * 4, 20 * 20]}  # the first four columns

    def entry(image, category, segmentation, area, crowd=0):
        keys = ("image_id", "category_id", "segmentation", "area", "iscrowd")
        return dict(zip(keys, (image, category, segmentation, area, crowd), strict=True))

    images = [{"id": i, "file_name": f"{i:012}.jpg", "height": 20, "width": 24} for i in (9, 5, 7)]
    content = {
        "images": images,
        "categories": [{"id": k, "name": v} for k, v in names.items()],
        "annotations": [
            entry(9, 63, box(0, 10, 24, 20), 240),
            entry(9, 1, box(8, 2, 12, 12), 40),
            entry(5, 44, box(0, 0, 3, 3), 9),
            entry(7, 1, rle, 900, crowd=1),
            entry(7, 32, box(10, 0, 20, 20), 200),
            entry(7, 1, box(2, 0, 8, 20), 120),
        ],
    }
    for i in (9, 5, 7):
        picture(tmp_path / "val2017" / f"{i:012}.jpg")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return tmp_path


def test_coco_objects_are_drawn_as_voc_classes(coco):
    data = open_dataset("coco_voc", coco, "val2017", min_pixels=100)
    assert data.names == ["000000000007", "000000000009"]  # by id, without the one of 9 pixels
    assert data.classes == known.VOC
    person, sofa = known.VOC.index("person"), known.VOC.index("sofa")
    labels = data[1][1]
    assert (labels[:2] == 0).all()
    assert (labels[2:10, 8:12] == person).all()
    assert (labels[10:12, 8:12] == IGNORE).all()  # person and sofa overlap
    assert (labels[12:] == sofa).all()


def test_coco_crowds_are_ignored_and_other_categories_are_background(coco):
    labels = open_dataset("coco_voc", coco, "val2017", min_pixels=100)[0][1]
    assert (labels[:, :2] == IGNORE).all()  # the crowd, save where a person is marked singly
    assert (labels[:, 2:8] == known.VOC.index("person")).all()
    assert (labels[:, 8:] == 0).all()  # the tie


def test_coco_pictures_with_too_little_are_left_out(coco):
    opened = (open_dataset("coco_voc", coco, "val2017", min_pixels=n) for n in (0, 9, 120, 279))
    assert [len(data) for data in opened] == [3, 2, 1, 1]
    with pytest.raises(InputError, match="no picture with more than 1000 pixels"):
        open_dataset("coco_voc", coco, "val2017")


def test_coco_maps_every_voc_class_to_a_category():
    assert sorted(known.COCO_TO_VOC.values()) == sorted(known.VOC[1:])


def test_coco_masks_of_another_size_are_refused(coco):
    wrong = {"size": [10, 10], "counts": [0, 100]}
    for mask, message in (
        (wrong, r"a mask of \[10, 10\]"),
        ({"size": [20, 24], "counts": [0, 9999]}, "a mask of"),
        ([[1, 2, 3, 4]], "fewer than three corners"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(20, 24, [[15, 0, mask]])
    path = coco / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    short = {"size": [20, 24], "counts": ""}
    for segmentation in (wrong, short, short | {"counts": "~~~~"}, [], [["x"] * 6], 3, None):
        content["annotations"][0]["segmentation"] = segmentation
        path.write_text(json.dumps(content))
        data = open_dataset("coco_voc", coco, "val2017", min_pixels=100)
        with pytest.raises(InputError, match=r"objects of 000000000009.jpg cannot be drawn"):
            data[1]


def test_coco_run_lengths_as_text_are_those_as_numbers(coco):
    from pycocotools import mask

    plain = {"size": [20, 24], "counts": [7, 100, 373]}
    text = mask.frPyObjects(plain, 20, 24)
    as_str = text | {"counts": text["counts"].decode()}
    labels = draw(20, 24, [[15, 0, plain]])
    assert (labels == 15).sum() == 100
    assert np.array_equal(draw(20, 24, [[15, 0, as_str]]), labels)


def test_coco_splits_are_those_with_pictures(coco):
    annotations = coco / "annotations"
    (annotations / "instances_train2017.json").write_text("{}")
    assert available_splits("coco_voc", coco) == ["val2017"]
    with pytest.raises(InputError, match="expected the folder train2017 or images/train2017"):
        open_dataset("coco_voc", coco, "train2017")
    with pytest.raises(InputError, match="no split 'test'; there are val2017"):
        open_dataset("coco_voc", coco, "test")
    (coco / "images").mkdir()
    (coco / "val2017").rename(coco / "images" / "val2017")
    assert len(open_dataset("coco_voc", coco, "val2017", min_pixels=100)) == 2


def test_a_damaged_coco_file_is_named(coco):
    path = coco / "annotations" / "instances_val2017.json"
    for text in ("{", "[]", '{"images": []}', "[" * 100_000):
        path.write_text(text)
        with pytest.raises(InputError, match=r"instances_val2017.json: not COCO's file"):
            open_dataset("coco_voc", coco, "val2017")
