"""`deeplab data import`: a folder of annotations becomes a data set, told in full and checked."""

import json

import numpy as np
import pytest
from annotated import photo, stored
from commands import assert_refused, done, run

from deeplab.data.imports import FORMATS

CAT = [[2, 3], [6, 3], [6, 8], [2, 8]]


@pytest.fixture
def marked(tmp_path):
    """Pictures of two films in LabelMe's JSON, a cat in each but the last."""
    (tmp_path / "in").mkdir()
    for index in range(6):
        name = f"film{index // 3}_{index}"
        photo(tmp_path / "in" / f"{name}.jpg", seed=index)
        cat = {"label": "cat", "points": CAT if index else [[-9, 3], [6, 3], [6, 8], [-9, 8]]}
        line = {"label": "cat", "points": CAT[:2], "shape_type": "line"}
        content = {"imagePath": f"{name}.jpg", "imageHeight": 20, "imageWidth": 24}
        content["shapes"] = [cat, line] if index < 5 else []
        (tmp_path / "in" / f"{name}.json").write_text(json.dumps(content))
    return tmp_path / "in"


def test_it_imports_reports_and_checks(marked, tmp_path):
    options = ["--unlabelled", "background", "--split", 0.5, "--group", "^[^_]+", "--link"]
    said = done("data", "import", "labelme", marked, tmp_path / "out", *options).stdout
    for line in (
        "6 pictures imported",
        "splits: train 3, val 3",
        "nothing marked in 1: film1_5.jpg",
        "left out: 5 lines and points, which have no area",
        "cut at the border: 1 shape that reaches beyond the picture",
        "folder, train, val: 6 pictures, nothing to mend",
        f"train on it with: deeplab train --data folder --root {tmp_path / 'out'} --weights ",
    ):
        assert line in said
    rows = [line.split() for line in said.splitlines() if "cat" in line]
    assert ["│", "cat", "│", "5", "│", "5", "│"] in rows
    films = {
        path.name.split("_")[0]: path.parent.name
        for path in sorted((tmp_path / "out" / "labels").rglob("*.png"))
    }
    assert sorted(films.values()) == ["train", "val"]
    labels = stored(tmp_path / "out" / "labels" / films["film1"] / "film1_4.png")
    assert np.array_equal(np.argwhere(labels == 1)[[0, -1]], [[3, 2], [7, 5]])


def test_one_class_alone_is_a_finding_with_the_way_out(marked, tmp_path):
    result = run("data", "import", "labelme", marked, tmp_path / "out")
    assert result.exit_code == 1
    assert "no splits; --split 0.8 makes train and val" in result.stdout
    assert "--unlabelled background makes them a class" in result.stdout
    assert "cat is the only class" in result.stdout
    assert (tmp_path / "out" / "classes.toml").is_file()


def test_what_cannot_be_imported_is_one_line_and_leaves_nothing(marked, tmp_path):
    command = ["data", "import", "labelme", marked]
    assert_refused(tmp_path, "in: is there already", *command, marked)
    assert_refused(tmp_path, "no format 'png'", "data", "import", "png", marked, tmp_path / "out")
    (marked / "film0_0.json").write_text('{"shapes": [')
    assert_refused(tmp_path, r"film0_0.json: not valid JSON", *command, tmp_path / "out")


def test_help_names_every_format_and_shows_examples():
    text = done("data", "import", "--help").stdout
    assert all(kind in text for kind in FORMATS)
    assert "deeplab data import labelme" in text
    assert "import" in done("data", "--help").stdout
