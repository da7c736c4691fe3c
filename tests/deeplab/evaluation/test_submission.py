"""Predictions as the sets' servers take them: folders, names, values, colours, archives."""

import fnmatch
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from dataset_files import label_map, listing, own_data, picture
from PIL import Image

from deeplab.data.datasets import open_dataset, open_pictures
from deeplab.data.outputs import voc_palette
from deeplab.errors import InputError
from deeplab.evaluation.submission import PredictionFiles

SIZE = (20, 24)  # of the pictures that dataset_files makes


@pytest.fixture
def voc(tmp_path):
    """A test split of two pictures, in the server's own download: without any labels."""
    root = tmp_path / "VOC2012"
    names = ("2008_000006", "2007_000032")
    for name in names:
        picture(root / "JPEGImages" / f"{name}.jpg")
    listing(root / "ImageSets" / "Segmentation" / "test.txt", *names)
    return open_pictures("voc2012", root, "test")


def cityscapes(root: Path) -> Path:
    """A test split of two cities; pictures alone."""
    for city, frame in (("berlin", 19), ("bielefeld", 321)):
        name = f"{city}_000000_{frame:06}_leftImg8bit.png"
        picture(root / "leftImg8bit" / "test" / city / name)
    return root


def every_class(classes: int) -> np.ndarray:
    labels: np.ndarray = np.resize(np.arange(classes, dtype=np.uint8), SIZE)
    return labels


def test_predictions_lie_where_the_voc_server_looks_with_vocs_colours(tmp_path, voc):
    labels = every_class(21)
    out = tmp_path / "up"
    files = PredictionFiles(out, voc, "test", voc.server)
    for index in range(2):
        files.write(index, labels)
    inside = "results/VOC2012/Segmentation/comp6_test_cls"
    found = sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*"))
    assert found == [f"{inside}/2007_000032.png", f"{inside}/2008_000006.png"]
    with Image.open(out / found[0]) as written:
        assert (written.mode, written.size) == ("P", SIZE[::-1])
        np.testing.assert_array_equal(np.asarray(written), labels)
        np.testing.assert_array_equal(np.asarray(written.convert("RGB")), voc_palette()[labels])
    (out / inside / "stray.png").write_bytes(b"")
    archive = files.pack()
    assert archive == out / "results.tgz"
    with tarfile.open(archive) as packed:
        assert packed.getnames() == found
        assert {(m.uid, m.uname, m.gname) for m in packed.getmembers()} == {(0, "", "")}
        member = packed.extractfile(found[1])
        assert member is not None
        assert member.read() == (out / found[1]).read_bytes()


def test_cityscapes_gets_grey_label_ids_under_names_that_its_script_finds(tmp_path):
    data = open_pictures("cityscapes", cityscapes(tmp_path / "data"), "test")
    files = PredictionFiles(tmp_path / "up", data, "test", data.server)
    for index in range(2):
        files.write(index, every_class(19))
    archive = files.pack()
    assert archive == tmp_path / "up" / "results.zip"
    with zipfile.ZipFile(archive) as packed:
        names = packed.namelist()
        # evalPixelLevelSemanticLabeling wants one file of this pattern for each picture
        for pattern in ("berlin_000000_000019*.png", "bielefeld_000000_000321*.png"):
            assert len(fnmatch.filter(names, pattern)) == 1
        assert len(names) == 2
        with packed.open(names[0]) as file, Image.open(file) as written:
            assert (written.mode, written.size) == ("L", SIZE[::-1])
            values = np.asarray(written)
    ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    np.testing.assert_array_equal(values, np.array(ids)[every_class(19)])


def test_label_maps_in_the_sets_own_values_read_back_as_the_classes(tmp_path):
    """Whatever the set stores: Cityscapes' ids, a class file's values, Context's other order."""
    own = own_data(tmp_path / "own")
    classes = (f"[[class]]\nname = 'c{v}'\nlabel = {v}\n" for v in (0, 255, 7))
    (own / "classes.toml").write_text("".join(classes))
    context = tmp_path / "VOC2010"
    picture(context / "JPEGImages" / "a.jpg")
    label_map(context / "59_context_labels" / "a.png", [0])
    listing(context / "ImageSets" / "Main" / "val.txt", "a")
    for name, root, split in (
        ("cityscapes", cityscapes(tmp_path / "city"), "test"),
        ("folder", own, "val"),
        ("pascal_context", context, "val"),
    ):
        data = open_pictures(name, root, split)
        files = PredictionFiles(tmp_path / name, data, split)
        labels = every_class(len(data.classes))
        files.write(0, labels)
        assert files.pack() == tmp_path / name
        np.testing.assert_array_equal(data.reader.read(files.files[0]), labels)
        with Image.open(files.files[0]) as written:
            colours = np.asarray(written.convert("RGB"))
        np.testing.assert_array_equal(colours, data.palette[labels])


def test_a_prediction_that_is_not_there_cannot_be_packed(tmp_path, voc):
    files = PredictionFiles(tmp_path / "up", voc, "test", voc.server)
    with pytest.raises(InputError, match=r"2007_000032\.png: cannot be packed .*one folder"):
        files.pack()
    assert not (tmp_path / "up").exists()


def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, voc):
    for name in ("../x", "/etc/x", "a/../../x"):
        voc.names[1] = name
        with pytest.raises(InputError, match="lead out of"):
            PredictionFiles(tmp_path / "up", voc, "test", voc.server)
    with pytest.raises(InputError, match="part of a folder's name"):
        PredictionFiles(tmp_path / "up", voc, "../val", voc.server)
    assert not (tmp_path / "up").exists()


def test_predictions_do_not_take_the_place_of_the_sets_own_files(tmp_path):
    data = open_dataset("folder", own_data(tmp_path), "val")
    (tmp_path / "link").symlink_to(tmp_path / "labels", target_is_directory=True)
    for folder in ("labels", "images/../labels", "link"):
        with pytest.raises(InputError, match=r"c\.png: belongs to .* choose another folder"):
            PredictionFiles(tmp_path / folder, data, "val")
    for folder in ("labels/val", "images/val/new"):
        with pytest.raises(InputError, match=r"c\.png: would lie among the files of .* val, and"):
            PredictionFiles(tmp_path / folder, data, "val")
    PredictionFiles(tmp_path / "labels" / "new", data, "val")
