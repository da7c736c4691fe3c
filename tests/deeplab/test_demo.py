"""The demo: its scribbles, scores and picture, and the whole of it with the shipped weights."""

import io
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from deeplab import demo, photographs
from deeplab.data.annotations import read_colours
from deeplab.data.scenes import CLASSES, PALETTE, TEST_START, scene
from deeplab.refine import refine_scribbles


def case(name: str, before: np.ndarray, after: np.ndarray, size: int = 48) -> demo.Example:
    image = np.full((size, size, 3), 90, np.uint8)
    truth = np.zeros((size, size), np.uint8)
    truth[:, size // 2 :] = 3
    return demo.Example(name, image, truth, before, after)


@pytest.fixture
def halves():
    """Half sky, half building; before the CRF a sixth is wrong, after it a twelfth."""
    before = np.zeros((48, 48), np.uint8)
    before[:, 32:] = 3
    after = np.zeros((48, 48), np.uint8)
    after[:, 20:] = 3
    return case("scene 1", before, after)


def lines_of(cases: list[demo.Example]) -> dict[str, list[str]]:
    text = io.StringIO()
    Console(file=text, width=100).print(demo.table(cases))
    cells = [re.findall(r"[\w.+-]+(?: \d+)?", line) for line in text.getvalue().splitlines()]
    return {row[0]: row[1:] for row in cells if row}


def test_the_demo_uses_the_first_scenes_of_the_test_split():
    assert (*demo.SCENES, demo.SCRIBBLED) == tuple(range(TEST_START, TEST_START + 4))


def test_scribbles_mark_few_pixels_of_every_class_and_mostly_right():
    truth = scene(demo.SCRIBBLED).labels
    strokes = demo.scribbles(truth, np.random.default_rng(0))
    marked = strokes != 255
    assert 0.01 < marked.mean() < 0.1
    assert set(np.unique(strokes[marked])) == set(np.unique(truth))
    assert (strokes == truth)[marked].mean() > 0.9
    assert np.array_equal(strokes, demo.scribbles(truth, np.random.default_rng(0)))


def test_scribbles_stay_on_the_page_of_tiny_regions():
    truth = np.zeros((9, 7), np.uint8)
    truth[8, 6] = 2
    strokes = demo.scribbles(truth, np.random.default_rng(0))
    assert set(np.unique(strokes)) <= {0, 2, 255}
    assert (strokes == 2).any()


def test_scribbles_alone_recover_most_of_the_scene():
    found = demo.scribbled_scene()
    assert demo.miou([(found.truth, found.after)]) > 0.6
    assert (found.after == found.truth).mean() > 0.9


def test_the_table_has_a_line_for_each_scene_and_one_in_total(halves):
    truth = halves.truth
    perfect = case("scene 2", truth, truth)
    rows = lines_of([halves, perfect])
    assert rows["scene"] == ["before", "after", "gain"]
    # Of 48 columns 24 are of each class. Before: 24 / 32 and 16 / 24; after: 20 / 24 and 24 / 28.
    assert rows["scene 1"] == ["70.83", "84.52", "+13.69"]
    assert rows["scene 2"] == ["100.00", "100.00", "+0.00"]
    # Over both: (24 + 24) / (32 + 24) and (16 + 24) / (24 + 24), then 44 / 48 and 48 / 52.
    assert rows["total"] == ["84.52", "91.99", "+7.46"]


def test_the_picture_shows_truth_labels_and_errors_side_by_side(halves):
    strokes = np.full((48, 48), 255, np.uint8)
    strokes[5:8, 5:20] = 0
    scribbled = case("scene 3", strokes, halves.after)
    page = demo.picture([halves], scribbled)
    lefts = [demo.GAP + i * (48 + demo.GAP) for i in range(5)]

    def cell(column: int, top: int) -> np.ndarray:
        return page[top : top + 48, lefts[column] : lefts[column] + 48]

    top = demo.HEAD
    assert np.array_equal(cell(0, top), halves.image)
    assert np.array_equal(cell(1, top), PALETTE[halves.truth])
    assert np.array_equal(cell(2, top), PALETTE[halves.before])
    assert np.array_equal(cell(3, top), PALETTE[halves.after])
    errors = cell(4, top)[10]
    assert (errors[20:24] == demo.BROKEN).all()
    assert (errors[24:32] == demo.MENDED).all()
    grey = np.r_[errors[:20], errors[32:]]
    assert (grey == grey[0, 0]).all()

    below = 2 * demo.HEAD + 48 + demo.CAPTION + demo.GAP
    assert (cell(2, below)[6, 5:20] == PALETTE[0]).all()
    assert np.array_equal(cell(3, below), PALETTE[halves.after])
    assert (cell(4, below)[10, 20:24] == demo.WRONG).all()


def test_legends_and_captions_fit_the_page_of_the_demo():
    """Nothing is drawn over the page's border, where it would be cut off."""
    truth = scene(demo.SCRIBBLED).labels
    blank = demo.Example("scene 10000000", np.full((*truth.shape, 3), 99, np.uint8), *[truth] * 3)
    page = demo.picture([blank], blank)
    border = np.concatenate([page[:3].reshape(-1, 3), page[-3:].reshape(-1, 3)])
    sides = np.concatenate([page[:, :3].reshape(-1, 3), page[:, -3:].reshape(-1, 3)])
    assert (np.concatenate([border, sides]) == 255).all()
    legend = page[-demo.LEGEND :].reshape(-1, 3)
    shown = {tuple(c) for c in np.unique(legend, axis=0).tolist()}
    assert {tuple(c) for c in PALETTE[: len(CLASSES)].tolist()} <= shown
    assert {demo.WRONG, demo.MENDED, demo.BROKEN} <= shown


def test_the_demo_with_the_shipped_weights_shows_a_gain_and_leaves_its_files(tmp_path):
    """Fails, and does not skip, where the package comes without its weights."""
    text = io.StringIO()
    demo.run(tmp_path, Console(file=text, width=100))
    rows = [line.split() for line in text.getvalue().splitlines()]
    (total,) = [row for row in rows if "total" in row]
    before, after = (float(word) for word in total if re.fullmatch(r"\d+\.\d+", word))
    assert after > before > 30
    assert "before" in text.getvalue()
    assert f"deeplab refine {tmp_path}" in text.getvalue()
    assert (tmp_path / "photograph.png").is_file()
    with Image.open(tmp_path / "demo.png") as page:
        assert page.width > 5 * 321
        assert page.height > 4 * 321

    photo, marks = (tmp_path / "scribbles" / name for name in ("photo.png", "marks.png"))
    image = np.asarray(Image.open(photo))
    annotation = read_colours(marks, image.shape[:2])
    again = annotation.colours[refine_scribbles(annotation, image).labels]
    assert np.array_equal(again, PALETTE[demo.scribbled_scene().after])


def test_the_strokes_on_the_photograph_are_few_and_the_crf_keeps_nearly_all_of_them() -> None:
    image, annotation = photographs.coffee()
    marked = annotation.labels > 0
    assert annotation.num_labels == 6  # cup, coffee, saucer, spoon, table and what lies behind it
    assert 0.02 < marked.mean() < 0.12
    labels = refine_scribbles(annotation, image, photographs.SETTINGS).labels + 1
    assert (labels == annotation.labels)[marked].mean() > 0.97
    # A point of each, away from every stroke: (y, x).
    places = {(45, 230): "cup", (160, 290): "coffee", (270, 130): "saucer", (260, 370): "spoon"}
    assert len({labels[place] for place in places}) == len(places)


def test_the_picture_of_the_photograph_has_it_at_the_left_and_changes_the_rest() -> None:
    image, _ = photographs.coffee()
    page = photographs.picture()
    height, width, _ = image.shape
    assert page.shape == (height, 3 * width + 2 * photographs.GAP, 3)
    assert np.array_equal(page[:, :width], image)
    assert not np.array_equal(page[:, -width:], image)
