"""The example for Ray, on a local one: its files are those of `deeplab segment`."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import done, picture
from picture_files import turned
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "ray_segment.py"
DOCUMENT = ROOT / "docs" / "ray.md"

# With one core, on which reading, segmenting and writing have to get along.
PROGRAM = f"""
import functools, runpy, ray
ray.init = functools.partial(ray.init, num_cpus=1, include_dashboard=False)
runpy.run_path({str(EXAMPLE)!r}, run_name="__main__")
ray.shutdown()
ray.init(num_cpus=2)
runpy.run_path("document.py")
"""


@pytest.fixture(autouse=True)
def ray_is_there() -> None:
    pytest.importorskip("ray.data", reason="needs Ray: pip install 'ray[data]'")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for seed, name in enumerate(("a.jpg", "b.jpg", "b.png", "c.jpg", "d.jpg")):
        picture(folder / name, 20 + seed, 24, seed)
    Image.open(folder / "c.jpg").save(folder / "turned.jpg", exif=turned(6))
    return folder


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    program = [sys.executable, *map(str, arguments)]
    return subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True)


def rows(table: Path) -> Iterator[dict[str, Any]]:
    parquet = pytest.importorskip("pyarrow.parquet")
    yield from parquet.read_table(table).to_pylist()


@pytest.mark.slow
def test_the_example_and_the_document_give_the_files_of_segment(tmp_path, photos):
    expected = tmp_path / "expected"
    done("segment", photos, "--weights", "scenes", "--out", expected)
    (photos / "broken.png").write_bytes((photos / "b.png").read_bytes()[:-100])
    blocks = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S)
    (tmp_path / "document.py").write_text("".join(blocks))
    process = run(tmp_path, "-c", PROGRAM, "photos", "out", "scenes")
    assert process.returncode == 0, process.stderr
    assert f"6 of 7 pictures segmented -> {tmp_path / 'out'}\n" in process.stdout
    assert re.search("^Left out: .*broken.png: .*truncated", process.stderr, re.M)

    labels = {path.name: path.read_bytes() for path in expected.glob("*_labels.png")}
    assert set(labels) == {f"{n}_labels.png" for n in ("a", "b-jpg", "b-png", "c", "d", "turned")}
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.png")}
    assert found == labels

    for table in (tmp_path / "out" / "rows.parquet", tmp_path / "rows.parquet"):
        there = {Path(row["path"]).name: row for row in rows(table)}
        assert set(there) == {path.name for path in photos.iterdir()}
        broken = there.pop("broken.png")
        assert "truncated" in broken["error"]
        assert broken["labels"] == b""
        assert {row["labels"] for row in there.values()} == set(labels.values())
        for name, row in there.items():
            assert row["error"] == ""
            with Image.open(photos / name) as image:
                turn = -1 if name == "turned.jpg" else 1
                assert (row["width"], row["height"]) == image.size[::turn]
            assert sum(json.loads(row["shares"]).values()) == pytest.approx(1, abs=1e-5)
    drawn = {path.read_bytes() for path in expected.glob("*_overlay.png")}
    assert {row["overlay"] for row in rows(tmp_path / "rows.parquet")} == drawn | {b""}


@pytest.mark.slow
def test_the_example_says_in_a_line_what_is_wrong_before_ray_starts(tmp_path, photos):
    (tmp_path / "empty").mkdir()
    for message, *arguments in (
        ("the folder holds no picture", "empty", "out"),
        ("no_such_name: no such weights file", "photos", "out", "no_such_name"),
    ):
        process = run(tmp_path, EXAMPLE, *arguments)
        assert process.returncode == 1
        assert re.fullmatch(f"Error: .*{message}.*\n", process.stderr)
        assert not (tmp_path / "out").exists()
