"""An import as a whole: classes, places of pictures, what is refused, nothing half-written."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from annotated import photo, stored
from PIL import Image

from deeplab.data.datasets import IGNORE, available_splits, open_dataset
from deeplab.data.datasets.folder import read_class_file
from deeplab.data.imports import FORMATS, Settings, import_annotations, writing
from deeplab.errors import InputError

FULL = [[0, 0], [24, 0], [24, 20], [0, 20]]


def annotate(folder: Path, name: str, image: str | None = None, **labels) -> Path:
    """LabelMe's file for a picture: each label with the outline that it has."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = [{"label": label, "points": points} for label, points in labels.items()]
    content = {"shapes": shapes, "imagePath": image or f"{name}.jpg"}
    content |= {"imageHeight": 20, "imageWidth": 24}
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def marked(tmp_path):
    """Four pictures, each a cat before a wall."""
    for index, name in enumerate("abcd"):
        photo(tmp_path / "in" / f"{name}.jpg", seed=index)
        annotate(tmp_path / "in", name, wall=FULL, cat=[[2, 3], [6, 3], [6, 8], [2, 8]])
    return tmp_path / "in"


def refused(tmp_path, source, message, kind="labelme", **settings):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message):
        import_annotations(kind, source, tmp_path / "out", Settings(**settings))
    assert sorted(tmp_path.rglob("*")) == before


def test_the_result_is_a_data_set_of_ones_own(marked, tmp_path):
    seen = []
    out = tmp_path / "new" / "out"
    report = import_annotations("labelme", marked, out, Settings(split=0.75), seen.append)
    assert seen == [4, 4, 4, 4]
    assert report.pictures == {"train": 3, "val": 1}
    assert report.shapes == report.images == {"cat": 4, "wall": 4}
    assert sorted(available_splits("folder", out)) == ["all", "train", "val"]
    data = open_dataset("folder", out, "train")
    assert data.classes == ("cat", "wall")
    for index, name in enumerate(data.names):
        image, labels = data[index]
        with Image.open(marked / f"{Path(name).name}.jpg") as original:
            assert np.array_equal(image, np.asarray(original))
        assert (labels == 0).sum() == 20
    assert sorted(path.name for path in out.iterdir()) == ["classes.toml", "images", "labels"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert out.stat().st_mode & 0o777 == 0o777 & ~writing._mask()


def test_pictures_are_copied_or_linked(marked, tmp_path):
    import_annotations("labelme", marked, tmp_path / "copied")
    import_annotations("labelme", marked, tmp_path / "linked", Settings(link=True))
    copy, link = (tmp_path / kind / "images" / "a.jpg" for kind in ("copied", "linked"))
    assert not copy.is_symlink()
    assert link.is_symlink()
    assert link.resolve() == (marked / "a.jpg").resolve()
    assert copy.read_bytes() == link.read_bytes() == (marked / "a.jpg").read_bytes()


def test_pictures_of_one_name_get_names_of_their_own(tmp_path):
    for folder in ("x", "y"):
        photo(tmp_path / "in" / folder / "a.jpg")
        annotate(tmp_path / "in" / folder, "a", wall=FULL)
    import_annotations("labelme", tmp_path / "in", tmp_path / "out")
    data = open_dataset("folder", tmp_path / "out", "all")
    assert data.names == ["x-a", "y-a"]


def test_pictures_elsewhere_are_found_by_their_name(marked, tmp_path):
    (tmp_path / "photos").mkdir()
    for name in "abcd":
        os.rename(marked / f"{name}.jpg", tmp_path / "photos" / f"{name}.jpg")
    message = r"a.json: the picture a.jpg is not there \(4 of 4 are missing\); looked in .*--images"
    refused(tmp_path, marked, message)
    annotate(marked, "a", "C:\\photos\\a.jpg", wall=FULL)
    settings = Settings(images=tmp_path / "photos")
    assert import_annotations("labelme", marked, tmp_path / "out", settings).pictures == {"": 4}


def test_pictures_without_annotations_are_left_out_and_told(marked, tmp_path):
    (marked / "d.json").unlink()
    report = import_annotations("labelme", marked, tmp_path / "out")
    assert report.notes == ["1 picture lies beside the others without annotations: d.jpg"]
    assert report.pictures == {"": 3}


def test_a_path_counts_before_a_name(marked, tmp_path):
    """Where the first folder has another picture of that name."""
    photo(marked / "photos" / "a.jpg", seed=9)
    photo(marked / "a.jpg")
    annotate(marked, "a", "photos/a.jpg", wall=FULL)
    import_annotations("labelme", marked, tmp_path / "out", Settings(images=marked / "photos"))
    copied = (tmp_path / "out" / "images" / "a.jpg").read_bytes()
    assert copied == (marked / "photos" / "a.jpg").read_bytes()


def test_a_turned_picture_is_annotated_as_it_is_seen(tmp_path):
    turned = Image.fromarray(np.zeros((24, 20, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "in").mkdir()
    turned.save(tmp_path / "in" / "a.jpg", exif=exif)
    annotate(tmp_path / "in", "a", wall=[[0, 0], [24, 0], [24, 10], [0, 10]])
    import_annotations("labelme", tmp_path / "in", tmp_path / "out")
    image, labels = open_dataset("folder", tmp_path / "out", "all")[0]
    assert image.shape[:2] == labels.shape == (20, 24)
    photo(tmp_path / "in" / "a.jpg", (24, 20))
    message = r"a.jpg is annotated as 24 x 20 pixels, but .*a.jpg has 20 x 24; is it turned"
    refused(tmp_path / "in", tmp_path / "in", message)


def test_ignored_labels_are_no_classes_and_the_rest_can_be_a_class(marked, tmp_path):
    annotate(marked, "a", cat=[[2, 3], [6, 3], [6, 8], [2, 8]])
    settings = Settings(ignore=("wall",), unlabelled="room")
    report = import_annotations("labelme", marked, tmp_path / "out", settings)
    assert report.classes == ("room", "cat")
    assert report.shapes == {"cat": 4, "wall": 3}
    a, b = (stored(tmp_path / "out" / "labels" / f"{name}.png") for name in "ab")
    assert (a[0, 0], a[5, 4]) == (0, 1)
    assert (b[0, 0], b[5, 4]) == (IGNORE, 1)
    second = Settings(unlabelled="wall")  # which is a class already
    report = import_annotations("labelme", marked, tmp_path / "second", second)
    assert report.classes == ("cat", "wall")


def test_classes_that_share_a_colour_get_others_and_a_note(tmp_path):
    photo(tmp_path / "in" / "a.jpg")
    categories = [{"id": i, "name": f"c{i}", "color": [9, 9, 9 * (i > 1)]} for i in range(4)]
    content = {"images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 24}]}
    content |= {"categories": categories, "annotations": []}
    (tmp_path / "in" / "x.json").write_text(json.dumps(content))
    report = import_annotations("coco", tmp_path / "in", tmp_path / "out")
    assert len(report.notes) == 1
    colours = read_class_file(tmp_path / "out" / "classes.toml").palette.tolist()
    assert colours[0] == [9, 9, 0]
    assert colours[2] == [9, 9, 9]
    assert len({tuple(colour) for colour in colours}) == 4


def test_what_makes_no_sense_is_refused_in_one_line(marked, tmp_path):
    classes = tmp_path / "classes.txt"
    classes.write_text("wall\n")
    for settings, message in (
        ({"classes": classes}, "a.json: shape 2 of a.jpg: no class is called 'cat'; there are wa"),
        ({"ignore": ("sky",)}, "--ignore sky: no class of that name; there are __ignore__, cat, w"),
        ({"ignore": ("cat", "wall")}, "0 classes; expected 1 to 255"),
        ({"ignore": ("cat",), "unlabelled": "cat"}, "--unlabelled cat: is ignored"),
        ({"order": "first"}, "--order must be largest or file, not first"),
        ({"crowds": "drop"}, "--crowds must be ignore or unlabelled, not drop"),
        ({"group": "^a"}, "--group only counts with --split"),
        ({"images": tmp_path / "no"}, "--images .*no: no such folder"),
        ({"split": 2}, "--split 2 must be above 0 and below 1"),
    ):
        refused(tmp_path, marked, message, **settings)
    refused(tmp_path, marked, f"no format 'xml'; there are {', '.join(FORMATS)}", kind="xml")
    refused(tmp_path, tmp_path / "nowhere", "nowhere: no such file or folder")
    annotate(marked, "a", 500 * "a", wall=FULL)
    refused(tmp_path, marked, "aaa is not there")
    annotate(marked, "a", **{" ": FULL})
    refused(tmp_path, marked, "a class without a name")
    annotate(marked, "a", wall=FULL)
    annotate(marked, "e", "a.jpg", wall=FULL)
    refused(tmp_path, marked, r"a.jpg: annotated twice, in .*a.json and .*e.json")


@pytest.mark.parametrize("kind", FORMATS)
def test_an_empty_folder_and_a_file_of_another_kind_are_refused(kind, tmp_path):
    empty, file = tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.write_bytes(b"\x00\x01 no annotations \xff")
    for source in (empty, file):
        refused(tmp_path, source, f"{source}", kind=kind)


def test_an_error_in_the_last_picture_leaves_nothing(marked, tmp_path):
    annotate(marked, "d", wall=[[30, 0], [40, 0], [40, 20]])
    refused(tmp_path, marked, "d.json: shape 1 of d.jpg: lies outside")
    (tmp_path / "out").mkdir()  # an empty folder may be there, and stays
    refused(tmp_path, marked, "lies outside")
    annotate(marked, "d", wall=FULL)
    (marked / "d.jpg").write_bytes(b"no picture")
    refused(tmp_path, marked, "d.jpg: no picture can be read there")


def test_ctrl_c_leaves_nothing(marked, tmp_path):
    def stop(total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_annotations("labelme", marked, tmp_path / "out", advance=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_is_there_already_is_never_written_over(marked, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    refused(tmp_path, marked, "out: is there already; name a new folder")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InputError, match="is there already"):
        import_annotations("labelme", marked, tmp_path / "file")
    with pytest.raises(InputError, match="is a file; choose another"):
        import_annotations("labelme", marked, tmp_path / "file" / "out")
