"""The same regions marked for COCO, LabelMe and YOLO import to the label maps that they were."""

from pathlib import Path

import numpy as np
import pytest
from annotated import VOID, WRITERS, outlines, photo, stored

from deeplab.data.datasets import IGNORE, open_dataset
from deeplab.data.datasets.classes import CAMVID, CAMVID_VOID
from deeplab.data.datasets.folder import read_class_file
from deeplab.data.imports import Settings, import_annotations
from deeplab.data.scenes import scene

SHARED = Path(__file__).resolve().parents[5] / "shared" / "data" / "camvid"
CAMVID_PICTURES = 60


def beyond_a_pixel_of_a_border(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Where `ours` is a value that none of a pixel and its eight neighbours has in `theirs`."""
    height, width = theirs.shape
    padded = np.pad(theirs, 1, mode="edge")
    near = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return ~np.any([ours == one for one in near], axis=0)


def assert_imported(kind, tmp_path, pictures, names):
    """All label maps of `pictures` (file name: values, of which the last is ignored) come back."""
    source = WRITERS[kind](tmp_path, pictures, names)
    classes = tmp_path / "classes.txt"  # LabelMe has no list of classes
    classes.write_text("\n".join(names[:-1]) + "\n")
    settings = Settings(ignore=(VOID,), classes=classes)
    report = import_annotations(kind, source, tmp_path / "out", settings)
    assert report.classes == tuple(names[:-1])
    assert sum(report.pictures.values()) == len(pictures)
    assert (report.without, report.dropped, report.cut) == ([], {}, 0)
    folder = tmp_path / "out" / "labels" / ("train" if kind == "yolo" else "")
    for file, labels in pictures.items():
        expected = np.where(labels == len(names) - 1, IGNORE, labels)
        ours = stored(folder / f"{Path(file).stem}.png")
        assert not beyond_a_pixel_of_a_border(ours, expected).any()
        assert np.array_equal(ours, expected)  # and these outlines run between the pixels
    wanted = sum(len(outlines(labels)) for labels in pictures.values())
    assert sum(report.shapes.values()) == wanted


@pytest.mark.parametrize("kind", WRITERS)
def test_generated_scenes_come_back(kind, tmp_path):
    pictures = {}
    for seed in range(3):
        file = f"scene{seed}.png"
        photo(tmp_path / "images" / file, (41, 60), seed)
        labels = scene(seed, (41, 60)).labels.astype(np.uint8)
        labels[labels == IGNORE] = 11
        labels[5:9, 7:30] = 11
        pictures[file] = labels
    names = [f"class {i}" for i in range(11)] + [VOID]
    assert_imported(kind, tmp_path, pictures, names)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"CamVid is not in {SHARED}")
@pytest.mark.parametrize("kind", WRITERS)
def test_camvid_comes_back(kind, tmp_path):
    files = sorted((SHARED / "images" / "train").glob("*.jpg"))[::6][:CAMVID_PICTURES]
    assert len(files) == CAMVID_PICTURES
    (tmp_path / "images").mkdir()
    pictures = {}
    read = open_dataset("camvid", SHARED, "train").reader.read  # as the set itself is read
    for file in files:
        (tmp_path / "images" / file.name).symlink_to(file)
        own = read(SHARED / "labels" / "train" / f"{file.stem}.png")
        pictures[file.name] = np.where(own == IGNORE, CAMVID_VOID, own).astype(np.uint8)
    assert_imported(kind, tmp_path, pictures, [*CAMVID, VOID])


def test_the_names_and_colours_of_the_class_file_are_kept(tmp_path):
    file = "a.png"
    photo(tmp_path / "images" / file)
    labels = np.zeros((20, 24), np.uint8)
    labels[5:] = 1
    source = WRITERS["labelme"](tmp_path, {file: labels}, ["old tree", "water"])
    classes = tmp_path / "classes.txt"
    classes.write_text("water 0 0 200\nold tree 0 90 0\n")
    import_annotations("labelme", source, tmp_path / "out", Settings(classes=classes))
    described = read_class_file(tmp_path / "out" / "classes.toml")
    assert described.names == ("water", "old tree")
    assert described.palette.tolist() == [[0, 0, 200], [0, 90, 0]]
    assert np.array_equal(stored(tmp_path / "out" / "labels" / "a.png"), 1 - labels)


def test_outlines_of_the_tests_are_those_of_regions():
    """What the tests above rest on: a ring, its filling, two squares that touch at a corner."""
    labels = np.zeros((6, 6), np.uint8)
    labels[1:5, 1:5] = 1
    labels[2:4, 2:4] = 2
    labels[4, 4], labels[5, 5] = 0, 1
    found = {(value, tuple(border)) for value, border in outlines(labels)}
    assert (2, ((2, 2), (4, 2), (4, 4), (2, 4))) in found
    assert (1, ((5, 5), (6, 5), (6, 6), (5, 6))) in found
    assert sum(value == 1 for value, _ in found) == 2
    assert all(border[0] != border[-1] for _, border in found)
