"""`deeplab segment` on folders: subfolders, what is skipped, what is left when it ends early."""

import csv
import json
import re
from pathlib import Path

import pytest
from commands import assert_refused, done, files, picture, press_ctrl_c, run
from PIL import Image

from deeplab.cli.shared.results import PictureFiles
from deeplab.data.images import read_image
from deeplab.data.scenes import CLASSES


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("b.png", "a.png", "s/a.png", "s/a.jpg"):
        picture(tmp_path / "photos" / name, 20, 24)
    return tmp_path / "photos"


def test_results_lie_in_the_subfolders_of_the_pictures(photos, tmp_path, weights):
    arguments = ["segment", photos, "--weights", weights, "--no-crf", "--recursive"]
    arguments += ["--out", tmp_path / "out", "--manifest", tmp_path / "m.csv"]
    result = done(*arguments)
    assert "4 of 4 pictures segmented; " in result.stdout
    labels = [name for name in files(tmp_path / "out") if name.endswith("_labels.png")]
    assert labels == [f"{n}_labels.png" for n in ("a", "b", "s/a-jpg", "s/a-png")]
    with (tmp_path / "m.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [
        f"{photos}/{name}" for name in ("a.png", "b.png", "s/a.jpg", "s/a.png")
    ]
    for row in rows:
        assert (row["width"], row["height"]) == ("24", "20")
        shares = json.loads(row["shares"])
        assert set(shares) <= set(CLASSES)
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    (tmp_path / "out" / "s" / "a-png_overlay.png").unlink()
    (tmp_path / "m.csv").unlink()
    again = done(*arguments, "--skip-existing")
    assert "1 of 4 pictures segmented, 3 there before; " in again.stdout
    with (tmp_path / "m.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["shares"] for row in found] == [row["shares"] for row in rows]
    assert [row["notes"] for row in found] == ["there before"] * 3 + [""]


def test_broken_pictures_are_left_out_on_request_and_nothing_is_read_twice(
    photos, tmp_path, weights, monkeypatch
):
    (photos / "c.png").write_bytes((photos / "b.png").read_bytes()[:-100])
    Image.open(photos / "b.png").convert("L").save(photos / "b.png")
    read: list[str] = []

    def counted(path: Path, *more: object) -> object:
        read.append(path.stem)
        return read_image(path, *more)

    monkeypatch.setattr("deeplab.data.bands.read_image", counted)
    options = ["--weights", weights, "--no-crf", "--out", tmp_path / "out"]
    result = done("segment", photos, *options, "--skip-broken")
    assert "2 of 3 pictures segmented, 1 left out as broken; " in result.stdout
    assert re.fullmatch(
        "Left out: .*c.png: .*truncated.*\nNote: .*b.png: grey converted.*\n", result.stderr
    )
    assert "".join(read) == "abc"
    assert_refused(tmp_path, "c.png: .*truncated", "segment", photos, *options, "--skip-existing")
    assert "".join(read) == "abcc"


def test_ctrl_c_finishes_the_picture_in_hand(photos, tmp_path, weights, monkeypatch):
    write, presses = PictureFiles.write, [press_ctrl_c]

    def interrupted(self: PictureFiles, *more: object, **how: bool) -> None:
        if presses:
            presses.pop()()
        write(self, *more, **how)

    monkeypatch.setattr(PictureFiles, "write", interrupted)
    result = run(
        *("segment", photos, "--recursive", "--weights", weights, "--no-crf"),
        *("--out", tmp_path / "out"),
    )
    assert result.exit_code == 130
    assert result.stderr.endswith("Stopped; the same command with --skip-existing goes on.\n")
    whole = [name for name in files(tmp_path / "out") if name.endswith("_overlay.png")]
    assert f"{len(whole)} of 4 pictures segmented; " in result.stdout
    assert 1 <= len(whole) < 4


def test_subfolders_are_of_one_folder_apart_from_the_results(photos, tmp_path, weights):
    for message, *arguments in (
        ("--recursive: only counts with one folder", photos / "a.png"),
        ("--recursive: only counts with one folder", photos, photos / "s"),
        ("--out .* must be a folder outside of .*photos", photos, "--out", photos / "out"),
    ):
        arguments += ["--weights", weights, "--recursive"]
        assert_refused(tmp_path, message, "segment", *arguments)
