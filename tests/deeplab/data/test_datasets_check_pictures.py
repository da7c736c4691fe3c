"""`deeplab data check` on pictures: what was converted, and which have nearly no contrast."""

import json

import numpy as np
import pytest
from commands import done, run
from dataset_files import label_map
from picture_files import save, turned

from deeplab.data.datasets import open_dataset
from deeplab.data.datasets.check import FLAT, check


@pytest.fixture
def own(tmp_path):
    """Six pictures of noise with labels: a to e, turned by EXIF those up to d; f is grey."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for name, orientation in zip("abcdef", (3, 2, 3, 4, 1, 1), strict=True):
        shape = (20, 24) if name == "f" else (20, 24, 3)
        noise = rng.integers(0, 256, shape, dtype=np.uint8)
        save(tmp_path / "images" / f"{name}.png", noise, exif=turned(orientation))
        label_map(tmp_path / "labels" / f"{name}.png", [0, 1])
    (tmp_path / "classes.txt").write_text("left\nright\n")
    return tmp_path


def test_turned_pictures_are_counted_with_examples_and_are_no_finding(own):
    result = done("data", "check", "folder", own, "--json", own / "report.json")
    images = own / "images"
    turned = (
        "turned upright, as its EXIF orientation (3) says; labels have to fit the turned picture"
    )
    others = f"{images / 'b.png'}, {images / 'c.png'}"
    line = f"4 pictures, such as {images / 'a.png'}: {turned}; also {others}\n"
    assert line in result.stdout
    assert f"\n{images / 'f.png'}: grey converted to RGB\n" in result.stdout
    assert "6 pictures, nothing to mend" in result.stdout
    stored = json.loads((own / "report.json").read_text())["splits"]["all"]["conversions"]
    kinds = [(kind["kind"], kind["pictures"]) for kind in stored]
    assert kinds == [("EXIF turn", 4), ("grey converted to RGB", 1)]
    assert stored[1]["example"] == f"{images / 'f.png'}: grey converted to RGB"


def test_pictures_of_nearly_no_contrast_are_findings(own):
    y, x = np.mgrid[:20, :24]
    faint = np.stack([120 + (x + y) % 5, np.full((20, 24), 7), 200 + (y & 1)], axis=-1)
    save(own / "images" / "a.png", faint.astype(np.uint8))
    save(own / "images" / "b.png", np.where(faint < 50, 0, 255).astype(np.uint8))
    dot = np.zeros((20, 24, 3), np.uint8)
    dot[3, 4] = 255  # little of the picture, but not lost
    save(own / "images" / "c.png", dot)
    save(own / "images" / "d.png", (x * y).astype(np.uint16))  # below 512 of 65536
    hidden = np.random.default_rng(0).integers(0, 256, (20, 24, 4), dtype=np.uint8)
    hidden[..., 3] = 0
    save(own / "images" / "e.png", hidden)
    result = run("data", "check", "folder", own)
    assert result.exit_code == 1
    findings = check(open_dataset("folder", own, "all"), 0).findings
    assert [finding.kind for finding in findings] == ["contrast"] * 4
    said = (
        "nearly one colour, RGB 122, 7, 200",
        "one colour, RGB 255, 0, 255",
        "below 512",
        "alpha",
    )
    for finding, name, words in zip(findings, "abde", said, strict=True):
        assert f"{name}.png: " in finding.message
        assert words in finding.message
        assert finding.message in result.stdout
    assert "Pictures of nearly no contrast (4):" in result.stdout


@pytest.mark.parametrize(("spread", "found"), [(2, 1), (4, 0)])
def test_contrast_is_the_deviation_of_the_channel_that_varies_most(own, spread, found):
    values = np.full((20, 24, 3), 100, np.uint8)
    values[..., 1] += spread * (np.indices((20, 24)).sum(0) % 2 * 2).astype(np.uint8)
    assert values[..., 1].std() == spread
    assert 2 < FLAT < 4
    save(own / "images" / "a.png", values)
    assert len(check(open_dataset("folder", own, "all"), 0).findings) == found
