"""Data of one's own: folders and lists as splits, label maps, the class file, what is refused."""

import os

import numpy as np
import pytest
from campaign.rasters import png
from dataset_files import label_map, listing, own_data, picture
from PIL import Image

from deeplab.data.datasets import IGNORE, available_splits, open_dataset
from deeplab.data.datasets.folder import read_class_file
from deeplab.data.datasets.labels import UnknownLabels
from deeplab.data.outputs import voc_palette
from deeplab.errors import InputError


@pytest.fixture
def own(tmp_path):
    return own_data(tmp_path)


def test_own_data_in_folders(own):
    assert available_splits("folder", own) == ["train", "val", "all"]
    assert open_dataset("folder", own, "train").names == ["train/a", "train/b"]
    data = open_dataset("folder", own, "all")
    assert sorted(data.names) == ["d", "train/a", "train/b", "val/c"]
    assert data.classes == ("ground", "old tree", "water")
    assert np.array_equal(data.palette, voc_palette()[:3])
    assert np.unique(data[0][1]).tolist() == [0, 1, 2]
    with pytest.raises(IndexError):
        data[4]


def test_own_data_by_lists(own):
    listing(own / "splits" / "few.txt", "val/c.jpg", "d")
    listing(own / "val.txt", "train/b")  # a list goes before a folder of its name
    assert set(available_splits("folder", own)) == {"few", "val", "train", "all"}
    assert open_dataset("folder", own, "few").names == ["val/c", "d"]
    assert open_dataset("folder", own, "val").names == ["train/b"]
    listing(own / "splits" / "gone.txt", "nowhere")
    with pytest.raises(InputError, match=r"nowhere.jpg: no such file"):
        open_dataset("folder", own, "gone")[0]


def test_lists_may_come_from_other_systems(own):
    (own / "train.txt").write_bytes(b"\xef\xbb\xbftrain\\b.JPG\r\n\r\n  train/a  \r\n")
    (own / "splits").mkdir()
    (own / "splits" / "._train.txt").write_bytes(b"\0\5\x16\7")
    assert open_dataset("folder", own, "train").names == ["train/b", "train/a"]
    assert available_splits("folder", own) == ["train", "val", "all"]
    (own / "train.txt").write_bytes("train/a\n".encode("utf-16"))
    with pytest.raises(InputError, match=r"train.txt: cannot be read .it is not a text file in"):
        open_dataset("folder", own, "train")


def test_suffixes_may_be_in_upper_case(own):
    (own / "images" / "d.jpg").rename(own / "images" / "d.JPEG")
    (own / "labels" / "d.png").rename(own / "labels" / "d.PNG")
    data = open_dataset("folder", own, "all")
    assert np.unique(data[data.names.index("d")][1]).tolist() == [0, 1, 2]


def test_accents_are_the_same_however_a_system_stores_them(own):
    apart, whole = "Stra\u00dfe-e\u0301", "Stra\u00dfe-\u00e9"
    picture(own / "images" / apart / f"{apart}.jpg")
    label_map(own / "labels" / whole / f"{whole}.png", [1])
    label_map(own / "labels" / apart / "alone.png", [1])
    listing(own / "splits" / "few.txt", f"{apart}/{whole}.jpg")
    for split in ("few", apart, whole):
        data = open_dataset("folder", own, split)
        assert data.names == [f"{whole}/{whole}"]
        assert (data[0][1] == 1).all()
    assert [path.name for path in data.unpaired()] == ["alone.png"]
    assert whole in available_splits("folder", own)


def test_links_are_followed_and_not_in_circles(own, tmp_path_factory):
    for folder, file in (("images", "d.jpg"), ("labels", "d.png")):
        disk = tmp_path_factory.mktemp("disk")
        (own / folder / file).rename(disk / file)
        (own / folder / "far").symlink_to(disk)
        (disk / "back").symlink_to(own / folder)
    data = open_dataset("folder", own, "far")
    assert data.names == ["far/d"]
    assert np.unique(data[0][1]).tolist() == [0, 1, 2]


def test_a_link_that_leads_nowhere_is_a_missing_picture(own):
    (own / "images" / "train" / "gone.jpg").symlink_to(own / "nowhere.jpg")
    data = open_dataset("folder", own, "train")
    with pytest.raises(InputError, match=r"gone.jpg: no such file"):
        data[data.names.index("train/gone")]


@pytest.mark.parametrize("place", ["images/train", "labels/val", "splits"])
def test_a_folder_that_cannot_be_read_is_named_and_not_passed_over(own, monkeypatch, place):
    """chmod would not do: root reads every folder."""
    (own / "splits").mkdir()
    scan = os.scandir

    def guarded(path="."):
        if os.fspath(path) == str(own / place):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    def guarded_names(path="."):
        return [entry.name for entry in guarded(path)]

    monkeypatch.setattr(os, "scandir", guarded)
    monkeypatch.setattr(os, "listdir", guarded_names)
    with pytest.raises(InputError, match=f"{place}: cannot be read .Permission denied"):
        open_dataset("folder", own, "all")


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


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_small_grey_pngs_hold_indices_too(own, bits):
    """Decoders stretch grey PNGs of 2 and 4 bits to 0-255: label 1 of 2 bits becomes 85."""
    top = min(2**bits - 1, 2)
    values = np.resize(np.arange(top + 1), (20, 24))
    path = own / "labels" / "d.png"
    path.write_bytes(png(values[..., None], 0, bits))
    data = open_dataset("folder", own, "all")
    assert np.array_equal(data[data.names.index("d")][1], values)


def test_label_files_that_hold_no_indices_are_refused(own):
    path = own / "labels" / "d.png"
    data = open_dataset("folder", own, "all")
    index = data.names.index("d")
    for wrong, message in (
        (Image.new("RGB", (24, 20)), "a picture in colours.*classes.toml"),
        (Image.new("LA", (24, 20)), "pixels of type LA"),
        (Image.fromarray(np.full((20, 24), 1000, np.uint16)), "values from 1000 to 1000"),
    ):
        wrong.save(path)
        with pytest.raises(InputError, match=f"d.png: {message}"):
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
    assert caught.value.unknown == 3


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
    path.write_text("old tree 1 2 3\n\nRoute 66 4, 5, 600\n")
    with pytest.raises(InputError, match=r"classes.txt: line 3: .*three numbers from 0 to 255"):
        read_class_file(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[class]]\nname = 3", "name 3 must be a text"),
        ("[[class]]\nname = 'a'\nlabel = 300", "label 300 of a must be 0 to 255"),
        ("[[class]]\nname = 'a'\ncolour = [1, 2]", "three numbers from 0 to 255"),
        ("[[class]]\nname = 'a'\ncolor = [1, 2, 3]", "unknown entry 'color'"),
        ("[[classes]]\nname = 'a'", "unknown entry 'classes'"),
        ("class = 3", "class must be tables"),
        ("class = 'sky'", "class must be tables"),
        ("[class]\nname = 'a'", "class must be tables"),
        ("[[class]]\nlabel = 1", "name None must be a text"),
        ("[[class]]\nname = ''", "name '' must be a text"),
        ("[[class]]\nname = 'a'\nlabel = -1", "label -1 of a must be 0 to 255"),
        ("[[class]]\nname = 'a'\nlabel = '3'", "label '3' of a must be 0 to 255"),
        ("[[class]]\nname = 'a'\nlabel = 1.0", "label 1.0 of a must be 0 to 255"),
        ("[[class]]\nname = 'a'\ncolour = [1, 2, 256]", "three numbers from 0 to 255"),
        ("[[class]]\nname = 'a'\ncolour = 'red'", "three numbers from 0 to 255"),
        ("[palette]\n[[class]]\nname = 'a'", "unknown entry 'palette'"),
        ("class = []", "0 classes; expected 1 to 255"),
        ("ignore = [[1]]\n[[class]]\nname = 'a'", r"ignore: \[1\] must be 0-255"),
        ("ignore = 999\n[[class]]\nname = 'a'", "ignore: 999 must be 0-255"),
        ("ignore = 0\n[[class]]\nname = 'a'", "label 0 is a class .a. and ignored"),
        ("ignore_colours=[1]\n[[class]]\nname='a'\ncolour=[1,2,3]", "colour 1 must be three numb"),
        ("", "0 classes; expected 1 to 255"),
        ("[[class]\n", "not valid TOML"),
        ("ignore = 'x'\n[[class]]\nname = 'a'", "ignore: 'x' must be 0-255"),
        ("[[class]]\nname = 'a'\n[[class]]\nname = 'a'", "share one of their names"),
        ("[[class]]\nname='a'\nlabel=1\n[[class]]\nname='b'", "share one of their labels"),
        ("[[class]]\nname='a'\ncolour=[1,2,3]\n[[class]]\nname='b'", "needs a colour of its own"),
        ("[[class]]\nname='a'\nlabel=true", "label True of a must be 0 to 255"),
        ("ignore = true\n[[class]]\nname='a'", "ignore: True must be 0-255"),
        ("\n\n\n[[class]]\nname=\n", "not valid TOML .*line 5"),
        ("ignore_colours=[[0,0,0]]\n[[class]]\nname='a'", "ignore_colours without colours of"),
        (
            "ignore_colours=[[1,2,3]]\n[[class]]\nname='a'\ncolour=[1,2,3]",
            r"colour \[1, 2, 3\] is a class .a. and ignored",
        ),
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
    with pytest.raises(InputError, match=r"d.png: has the name of d.jpg; one picture"):
        open_dataset("folder", own, "all")
    picture(own / "images" / "train" / "a.bmp")
    with pytest.raises(InputError, match=r"d.png: has the name of d.jpg .and so on, 2 in all.;"):
        open_dataset("folder", own, "all")
