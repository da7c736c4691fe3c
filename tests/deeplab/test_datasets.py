"""The data sets: layouts as people have them, label values, ignored labels, errors with names."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab.data.datasets import DATASETS, IGNORE, available_splits, open_dataset
from deeplab.data.datasets import classes as known
from deeplab.data.datasets.coco import draw
from deeplab.data.datasets.folder import read_class_file
from deeplab.data.datasets.labels import UnknownLabels, label_table
from deeplab.data.outputs import voc_palette
from deeplab.data.scenes import scene
from deeplab.errors import InputError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def picture(path, size=(20, 24)):
    """A JPEG or PNG picture of (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.indices(size)
    Image.fromarray(np.stack([y * 9, x * 9, y * x], -1).astype(np.uint8)).save(path)


def label_map(path, values, palette=False):
    """A label map, grey or with VOC's palette; `values` is an array, or one row of values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(values, np.uint8)
    if values.ndim == 1:
        values = np.resize(values, (20, 24))
    image = Image.fromarray(values)
    if palette:
        image.putpalette(voc_palette().tobytes())
    image.save(path)
    return values


def listing(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def voc(tmp_path):
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for name, value in (("2007_000001", 1), ("2007_000002", 20), ("2008_000003", 15)):
        picture(base / "JPEGImages" / f"{name}.jpg")
        label_map(base / "SegmentationClassAug" / f"{name}.png", [value, 0])
    for name in ("2007_000001", "2007_000002"):
        label_map(base / "SegmentationClass" / f"{name}.png", [0, 20, 255], palette=True)
    lists = base / "ImageSets" / "Segmentation"
    listing(lists / "train.txt", "2007_000001")
    listing(lists / "val.txt", "2007_000002")
    listing(base / "ImageSets" / "Main" / "dog_train.txt", "2007_000001 -1")
    return tmp_path


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_is_found_from_any_of_its_folders(voc, below):
    data = open_dataset("voc2012", voc / below, "train")
    assert (len(data), data.names) == (1, ["2007_000001"])
    image, labels = data[0]
    assert (image.dtype, image.shape) == (np.uint8, (20, 24, 3))
    assert (labels.dtype, labels.shape) == (np.uint8, (20, 24))
    assert np.array_equal(labels, np.resize([0, 20, 255], (20, 24)))
    assert open_dataset("voc2012", voc / below, "all").names == ["2007_000001", "2007_000002"]


def test_voc_has_21_classes_and_the_palette_of_written_results(voc):
    data = open_dataset("voc2012", voc, "train")
    assert data.classes[0] == "background"
    assert (data.classes[15], data.classes[20]) == ("person", "tvmonitor")
    assert np.array_equal(data.palette, voc_palette()[:21])
    assert (data.palette.dtype, data.palette.shape) == (np.uint8, (21, 3))
    assert data.palette[1].tolist() == [128, 0, 0]


@pytest.mark.parametrize(
    ("file", "lines"),
    [
        ("ImageSets/Segmentation/trainaug.txt", ["2008_000003", "2007_000001"]),
        ("ImageSets/Segmentation/train_aug.txt", ["2008_000003.jpg", "2007_000001"]),
        (
            "ImageSets/SegmentationAug/train_aug.txt",
            [
                f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png"
                for name in ("2008_000003", "2007_000001")
            ],
        ),
    ],
)
def test_trainaug_reads_sbd_labels_whatever_the_list_looks_like(voc, file, lines):
    listing(voc / "VOCdevkit" / "VOC2012" / file, *lines)
    assert "trainaug" in available_splits("voc2012", voc)
    for name in ("trainaug", "train_aug"):
        data = open_dataset("voc2012", voc, name)
        assert data.names == ["2008_000003", "2007_000001"]  # the order of the list
        assert np.unique(data[0][1]).tolist() == [0, 15]


def test_a_list_with_label_files_says_which_labels_count(voc):
    base = voc / "VOCdevkit" / "VOC2012"
    line = "/JPEGImages/2007_000001.jpg /SegmentationClassAug/2007_000001.png"
    listing(base / "ImageSets" / "Segmentation" / "mine.txt", line)
    assert np.unique(open_dataset("voc2012", voc, "mine")[0][1]).tolist() == [0, 1]


def test_trainaug_without_sbd_labels_says_what_is_missing(voc):
    base = voc / "VOCdevkit" / "VOC2012"
    listing(base / "ImageSets" / "Segmentation" / "trainaug.txt", "2008_000003")
    (base / "SegmentationClassAug").rename(base / "elsewhere")
    with pytest.raises(InputError, match=r"SegmentationClassAug: no such folder.*SBD's labels"):
        open_dataset("voc2012", voc, "trainaug")


def test_an_unknown_split_lists_those_that_there_are(voc):
    with pytest.raises(InputError, match="no split 'test'; there are train, val, all"):
        open_dataset("voc2012", voc, "test")


@pytest.mark.parametrize("line", ["2007_000001 -1", "a.jpg b.png c"])
def test_a_list_of_another_kind_is_refused_with_its_line(voc, line):
    lists = voc / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    listing(lists / "val.txt", "2007_000002", line)
    with pytest.raises(InputError, match=r"val.txt: line 2: expected a name"):
        open_dataset("voc2012", voc, "val")


def test_context_comes_out_in_one_order_from_both_archives(tmp_path):
    alphabetical, authors = tmp_path / "a", tmp_path / "b"
    for base, folder, stored in (
        (alphabetical, "SegmentationClassContext", known.CONTEXT),
        (authors, "59_context_labels", known.CONTEXT_59_LABELS),
    ):
        picture(base / "JPEGImages" / "2008_000002.jpg")
        values = [stored.index(name) for name in ("background", "wood", "bag", "tvmonitor")]
        label_map(base / folder / "2008_000002.png", [*values, 255])
        listing(base / "ImageSets" / "Main" / "train.txt", "2008_000002")
        listing(base / "ImageSets" / "Main" / "dog_train.txt", "2008_000002  1")
        assert available_splits("pascal_context", base) == ["train", "all"]
    one = open_dataset("pascal_context", alphabetical, "train")
    other = open_dataset("pascal_context", authors, "train")
    assert len(one.classes) == len(one.palette) == 60
    assert one.classes == other.classes == ("background", *sorted(one.classes[1:]))
    assert np.array_equal(one[0][1], other[0][1])
    names = {one.classes[i] for i in np.unique(one[0][1]) if i != IGNORE}
    assert names == {"background", "wood", "bag", "tvmonitor"}
    forced = open_dataset("pascal_context", alphabetical, "train", order="59_labels")
    assert not np.array_equal(one[0][1], forced[0][1])
    with pytest.raises(InputError, match="order: expected 'alphabetical' or '59_labels'"):
        open_dataset("pascal_context", alphabetical, "train", order="random")


def test_the_two_orders_of_context_have_the_same_59_classes():
    assert sorted(known.CONTEXT) == sorted(known.CONTEXT_59_LABELS)
    assert len(set(known.CONTEXT)) == 60
    assert known.CONTEXT_59_LABELS[:7] == known.VOC[:7]


@pytest.mark.parametrize(
    ("labels", "list_file"),
    [
        ("pascal_person_part_gt", "pascal_person_part_trainval_list/train.txt"),
        ("SegmentationPart", "train_id.txt"),
        (
            "pascal_person_part/pascal_person_part_gt",
            "pascal_person_part/pascal_person_part_trainval_list/train.txt",
        ),
    ],
)
def test_person_part_has_seven_classes_in_each_layout(tmp_path, labels, list_file):
    picture(tmp_path / "JPEGImages" / "2008_000008.jpg")
    label_map(tmp_path / labels / "2008_000008.png", range(7))
    line = "/JPEGImages/2008_000008.jpg /pascal_person_part_gt/2008_000008.png"
    listing(tmp_path / list_file, line if "trainval_list" in list_file else "2008_000008")
    listing(tmp_path / "readme.txt", "hello there everybody")
    data = open_dataset("pascal_person_part", tmp_path, "train")
    assert data.classes[1:3] == ("head", "torso")
    assert len(data.classes) == len(data.palette) == 7
    assert np.unique(data[0][1]).tolist() == list(range(7))


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
    with pytest.raises(InputError, match="labels: expected 'labelIds' or 'labelTrainIds'"):
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


@pytest.mark.skipif(not (SHARED / "voc_sample").is_dir(), reason="no ../shared/data/voc_sample")
def test_the_voc_sample_loads_without_lists():
    data = open_dataset("voc2012", SHARED / "voc_sample", "all")
    assert data.names == ["2011_000003", "2011_000006", "2011_000025"]
    classes = [{data.classes[i] for i in np.unique(data[k][1]) if i != 255} for k in range(3)]
    assert classes[0] == {"background", "bottle", "person"}
    assert classes[2] == {"background", "bus", "car"}


def box(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


@pytest.fixture
def coco(tmp_path):
    """Three pictures: of a couch and a person who overlap, of too little, of a crowd and a tie."""
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    names = {1: "person", 63: "couch", 32: "tie", 44: "bottle"}
    rle = {"size": [20, 24], "counts": [0, 20 * 4, 20 * 20]}  # the first four columns

    def entry(image, category, segmentation, area, crowd=0):
        return {
            "image_id": image,
            "category_id": category,
            "segmentation": segmentation,
            "area": area,
            "iscrowd": crowd,
        }

    content = {
        "images": [
            {"id": i, "file_name": f"{i:012}.jpg", "height": 20, "width": 24} for i in (9, 5, 7)
        ],
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
    lengths = [
        len(open_dataset("coco_voc", coco, "val2017", min_pixels=n)) for n in (0, 9, 120, 279)
    ]
    assert lengths == [3, 2, 1, 1]
    with pytest.raises(InputError, match="no picture with more than 1000 pixels"):
        open_dataset("coco_voc", coco, "val2017")


def test_coco_maps_every_voc_class_to_a_category():
    assert sorted(known.COCO_TO_VOC.values()) == sorted(known.VOC[1:])


def test_coco_masks_of_another_size_are_refused(coco):
    wrong = {"size": [10, 10], "counts": [0, 100]}
    with pytest.raises(ValueError, match=r"a mask of \[10, 10\]"):
        draw(20, 24, [[15, 0, wrong]])
    with pytest.raises(ValueError, match="a mask of"):
        draw(20, 24, [[15, 0, {"size": [20, 24], "counts": [0, 9999]}]])
    with pytest.raises(ValueError, match="fewer than three corners"):
        draw(20, 24, [[15, 0, [[1, 2, 3, 4]]]])
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


def test_a_damaged_coco_file_is_named(coco):
    path = coco / "annotations" / "instances_val2017.json"
    for text in ("{", "[]", '{"images": []}'):
        path.write_text(text)
        with pytest.raises(InputError, match=r"instances_val2017.json: not COCO's file"):
            open_dataset("coco_voc", coco, "val2017")


@pytest.fixture
def own(tmp_path):
    for name in ("train/a", "train/b", "val/c", "d"):
        picture(tmp_path / "images" / f"{name}.jpg")
        label_map(tmp_path / "labels" / f"{name}.png", [0, 1, 2])
    (tmp_path / "images" / "._d.jpg").write_bytes(b"left by another system")
    (tmp_path / "classes.txt").write_text("ground\nold tree\nwater\n")
    return tmp_path


def test_own_data_in_folders(own):
    assert available_splits("folder", own) == ["train", "val", "all"]
    assert open_dataset("folder", own, "train").names == ["train/a", "train/b"]
    data = open_dataset("folder", own, "all")
    assert sorted(data.names) == ["d", "train/a", "train/b", "val/c"]
    assert data.classes == ("ground", "old tree", "water")
    assert np.array_equal(data.palette, voc_palette()[:3])
    assert np.unique(data[0][1]).tolist() == [0, 1, 2]


def test_own_data_by_lists(own):
    listing(own / "splits" / "few.txt", "val/c.jpg", "d")
    listing(own / "val.txt", "train/b")  # a list goes before a folder of its name
    assert set(available_splits("folder", own)) == {"few", "val", "train", "all"}
    assert open_dataset("folder", own, "few").names == ["val/c", "d"]
    assert open_dataset("folder", own, "val").names == ["train/b"]
    listing(own / "splits" / "gone.txt", "nowhere")
    with pytest.raises(InputError, match=r"nowhere.jpg: no such file"):
        open_dataset("folder", own, "gone")[0]


def test_own_data_with_ignored_labels_and_other_folder_names(own):
    (own / "classes.txt").write_text("ground\nold tree\n")
    (own / "labels").rename(own / "masks")
    with pytest.raises(InputError, match="label 2 in"):
        open_dataset("folder", own, "train", labels="masks")[0]
    for ignore in (2, [2, 7]):
        data = open_dataset("folder", own, "train", labels="masks", ignore=ignore)
        assert np.unique(data[0][1]).tolist() == [0, 1, 255]
    with pytest.raises(InputError, match=r"label 1 is a class .old tree. and ignored"):
        open_dataset("folder", own, "train", labels="masks", ignore=1)


CLASSES_TOML = """
ignore = 9
ignore_colours = [[0, 0, 0]]
[[class]]
name = "ground"
colour = [200, 100, 0]
label = 4
[[class]]
name = "water"
colour = [0, 0, 255]
label = 2
"""


def test_a_class_file_maps_labels_and_colours(own):
    (own / "classes.toml").write_text(CLASSES_TOML)
    for path in (own / "labels").rglob("*.png"):
        path.unlink()
    label_map(own / "labels" / "train" / "a.png", [4, 2, 9])
    rgb = np.zeros((20, 24, 3), np.uint8)
    rgb[:, :8], rgb[:, 8:16] = (200, 100, 0), (0, 0, 255)
    for name, mode in (("train/b", "RGB"), ("val/c", "RGBA")):
        (own / "labels" / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rgb).convert(mode).save(own / "labels" / f"{name}.png")
    data = open_dataset("folder", own, "train")
    assert data.classes == ("ground", "water")
    assert data.palette.tolist() == [[200, 100, 0], [0, 0, 255]]
    assert data[0][1][0, :3].tolist() == [0, 1, 255]
    assert data[1][1][0, [0, 8, 16]].tolist() == [0, 1, 255]
    assert np.array_equal(data[1][1], open_dataset("folder", own, "val")[0][1])
    rgb[3, 5] = (200, 101, 0)
    Image.fromarray(rgb).save(own / "labels" / "train" / "b.png")
    with pytest.raises(UnknownLabels, match=r"colour \(200, 101, 0\) at row 3, column 5 belongs"):
        data[1]


def test_colours_behind_the_names_in_a_text_file(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("old tree 1 2 3\nRoute 66 4, 5, 6\n")
    described = read_class_file(path)
    assert described.names == ("old tree", "Route 66")
    assert described.palette.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[class]]\nname = 3", "name 3: expected a text"),
        ("[[class]]\nname = 'a'\nlabel = 300", "label 300 of a: expected 0 to 255"),
        ("[[class]]\nname = 'a'\ncolour = [1, 2]", "three numbers from 0 to 255"),
        ("[[class]]\nname = 'a'\ncolor = [1, 2, 3]", "unknown entry 'color'"),
        ("[[classes]]\nname = 'a'", "unknown entry 'classes'"),
        ("class = 3", "class: expected tables"),
        ("", "0 classes; expected 1 to 255"),
        ("[[class]\n", "not valid TOML"),
        ("ignore = 'x'\n[[class]]\nname = 'a'", "ignore: 'x': expected 0-255"),
        ("[[class]]\nname = 'a'\n[[class]]\nname = 'a'", "share one of their names"),
        ("[[class]]\nname='a'\nlabel=1\n[[class]]\nname='b'", "share one of their labels"),
        ("[[class]]\nname='a'\ncolour=[1,2,3]\n[[class]]\nname='b'", "needs a colour of its own"),
    ],
)
def test_a_senseless_class_file_is_refused(tmp_path, text, message):
    path = tmp_path / "classes.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_class_file(path)
    assert str(path) in str(caught.value)


def test_own_data_without_classes_or_folders_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"no classes.toml or classes.txt there; write one"):
        open_dataset("folder", tmp_path, "all")
    (tmp_path / "classes.txt").write_text("a\n")
    with pytest.raises(InputError, match="images: no such folder"):
        open_dataset("folder", tmp_path, "all")
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="images: no picture there"):
        open_dataset("folder", tmp_path, "all")


def test_two_pictures_of_one_name_are_refused(own):
    picture(own / "images" / "d.png")
    with pytest.raises(InputError, match=r"d.png: has the name of d.jpg"):
        open_dataset("folder", own, "all")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_small_grey_pngs_hold_indices_too(own, bits):
    """Decoders stretch grey PNGs of 2 and 4 bits to 0-255: label 1 of 2 bits becomes 85."""
    top = min(2**bits - 1, 2)
    values = np.resize(np.arange(top + 1), (20, 24))
    path = own / "labels" / "d.png"
    write_grey_png(path, values, bits)
    data = open_dataset("folder", own, "all")
    assert np.array_equal(data[data.names.index("d")][1], values)


def write_grey_png(path, values, bits):
    import struct
    import zlib

    def chunk(kind, body):
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    height, width = values.shape
    planes = (values[..., None] >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(planes.reshape(height, -1).astype(np.uint8), axis=1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def test_label_files_that_hold_no_indices_are_refused(own):
    path = own / "labels" / "d.png"
    data = open_dataset("folder", own, "all")
    index = data.names.index("d")
    Image.new("RGB", (24, 20)).save(path)
    with pytest.raises(InputError, match=r"d.png: a picture in colours.*classes.toml"):
        data[index]
    Image.new("LA", (24, 20)).save(path)
    with pytest.raises(InputError, match=r"d.png: pixels of type LA"):
        data[index]
    Image.fromarray(np.full((20, 24), 1000, np.uint16)).save(path)
    with pytest.raises(InputError, match=r"d.png: values from 1000 to 1000"):
        data[index]
    Image.fromarray(np.full((20, 24), 2, np.uint16)).save(path)
    assert (data[index][1] == 2).all()
    path.unlink()
    Image.new("L", (24, 20)).save(path.with_suffix(".jpg"))
    with pytest.raises(InputError, match=r"d.jpg: a label map as JPEG has lost its values"):
        open_dataset("folder", own, "all")[index]


def test_values_that_are_no_class_are_named_with_their_place(own):
    values = np.zeros((20, 24), np.uint8)
    values[4, 7:9], values[9, 9] = 77, 200
    label_map(own / "labels" / "d.png", values)
    data = open_dataset("folder", own, "all")
    message = r"d.png: label 77 in 2 pixels, first at row 4, column 7, also 200; expected 0-2, 255"
    with pytest.raises(UnknownLabels, match=message) as caught:
        data[data.names.index("d")]
    assert caught.value.labels[4, 7] == IGNORE


def test_broken_files_are_named(own):
    data = open_dataset("folder", own, "train")
    whole = (own / "images" / "train" / "a.jpg").read_bytes()
    (own / "images" / "train" / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a.jpg: the image is truncated or damaged"):
        data[0]
    label_map(own / "labels" / "train" / "b.png", np.zeros((24, 20)))
    with pytest.raises(InputError, match=r"b.jpg: the picture has 24 x 20 pixels, its labels 20"):
        data[1]
    (own / "labels" / "train" / "b.png").unlink()
    with pytest.raises(InputError, match=r"b.png: no such file"):
        data[1]
    with pytest.raises(IndexError):
        data[2]


def test_scenes_are_a_data_set_of_the_same_kind():
    data = open_dataset("scenes", None, "val", length=2, size=32)
    assert (len(data), data.palette.shape) == (2, (11, 3))
    expected = scene(9_000_001, 32)
    assert np.array_equal(data[1][0], expected.image)
    assert np.array_equal(data[1][1], expected.labels)
    assert data.names == ["scene_9000000", "scene_9000001"]
    assert available_splits("scenes", None) == ["train", "val", "test"]
    for options, message in (({"length": 0}, "length: expected"), ({"size": 3}, "size: expected")):
        with pytest.raises(InputError, match=message):
            open_dataset("scenes", None, "val", **options)
    with pytest.raises(InputError, match="no split 'x'; there are train, val, test"):
        open_dataset("scenes", None, "x")


def test_what_is_asked_wrongly_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match="no data set 'voc'; there are voc2012, pascal_context"):
        open_dataset("voc", tmp_path, "train")
    with pytest.raises(InputError, match="camvid: no option 'ignore'; it has none"):
        open_dataset("camvid", tmp_path, "train", ignore=3)
    with pytest.raises(InputError, match="no such folder; camvid is expected there"):
        open_dataset("camvid", tmp_path / "gone", "train")
    with pytest.raises(InputError, match="camvid: a folder is needed"):
        open_dataset("camvid", None, "train")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("scenes", {"size": "big"}),
        ("scenes", {"length": True}),
        ("scenes", {"length": 2.5}),
        ("coco_voc", {"min_pixels": "1000"}),
        ("folder", {"ignore": "11"}),
        ("folder", {"ignore": [1, "x"]}),
        ("folder", {"labels": 3}),
    ],
)
def test_options_of_another_type_are_refused(tmp_path, name, options):
    (option,) = options
    with pytest.raises(InputError, match=f"{name}: {option}: expected (int|str)"):
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
