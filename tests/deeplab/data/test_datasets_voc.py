"""The PASCAL family: its layouts as people have them, SBD's labels, the two orders of Context."""

from pathlib import Path

import numpy as np
import pytest
from dataset_files import label_map, listing, picture

from deeplab.data.datasets import IGNORE, available_splits, open_dataset
from deeplab.data.datasets import classes as known
from deeplab.data.outputs import voc_palette
from deeplab.errors import InputError

SHARED = Path(__file__).parents[4] / "shared" / "data"


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
    ("file", "line"),
    [
        ("Segmentation/trainaug.txt", "{}"),
        ("Segmentation/train_aug.txt", "{}.jpg"),
        ("SegmentationAug/train_aug.txt", "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png"),
    ],
)
def test_trainaug_reads_sbd_labels_whatever_the_list_looks_like(voc, file, line):
    names = ("2008_000003", "2007_000001")
    listing(voc / "VOCdevkit/VOC2012/ImageSets" / file, *(line.format(name) for name in names))
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


def test_trainaug_takes_vocs_own_labels_where_the_folder_has_only_sbds(voc):
    base = voc / "VOCdevkit" / "VOC2012"
    (base / "SegmentationClassAug" / "2007_000001.png").unlink()
    listing(base / "ImageSets" / "Segmentation" / "trainaug.txt", "2007_000001", "2008_000003")
    data = open_dataset("voc2012", voc, "trainaug")
    assert np.unique(data[0][1]).tolist() == [0, 20, 255]
    assert np.unique(data[1][1]).tolist() == [0, 15]


@pytest.mark.parametrize("line", ["2007_000001 -1", "a.jpg b.png c"])
def test_a_list_of_another_kind_is_refused_with_its_line(voc, line):
    lists = voc / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    listing(lists / "val.txt", "2007_000002", "", line)
    with pytest.raises(InputError, match=r"val.txt: line 3 must be a name"):
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
    with pytest.raises(InputError, match="order must be 'alphabetical' or '59_labels'"):
        open_dataset("pascal_context", alphabetical, "train", order="random")


def test_the_two_orders_of_context_have_the_same_59_classes():
    assert sorted(known.CONTEXT) == sorted(known.CONTEXT_59_LABELS)
    assert len(set(known.CONTEXT)) == 60
    assert known.CONTEXT_59_LABELS[:7] == known.VOC[:7]


LISTS = "pascal_person_part_trainval_list/train.txt"


@pytest.mark.parametrize(
    ("labels", "list_file"),
    [
        ("pascal_person_part_gt", LISTS),
        ("SegmentationPart", "train_id.txt"),
        ("pascal_person_part/pascal_person_part_gt", f"pascal_person_part/{LISTS}"),
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


@pytest.mark.skipif(not (SHARED / "voc_sample").is_dir(), reason="no ../shared/data/voc_sample")
def test_the_voc_sample_loads_without_lists():
    data = open_dataset("voc2012", SHARED / "voc_sample", "all")
    assert data.names == ["2011_000003", "2011_000006", "2011_000025"]
    classes = [{data.classes[i] for i in np.unique(data[k][1]) if i != 255} for k in range(3)]
    assert classes[0] == {"background", "bottle", "person"}
    assert classes[2] == {"background", "bus", "car"}
