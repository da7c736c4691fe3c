"""The data sets: Cityscapes, CamVid and the scenes, and what holds of every set."""

from pathlib import Path

import numpy as np
import pytest
from dataset_files import label_map, picture
from PIL import Image

from deeplab.data.datasets import DATASETS, IGNORE, available_splits, open_dataset
from deeplab.data.datasets import classes as known
from deeplab.data.datasets.labels import label_table
from deeplab.data.scenes import scene
from deeplab.errors import InputError

SHARED = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture
def cityscapes(tmp_path):
    for split, city, frame in (("train", "aachen", 1), ("train", "bonn", 1), ("val", "ulm", 3)):
        stem = f"{city}_000000_{frame:06}"
        picture(tmp_path / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
        truth = tmp_path / "gtFine" / split / city
        label_map(truth / f"{stem}_gtFine_labelIds.png", [*range(34), 255])
        label_map(truth / f"{stem}_gtFine_instanceIds.png", [0])
        Image.new("RGB", (24, 20)).save(truth / f"{stem}_gtFine_color.png")
    return tmp_path


def test_cityscapes_label_ids_become_train_ids(cityscapes):
    data = open_dataset("cityscapes", cityscapes, "train")
    assert data.names == ["aachen_000000_000001", "bonn_000000_000001"]
    stored = np.resize([*range(34), 255], (20, 24))
    labels = data[0][1]
    expected = {
        "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17,
        "traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23,
        "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31,
        "motorcycle": 32, "bicycle": 33,
    }  # fmt: skip
    assert tuple(expected) == data.classes
    for index, label_id in enumerate(expected.values()):
        assert (labels[stored == label_id] == index).all()
    assert (labels[~np.isin(stored, list(expected.values()))] == IGNORE).all()
    assert data.unpaired() == []


def test_the_cityscapes_table_knows_the_34_ids_and_minus_one_and_no_other():
    table = label_table(known.CITYSCAPES_IDS, known.CITYSCAPES_VOID_IDS)
    assert np.flatnonzero(table >= 0).tolist() == [*range(34), 255]
    assert table[np.uint8(np.int8(-1).view(np.uint8))] == IGNORE
    assert sorted(t for t in table if 0 <= t < IGNORE) == list(range(19))


def test_cityscapes_takes_files_of_train_ids_too(cityscapes):
    for path in (cityscapes / "gtFine" / "train").rglob("*_labelIds.png"):
        name = path.name.replace("labelIds", "labelTrainIds")
        label_map(path.with_name(name), [0, 18, 255])
    by_default = open_dataset("cityscapes", cityscapes, "train")
    asked = open_dataset("cityscapes", cityscapes, "train", labels="labelTrainIds")
    assert np.unique(by_default[0][1]).tolist() == [*range(19), 255]
    assert np.unique(asked[0][1]).tolist() == [0, 18, 255]
    for path in (cityscapes / "gtFine" / "train").rglob("*_labelIds.png"):
        path.unlink()
    by_default = open_dataset("cityscapes", cityscapes, "train")
    assert np.unique(by_default[0][1]).tolist() == [0, 18, 255]
    with pytest.raises(InputError, match="labels must be 'labelIds' or 'labelTrainIds'"):
        open_dataset("cityscapes", cityscapes, "train", labels="color")


@pytest.mark.parametrize("layout", ["images", "segnet"])
def test_camvid_void_is_ignored_in_both_layouts(tmp_path, layout):
    images = {"images": "images/{}", "segnet": "{}"}[layout]
    labels = {"images": "labels/{}", "segnet": "{}annot"}[layout]
    for split in ("train", "val", "test"):
        picture(tmp_path / images.format(split) / "0001TP_1.png")
        label_map(tmp_path / labels.format(split) / "0001TP_1.png", range(12))
    assert set(available_splits("camvid", tmp_path)) == {"train", "val", "test"}
    data = open_dataset("camvid", tmp_path, "val")
    assert data.names == ["0001TP_1"]
    assert np.unique(data[0][1]).tolist() == [*range(11), 255]
    assert (len(data.classes), data.classes[0], data.classes[10]) == (11, "sky", "bicyclist")
    assert data.palette[3].tolist() == [128, 64, 128]


@pytest.mark.skipif(not (SHARED / "camvid").is_dir(), reason="no ../shared/data/camvid here")
def test_the_camvid_copy_loads():
    train = open_dataset("camvid", SHARED / "camvid", "train")
    val = open_dataset("camvid", SHARED / "camvid", "val")
    assert (len(train), len(val)) == (367, 101)
    image, labels = train[0]
    assert image.shape == (360, 480, 3)
    assert set(np.unique(labels)) <= {*range(11), 255}
    assert train.classes[labels[0, 240]] in ("sky", "building", "tree")  # the top of a street


def test_scenes_are_a_data_set_of_the_same_kind():
    data = open_dataset("scenes", None, "val", length=2, size=32)
    assert (len(data), data.palette.shape) == (2, (11, 3))
    expected = scene(9_000_001, 32)
    assert np.array_equal(data[1][0], expected.image)
    assert np.array_equal(data[1][1], expected.labels)
    assert data.names == ["scene_9000000", "scene_9000001"]
    assert available_splits("scenes", None) == ["train", "val", "test"]
    for options, message in (({"length": 0}, "length must be"), ({"size": 3}, "size must be")):
        with pytest.raises(InputError, match=message):
            open_dataset("scenes", None, "val", **options)
    with pytest.raises(InputError, match="no split 'x'; there are train, val, test"):
        open_dataset("scenes", None, "x")


def test_what_is_asked_wrongly_is_refused_in_one_line(tmp_path):
    for name, root, options, message in (
        ("voc", tmp_path, {}, "no data set 'voc'; there are voc2012, pascal_context"),
        ("camvid", tmp_path, {"ignore": 3}, "camvid: no option 'ignore'; it has none"),
        ("camvid", tmp_path / "gone", {}, "no such folder; camvid is expected there"),
        ("camvid", None, {}, "camvid: a folder is needed"),
    ):
        with pytest.raises(InputError, match=message):
            open_dataset(name, root, "train", **options)


WRONG = {
    "scenes": ({"size": "big"}, {"length": True}, {"length": 2.5}),
    "coco_voc": ({"min_pixels": "1000"},),
    "folder": ({"ignore": "11"}, {"ignore": [1, "x"]}, {"labels": 3}),
}


@pytest.mark.parametrize(("name", "options"), [(n, o) for n, many in WRONG.items() for o in many])
def test_options_of_another_type_are_refused(tmp_path, name, options):
    (option,) = options
    with pytest.raises(InputError, match=f"{name}: {option} must be (int|str)"):
        open_dataset(name, tmp_path, "train", **options)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "scenes"])
def test_an_empty_folder_says_what_was_expected(tmp_path, name):
    with pytest.raises(InputError, match=r"there|looked for|expected"):
        open_dataset(name, tmp_path, "train")


@pytest.mark.parametrize("name", DATASETS)
def test_every_set_tells_where_it_comes_from(name):
    info = DATASETS[name]
    assert info.layout
    assert info.licence
    assert info.usual
    assert info.homepage == "-" or info.homepage.startswith("http")
