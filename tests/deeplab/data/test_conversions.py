"""What reading changed in pictures: carried through data sets and workers, told once, counted."""

import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import done
from picture_files import save, turned
from PIL import Image
from tiny_training import TINY, own_data, run

from deeplab.data.conversions import Conversion, counted
from deeplab.data.datasets import open_dataset
from deeplab.data.datasets.base import LabelledPicture, Recording, conversions_of
from deeplab.model import deeplab_v2_small
from deeplab.weights import save_weights

GREY = "grey converted to RGB"


@pytest.fixture
def own(tmp_path):
    """Four pictures of two classes: p and q grey, r turned by EXIF (180 degrees), s plain."""
    (tmp_path / "data").mkdir()
    own_data(tmp_path / "data")
    for name, mode, exif in (("p", "L", None), ("q", "L", None), ("r", "RGB", turned(3))):
        path = tmp_path / "data" / "images" / f"{name}.png"
        with Image.open(path) as image:
            image.convert(mode).save(path, exif=exif)
    return tmp_path / "data"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_weights(deeplab_v2_small(2), path, {"class_names": ["a", "b"]})
    return path


def notes(text: str) -> list[str]:
    return [line for line in text.splitlines() if "converted" in line or "EXIF" in line]


def assert_told(lines: list[str], images: Path, suffix: str = "") -> None:
    """Two lines: of two grey pictures, and of the one that is turned."""
    assert len(lines) == 2, lines
    assert lines[0] == f"Note: 2 pictures, such as {images / 'p.png'}: {GREY}{suffix}"
    assert lines[1].startswith(f"Note: {images / 'r.png'}: turned upright, as its EXIF orientation")
    assert lines[1].endswith(f"labels have to fit the turned picture{suffix}")


def test_each_kind_is_one_line_with_its_number_and_an_example():
    many = [Conversion(f"{name}.png", "grey", "is grey") for name in "cabb"]
    one = Conversion("b\n.png", "frames", "the first of 3 frames is used")
    assert counted([*many, one]) == [
        "3 pictures, such as a.png: is grey",
        "b .png: the first of 3 frames is used",
    ]
    assert counted(many, examples=2) == ["3 pictures, such as a.png: is grey; also b.png"]
    assert counted([]) == []


def test_a_pair_of_a_data_set_knows_its_conversions_in_other_processes_too(own):
    pair = open_dataset("folder", own, "all")[0]
    image, labels = pair
    assert (image.shape, labels.shape) == ((40, 50, 3), (40, 50))
    assert conversions_of(pair) == (Conversion(str(own / "images" / "p.png"), GREY, GREY),)
    again = pickle.loads(pickle.dumps(pair))
    assert isinstance(again, LabelledPicture)
    assert conversions_of(again) == conversions_of(pair)
    np.testing.assert_array_equal(again[0], image)


def test_plain_pairs_and_wrappers_of_ones_own_keep_working(own):
    plain = [(np.zeros((3, 4, 3), np.uint8), np.zeros((3, 4), np.uint8))]
    recorded = Recording(plain)
    assert recorded[0] is plain[0]
    assert recorded.conversions == set()
    subset = Recording(torch.utils.data.Subset(open_dataset("folder", own, "all"), [2, 3]))
    for index in (0, 1, 0):
        subset[index]
    assert [Path(c.file).name for c in subset.conversions] == ["r.png"]


@pytest.mark.parametrize(
    "changes", [{}, {"workers": 1}, {"in_memory": True}, {"skip_broken": True}], ids=str
)
def test_a_training_tells_each_kind_once_with_the_number_of_pictures(own, capsys, changes):
    """Two epochs, and the pictures read again for each validation."""
    config = replace(TINY, steps=4, validate_every=2, **changes)
    data = open_dataset("folder", own, "all")
    result = run(config, data, validation=data, class_names=["a", "b"])
    assert_told(notes(capsys.readouterr().err), own / "images")
    assert [Path(c.file).name for c in result.conversions] == ["p.png", "q.png", "r.png"]


def test_a_training_tells_what_it_has_read_at_the_first_validation(own, capsys):
    """Before the first epoch is over; kinds that come later are told then."""
    data = open_dataset("folder", own, "all")
    grey, turned = (torch.utils.data.Subset(data, chosen) for chosen in ([0, 1], [0, 1] + [2] * 9))
    config = replace(TINY, steps=9, batch_size=2, validate_every=1)
    run(config, turned, validation=grey, class_names=["a", "b"])
    first, second = notes(capsys.readouterr().err)
    assert first.startswith("Note: 2 pictures, such as ")
    assert first.endswith(f"p.png: {GREY} (so far)")
    assert "r.png: turned upright" in second


def test_a_training_of_several_processes_counts_the_pictures_of_all(own, capsys, monkeypatch):
    other = Conversion("other.png", GREY, GREY)

    def gather(self, value):
        return [value, {other}] if isinstance(value, set) else [value]

    monkeypatch.setattr("deeplab.distributed.Processes.gather", gather)
    data = open_dataset("folder", own, "all")
    result = run(replace(TINY, steps=2), data, validation=data, class_names=["a", "b"])
    assert "Note: 3 pictures, such as " in capsys.readouterr().err
    assert other in result.conversions


def test_evaluate_tells_each_kind_once(own, weights):
    data = ["--data", "folder", "--root", own, "--split", "all"]
    result = done("evaluate", "--weights", weights, *data, "--no-crf")
    assert_told(notes(result.stderr), own / "images")


def test_predictions_without_scores_tell_each_kind_once(own, tmp_path):
    voc = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    for name in "pqrs":
        with Image.open(own / "images" / f"{name}.png") as image:
            image.save(voc / "JPEGImages" / f"{name}.jpg", exif=image.getexif())
    (voc / "ImageSets" / "Segmentation" / "test.txt").write_text("p\nq\nr\ns\n")
    weights = tmp_path / "w.safetensors"
    save_weights(deeplab_v2_small(21), weights)
    given = ["--weights", weights, "--data", "voc2012", "--root", voc, "--split", "test"]
    given += ["--no-crf", "--no-score", "--submission", tmp_path / "up"]
    first, second = notes(done("evaluate", *given).stderr)
    assert first == f"Note: 2 pictures, such as {voc / 'JPEGImages' / 'p.jpg'}: {GREY}"
    assert "r.jpg: turned upright" in second


def test_tune_crf_tells_each_kind_once_also_when_the_logits_are_there(own, weights, tmp_path):
    given = ["--weights", weights, "--data", "folder", "--root", own, "--split", "all"]
    given += ["--out", tmp_path / "crf", "--folds", 2, "--rounds", 0, "--iterations", 1]
    given += ["--bilateral-weight", "3", "--bilateral-sigma-xy", "20", "--bilateral-sigma-rgb", "5"]
    for _ in range(2):
        assert_told(notes(done("tune-crf", *given).stderr), own / "images")


def test_segment_tells_each_kind_once(own, weights, tmp_path):
    out = ["--out", tmp_path / "out", "--no-crf"]
    result = done("segment", own / "images", "--weights", weights, *out)
    assert_told(notes(result.stderr), own / "images")
    alone = done("segment", own / "images" / "q.png", "--weights", weights, *out)
    assert alone.stderr == f"Note: {own / 'images' / 'q.png'}: {GREY}\n"


def test_refine_tells_how_the_picture_and_the_annotation_were_read(tmp_path):
    photo, marks = tmp_path / "photo.png", tmp_path / "marks.png"
    shades = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    save(photo, shades)
    drawn = np.zeros((20, 30, 3), np.uint8)
    drawn[:9, :9], drawn[11:, 20:] = (255, 0, 0), (0, 0, 255)
    save(marks, drawn, exif=turned(3))
    told = done("refine", photo, marks, "--out", tmp_path / "out").stderr.splitlines()
    assert len(told) == 2
    assert told[0] == f"Note: {photo}: {GREY}"
    assert re.match(r"Note: .*marks.png: turned upright, as its EXIF orientation \(3\)", told[1])
