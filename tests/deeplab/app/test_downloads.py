"""What the page hands out, and that its program makes the same mask."""

import io
import re
import runpy
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import done
from PIL import Image
from running_app import SETTINGS, halves, softmax

from deeplab.app.downloads import KINDS, LONGEST_NAME, classes_of, download
from deeplab.app.refining import Problem, Wish, refined
from deeplab.crf_settings import CRFSettings
from deeplab.errors import InputError

WISH = Wish.of(SETTINGS)
CLASSES = classes_of(
    [
        {"name": "sky", "colour": [10, 20, 200]},
        {"name": "unused", "colour": [0, 0, 0]},
        {"name": "ground", "colour": [200, 90, 0]},
    ]
)


def scribbled() -> Problem:
    """Classes 0 and 2 have strokes, 1 has none."""
    image, marks = halves(20, 32)
    return Problem(image, np.where(marks == 1, 2, marks).astype(np.uint8))


def of_a_network() -> Problem:
    return replace(scribbled(), probabilities=softmax(20, 32, 3))


@pytest.mark.parametrize("problem", [scribbled(), of_a_network()], ids=["scribbles", "network"])
@pytest.mark.parametrize("method", ["permutohedral", "exact"])
def test_the_program_makes_the_bytes_of_the_mask(
    problem: Problem, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = Wish.of({**SETTINGS, "method": method, "gt_prob": 0.8})
    archive = zipfile.ZipFile(io.BytesIO(download("everything.zip", problem, wish, CLASSES)))
    archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("reproduce.py")
    assert (tmp_path / "labels.png").read_bytes() == (tmp_path / "mask.png").read_bytes()
    mask = np.array(Image.open(tmp_path / "mask.png"))
    assert np.array_equal(mask, refined(problem, wish).labels)
    assert len(np.unique(mask)) > 1
    told = (tmp_path / "crf.toml").read_text()
    found = re.search(r"^# deeplab (refine .*)$", told, re.MULTILINE)
    if method == "exact":
        assert found is None
        assert told.startswith("# No command filters by the method exact; reproduce.py does.")
        return
    assert found is not None
    done(*found[1].split(), "--out", "by_command.png")
    by_command = np.array(Image.open(tmp_path / "by_command.png"))
    assert np.array_equal(problem.classes[by_command], mask)


def test_what_was_painted_reads_by_colours_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a class is black, as unsure pixels are, and two classes have one colour."""
    black, blue = {"name": "a", "colour": [0, 0, 0]}, {"name": "b", "colour": [0, 0, 1]}
    image, marks = halves(20, 32)
    marks[12:15, 3] = 2
    problem = Problem(image, marks)
    content = download("everything.zip", problem, WISH, classes_of([black, black, blue]))
    zipfile.ZipFile(io.BytesIO(content)).extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    done("refine", "photo.png", "marks.png", "--crf-settings", "crf.toml", "--out", "labels.png")
    found, mask = (np.array(Image.open(tmp_path / f"{name}.png")) for name in ("labels", "mask"))
    assert np.array_equal(found, mask)


def test_the_program_is_short_and_imports_only_what_it_uses() -> None:
    image, marks = halves()
    text = download("reproduce.py", Problem(image, marks), WISH, CLASSES).decode()
    body = text.partition("\n\n")[2].splitlines()
    assert len(body) <= 10
    assert "torch" not in text
    assert "np." not in text
    assert "refine_scribbles(given, image, settings, 0.7)" in text
    assert text.startswith("# Runs beside photo.png and marks.png, which everything.zip has")


def test_settings_are_read_back(tmp_path: Path) -> None:
    file = tmp_path / "crf.toml"
    file.write_bytes(download("crf.toml", scribbled(), WISH, CLASSES))
    assert CRFSettings.from_toml(file) == WISH.settings


def test_the_overlay_has_a_legend_below_the_photograph() -> None:
    picture = Image.open(io.BytesIO(download("overlay.png", scribbled(), WISH, CLASSES)))
    assert picture.width >= 32
    assert picture.height > 20


def test_the_mask_has_the_colours_of_the_classes() -> None:
    mask = Image.open(io.BytesIO(download("mask.png", scribbled(), WISH, CLASSES)))
    assert mask.mode == "P"
    colours = np.reshape(mask.getpalette("RGB"), (-1, 3))[:3]
    assert colours.tolist() == [[10, 20, 200], [0, 0, 0], [200, 90, 0]]


def test_what_cannot_be_handed_out_says_why() -> None:
    with pytest.raises(InputError, match=f"file must be one of {', '.join(KINDS)}, not x"):
        download("x", scribbled(), WISH, CLASSES)
    few = classes_of([{"name": "a", "colour": [1, 2, 3]}])
    with pytest.raises(InputError, match="classes must be names and colours of 3, not 1"):
        download("mask.png", scribbled(), WISH, few)
    many = classes_of([{"name": "a", "colour": [1, 2, 3]}] * 4)
    with pytest.raises(InputError, match="names and colours of 3, not 4"):
        download("everything.zip", of_a_network(), WISH, many)


@pytest.mark.parametrize(
    "given",
    [
        None,
        [],
        ["sky"],
        [{"name": "sky"}],
        [{"name": 1, "colour": [0, 0, 0]}],
        [{"name": "sky", "colour": [0, 0, 256]}],
        [{"name": "sky", "colour": [0, True, 0]}],
        [{"name": "sky", "colour": [0, 0]}],
        [{"name": "sky", "colour": [0, 0, 0]}] * 257,
    ],
)
def test_classes_that_are_none_are_refused(given: object) -> None:
    with pytest.raises(InputError, match="classes must"):
        classes_of(given)


def test_names_of_classes_are_one_short_line() -> None:
    found = classes_of(
        [{"name": "a\n b" + 99 * "x", "colour": [0, 0, 0]}, {"name": " ", "colour": [0, 0, 0]}]
    )
    assert found.names is not None
    assert found.names[0].startswith("a bxx")
    assert len(found.names[0]) == LONGEST_NAME
    assert found.names[1] == "class 1"
