"""The figures of pictures in tiles: what is compared with what."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiles
from PIL import Image

from deeplab.data.scenes import scene
from deeplab.predict import Predictor
from deeplab.weights import SHIPPED, load_model


def test_scenes_lie_side_by_side(monkeypatch) -> None:
    monkeypatch.setattr(tiles, "CELL", 20)
    monkeypatch.setattr(tiles, "DISTINCT", 4)
    image = tiles.mosaic(50)
    assert image.shape == (50, 50, 3)
    assert np.array_equal(image[20:40, :20], scene(tiles.FIRST + 3, 20).image)
    assert np.array_equal(image[40:, 40:], scene(tiles.FIRST, 20).image[:10, :10])  # the ninth


def test_a_picture_that_the_command_has_taken_agrees_with_its_crops(tmp_path, monkeypatch) -> None:
    for name, value in {"CELL": 100, "AROUND": 16, "COMPARED": 17, "CROPS": 3}.items():
        monkeypatch.setattr(tiles, name, value)
    commands: list[list[str]] = []

    def segment(command: list[str], check: bool, preexec_fn: object) -> SimpleNamespace:
        commands.append(command)
        image = np.asarray(Image.open(tmp_path / "large.png"))
        labels = Predictor(load_model(SHIPPED), tile=65, overlap=16).labels(image)[0]
        Image.fromarray(labels).save(tmp_path / "large_labels.png")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr("subprocess.run", segment)
    found = tiles.large(150, tmp_path, tile=65, overlap=16)
    assert {"--tile", "65", "--overlap", "16", "--no-crf"} <= set(commands[0])
    assert found["peak_bytes"] >= 0
    shares = found["equal labels"]
    assert all(0.5 < share <= 1 for share in shares.values())
    assert "equal labels" not in tiles.large(150, tmp_path, "0.5", tile=65, overlap=16)
    wrong = np.full((150, 150), 255, np.uint8)
    shares = tiles.agreement(tiles.mosaic(150), wrong, 65, 16)["equal labels"]
    assert shares == {"away from seams": 0, "anywhere": 0}


def test_seams_are_told_of_network_and_crf(monkeypatch) -> None:
    monkeypatch.setattr(tiles, "CELL", 50)
    found = tiles.seams(16, tile=65)
    assert [(each["picture"], each["side"]) for each in found] == [
        ("one scene", 113),  # two tiles of 65 that share 17
        ("many scenes", 113),
    ]
    assert all(0.5 < each[share] < 1 for each in found for share in ("network", "refined"))
    (one,) = tiles.seams(16, tile=65, count=3, only="one scene")
    assert (one["tiles"], one["side"]) == (9, 161)


def test_seams_are_told_of_photographs_or_else_of_scenes(tmp_path, monkeypatch, capsys) -> None:
    for folder, suffix in {"camvid/images/val": "jpg", "cc0": "png", "pydensecrf": "png"}.items():
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(scene(0, (30, 40)).image).save(tmp_path / folder / f"im1.{suffix}")
    monkeypatch.setattr(tiles, "DATA", tmp_path)
    monkeypatch.setattr(tiles, "PHOTOGRAPH", (40, 30))
    found = tiles.seams(16, tile=65, weights=SHIPPED)
    assert [(each["picture"], each["crf"]) for each in found] == [
        (picture, crf)
        for picture in ("street scenes", "one street scene", "photographs")
        for crf in ("segment", "refine")
    ]
    monkeypatch.setattr(tiles, "DATA", tmp_path / "none")
    monkeypatch.setattr(tiles, "CELL", 50)
    found = tiles.seams(16, tile=65, weights=SHIPPED, only="many scenes")
    assert [each["picture"] for each in found] == ["many scenes"] * 2
    assert "no photographs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("peak", "share", "code"), [(4e9, 0.999, 0), (4.1e9, 0.999, 1), (4e9, 0.99, 1)]
)
def test_a_bar_that_is_missed_is_an_exit_code(tmp_path: Path, monkeypatch, peak, share, code):
    found = {"peak_bytes": peak, "equal labels": {"away from seams": share}}
    monkeypatch.setattr(tiles, "large", lambda *about, overlap: found)
    assert tiles.main(["large", "--out", str(tmp_path)]) == code
    assert len(list(tmp_path.iterdir())) == 1
