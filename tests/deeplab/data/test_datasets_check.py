"""`deeplab data check` and `deeplab data list`: errors are named, contents are counted."""

import json
from functools import partial

import commands
import numpy as np
import pytest
from dataset_files import label_map, picture
from PIL import Image

from deeplab.data.datasets import DATASETS, open_dataset
from deeplab.data.datasets.check import KINDS, check, shared_pictures

run = partial(commands.run, "data")


@pytest.fixture
def own(tmp_path):
    """Six good pictures of 24 x 20: half of the pixels are class 0, the others 1 or ignored."""
    labels = np.zeros((20, 24), np.uint8)
    labels[:, 12:], labels[:5, 12:] = 1, 255
    for split in ("train", "val"):
        for name in "abc":
            picture(tmp_path / "images" / split / f"{name}.jpg")
            label_map(tmp_path / "labels" / split / f"{name}.png", labels)
    (tmp_path / "classes.txt").write_text("left\nright\nnever\n")
    return tmp_path


@pytest.fixture
def broken(own):
    """One of everything that can be wrong."""
    images, labels = own / "images" / "train", own / "labels" / "train"
    (labels / "a.png").unlink()
    whole = (images / "b.jpg").read_bytes()
    (images / "b.jpg").write_bytes(whole[: len(whole) // 2])
    values = np.zeros((20, 24), np.uint8)
    values[0, 0] = 9
    Image.fromarray(values).save(labels / "c.png")
    Image.open(images / "c.jpg").convert("L").save(images / "c.jpg")
    Image.new("L", (20, 24)).save(labels / "d.png")
    Image.new("RGB", (24, 20)).save(images / "d.jpg")
    Image.new("L", (9, 8)).save(labels / "e.png")
    Image.new("RGB", (9, 8)).save(images / "e.jpg")
    Image.new("L", (24, 20)).save(labels / "f.png")
    Image.new("RGB", (24, 20)).save(labels / "g.png")
    Image.new("RGB", (24, 20)).save(images / "g.jpg")
    (labels / "h.png").write_bytes(b"")
    Image.new("RGB", (24, 20)).save(images / "h.jpg")
    return own


EXPECTED = {
    "missing": ["a.png: no such file"],
    "unreadable": ["b.jpg: the image is truncated", "g.png: a picture in colours", "h.png: the"],
    "size": ["d.jpg: the picture has 24 x 20 pixels, its labels 20 x 24", "e.jpg: only 9 x 8"],
    "contrast": [f"{name}.jpg: nearly one colour, RGB 0, 0, 0" for name in "degh"],
    "labels": ["c.png: label 9 in 1 pixel, first at row 0, column 0"],
    "unpaired": ["f.png: no picture has this name"],
}


@pytest.mark.parametrize("workers", [0, 2])
def test_everything_that_is_wrong_is_named_by_its_file(broken, workers):
    report = check(open_dataset("folder", broken, "train"), workers)
    for kind in KINDS:
        messages = [f.message for f in report.findings if f.kind == kind]
        expected = EXPECTED.get(kind, [])
        assert len(messages) == len(expected), (kind, messages)
        for message, words in zip(messages, expected, strict=True):
            assert words in message
            assert str(broken) in message
    grey = broken / "images" / "train" / "c.jpg"
    assert [str(c) for c in report.conversions] == [f"{grey}: grey converted to RGB"]


def test_counts_are_of_pixels_and_pictures(own):
    steps = []
    report = check(open_dataset("folder", own, "train"), 0, lambda: steps.append(1))
    assert report.findings == []
    assert report.pixels == [3 * 20 * 12, 3 * 15 * 12, 0]
    assert report.images == [3, 3, 0]
    assert report.ignored == 3 * 5 * 12
    assert report.sizes == {(24, 20): 3}
    assert (report.pictures, report.unlabelled, len(steps)) == (3, 0, 3)


def test_pixels_of_wrong_labels_do_not_count(broken):
    report = check(open_dataset("folder", broken, "train"), 0)
    assert report.unknown == 1
    assert sum(report.pixels) + 1 + report.ignored == (3 * 20 * 24) + 9 * 8  # of b, c, d and e
    assert report.ignored == 5 * 12


def test_a_picture_of_unknown_labels_alone_is_not_taken_for_ignored(own):
    Image.new("L", (24, 20), 200).save(own / "labels" / "val" / "a.png")
    report = check(open_dataset("folder", own, "val"), 0)
    assert (report.unknown, report.ignored, report.unlabelled) == (20 * 24, 2 * 5 * 12, 0)
    result = run("check", "folder", own, "--split", "val", "--json", own / "report.json")
    assert "unknown │" in result.output
    report = json.loads((own / "report.json").read_text())["splits"]["val"]
    assert (report["unknown_pixels"], report["ignored_pixels"]) == (20 * 24, 2 * 5 * 12)


def test_pictures_without_a_pixel_that_counts_are_counted(own):
    Image.new("L", (24, 20), 255).save(own / "labels" / "val" / "a.png")
    assert check(open_dataset("folder", own, "val"), 0).unlabelled == 1
    assert "no pixel counts in 1 picture\n" in run("check", "folder", own).output


def test_names_listed_twice_are_found(own):
    (own / "train.txt").write_text("train/a\ntrain/b\ntrain/a\n")
    findings = check(open_dataset("folder", own, "train"), 0).findings
    assert [(f.kind, f.message) for f in findings] == [("duplicate", "train/a: listed 2 times")]


def test_pictures_in_training_and_validation_are_found(own):
    (own / "train.txt").write_text("train/a\nval/b\n")
    (own / "trainval.txt").write_text("train/a\nval/b\nval/c\n")
    splits = {name: open_dataset("folder", own, name) for name in ("train", "val", "trainval")}
    findings = shared_pictures(splits)
    assert [f.kind for f in findings] == ["shared"]
    assert findings[0].message.startswith("val/b: in train and in val")


def test_the_command_counts_and_exits_with_0(own):
    result = run("check", "folder", own, "--json", own / "report.json")
    assert result.exit_code == 0, result.output
    assert "folder, train, val: 6 pictures, nothing to mend" in result.output
    assert "57.14%" in result.output  # left: 240 of 420 labelled pixels
    for split in ("train", "val"):
        assert f"{split}: no pixel of never (1 of 3 classes)\n" in result.output
    assert "24 x 20 in 3 pictures" in result.output
    assert "unknown" not in result.output
    report = json.loads((own / "report.json").read_text())
    assert report["splits"]["val"]["classes"][1] == {"name": "right", "pixels": 540, "images": 3}
    assert report["splits"]["val"]["sizes"] == [{"width": 24, "height": 20, "pictures": 3}]


def test_the_command_names_findings_and_exits_with_1(broken):
    result = run("check", "folder", broken, "--split", "train", "--json", broken / "report.json")
    assert result.exit_code == 1
    for kind, messages in EXPECTED.items():
        assert f"{KINDS[kind]} ({len(messages)}):" in result.output
        for words in messages:
            assert words in result.output
    assert "7 pictures, 12 findings" in result.output
    found = json.loads((broken / "report.json").read_text())["splits"]["train"]["findings"]
    assert len(found) == 12
    assert {f["kind"] for f in found} == set(EXPECTED)


def test_a_long_list_of_findings_is_cut_short(own):
    (own / "train.txt").write_text("".join(f"gone{i}\n" for i in range(25)))
    result = run("check", "folder", own, "--split", "train")
    assert result.exit_code == 1
    assert result.output.count("no such file") == 20
    assert "and 30 more; --json FILE has them all" in result.output


def test_one_of_a_kind_is_not_many(own):
    for path in (own / "labels" / "val").glob("[bc].png"):
        path.unlink()
        (own / "images" / "val" / f"{path.stem}.jpg").unlink()
    (own / "labels" / "val" / "a.png").unlink()
    result = run("check", "folder", own, "--split", "val")
    assert "val: 1 picture " in result.output
    assert "folder, val: 1 picture, 1 finding\n" in result.output


def test_class_names_are_shown_as_they_are(own):
    (own / "classes.txt").write_text("[b]left\n[/red]right\nnever [old]\n")
    result = run("check", "folder", own)
    assert result.exit_code == 0, result.output
    for name in ("[b]left", "[/red]right", "never [old]"):
        assert name in result.output


def test_masks_of_black_and_white_are_told_apart_from_ignored_pixels(own):
    for path in (own / "labels").rglob("*.png"):
        label_map(path, np.resize(np.where(np.arange(24) > 9, 255, 0), (20, 24)))
    result = run("check", "folder", own)
    assert result.exit_code == 1
    assert "Labels from which nothing can be learned (2):" in result.output
    told = "only left (label 0) and ignored pixels (255) occur, of 3 classes; if 255 is a class"
    assert result.output.count(told) == 2
    for path in (own / "labels").rglob("*.png"):
        Image.new("L", (24, 20), 255).save(path)
    assert "no pixel is labelled, all are ignored (255)" in run("check", "folder", own).output
    for path in (own / "labels").rglob("*.png"):
        label_map(path, np.resize(np.where(np.arange(24) > 9, 255, 0), (20, 24)))
    text = "[[class]]\nname = 'back'\n[[class]]\nname = 'front'\nlabel = 255\n"
    (own / "classes.toml").write_text(text)
    result = run("check", "folder", own)
    assert result.exit_code == 0, result.output
    assert "58.33%" in result.output  # front: 14 of 24 columns


def test_files_of_any_name_are_one_printable_line(own):
    source = own / "images" / "train" / "a.jpg"
    (source.parent / "two\nlines\x1b.jpg").write_bytes(source.read_bytes())
    result = run("check", "folder", own, "--split", "train")
    assert result.exit_code == 1
    assert "two lines\\x1b.png: no such file\n" in result.output


def test_files_in_a_folder_that_may_not_be_looked_into_are_no_missing_files(own, monkeypatch):
    def locked(self, *args, **options):
        raise PermissionError(13, "Permission denied", str(self))

    data = open_dataset("folder", own, "val")
    monkeypatch.setattr("pathlib.Path.stat", locked)
    findings = check(data, 0).findings
    assert [f.kind for f in findings] == ["unreadable"] * 6
    assert "a.jpg: cannot be opened (Permission denied)" in findings[0].message


def test_scenes_need_no_folder():
    result = run("check", "scenes", "--split", "val", "--data-option", "length=1")
    assert result.exit_code == 0, result.output
    assert "scenes, val: 1 picture, nothing to mend" in result.output


@pytest.mark.parametrize(("name", "folder"), [("cityscapes", "leftImg8bit"), ("camvid", "images")])
def test_a_set_without_any_split_is_not_called_whole(tmp_path, name, folder):
    (tmp_path / folder).mkdir()
    result = run("check", name, tmp_path)
    assert result.exit_code == 2
    assert f"nothing of {name} there; `deeplab data list {name}` tells" in result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["check", "nothing", "."], "no data set 'nothing'; there are voc2012"),
        (["check", "camvid", "gone"], "gone: no such folder; camvid is expected there"),
        (["check", "camvid"], "camvid: a folder is needed; `deeplab data list` tells its layout"),
        (["check", "folder", ".", "--data-option", "ignore"], "--data-option ignore must be KEY"),
        (["check", "camvid", ".", "--data-option", "ignore=3"], "camvid: no option 'ignore'"),
        (["check", "folder", ".", "--split", "test"], "no split 'test'; there are train, val, all"),
        (["check", "folder", ".", "--workers", "-1"], "workers must be 0 or more"),
        (["check", "folder", ".", "--json", "images"], "is a folder"),
        (["list", "nothing"], "no data set 'nothing'"),
        (["check"], "NAME must be a data set of `deeplab data list`, as in: deeplab data check"),
        (["check", "folder", "--data", "camvid"], "--data camvid: NAME folder says it too; leave"),
        (["check", "folder", ".", "--root", "x"], "--root x: ROOT . says it too; leave one"),
    ],
)
def test_what_cannot_be_checked_exits_with_2(own, monkeypatch, args, message):
    monkeypatch.chdir(own)
    result = run(*args)
    assert result.exit_code == 2
    assert message in result.output


def test_the_set_is_named_as_in_the_other_commands_too(own):
    named = run("check", "--data", "folder", "--root", own, "--split", "val")
    assert "folder, val: 3 pictures, " in named.output
    assert named.output == run("check", "folder", own, "--split", "val").output


def test_options_are_read_as_toml_or_as_text(own):
    (own / "names.txt").write_text("left\n")  # alone: there is nothing to tell it from
    options = ["--data-option", f"classes={own / 'names.txt'}", "--data-option", "ignore=[1, 7]"]
    result = run("check", "folder", own, *options, "--split", "val")
    assert "left is the only class, so that every pixel is it" in result.output
    assert result.output.endswith("folder, val: 3 pictures, 1 finding\n")
    assert "never" not in result.output


def test_the_list_has_every_set_and_tells_of_one_in_full():
    result = run("list")
    assert result.exit_code == 0
    for name in DATASETS:
        assert name in result.output
    result = run("list", "cityscapes", "folder")
    assert "gtFine/{train,val}/CITY/" in result.output
    assert "ignore_colours" in result.output
    assert "https://www.cityscapes-dataset.com/" in result.output
