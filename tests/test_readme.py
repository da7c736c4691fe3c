"""What the documents show is true: commands exist, links lead somewhere, Python blocks run."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import typer
from clips import write_clip
from commands import done
from geotiffs import geotiff, noise
from PIL import Image

from deeplab import cli, photographs

ROOT = Path(__file__).resolve().parent.parent
PAGES = tuple(path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("docs/**/*.md")))
DOCUMENTS = (
    "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "EQUATIONS.md",
    "RELEASING.md", "bench/README.md", *PAGES,
)  # fmt: skip
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
SHELLS = ("bash", "sh", "console", "shell")
NEEDS = {"docs/geotiff.md": "rasterio", "docs/video.md": "av"}  # to make what its blocks read

# Commands of the documents that are soon done, beside the files of `files`.
CHEAP = (
    "deeplab segment photo.jpg --weights scenes",
    "deeplab refine photo.jpg scribbles.png",
    "deeplab refine photo.jpg softmax.npy",
    "deeplab refine photo.jpg foreground.npy",
    "deeplab refine photo.jpg mask.png --indices --classes 21",
    "deeplab weights list",
    "deeplab weights show deeplab_v3_resnet101_coco",
    "deeplab data list folder",
    "deeplab data check folder mine",
)


def fenced(document: str, *languages: str) -> list[str]:
    """The fenced code blocks of a document that are marked with one of the languages."""
    opening = rf"^```(?:{'|'.join(languages)})$"
    return re.findall(rf"{opening}\n(.*?)^```$", (ROOT / document).read_text(), re.M | re.S)


def commands(document: str) -> Iterator[list[str]]:
    """The arguments of each call of `deeplab` in a document's blocks, that of torchrun too."""
    for block in fenced(document, *SHELLS):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            set_before = words and re.match(r"\w+=", words[0])
            if "deeplab" in words and (words[0] == "deeplab" or "-m" in words or set_before):
                yield words[words.index("deeplab") + 1 :]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with the files that the documents' commands and blocks read."""
    small = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    photo = Image.fromarray(small).resize((160, 120))
    photo.save(tmp_path / "photo.jpg")
    (tmp_path / "photos").mkdir()
    photo.resize((40, 33)).save(tmp_path / "photos" / "one.jpg")
    Image.open(photographs.SCRIBBLES).resize((160, 120), Image.Resampling.NEAREST).save(
        tmp_path / "scribbles.png"
    )
    (script,) = fenced("docs/pydensecrf.md", 'python title="script.py"')
    (tmp_path / "script.py").write_text(script)
    scores = np.random.default_rng(1).random((21, 120, 160), np.float32)
    np.save(tmp_path / "softmax.npy", scores / scores.sum(0))
    np.save(tmp_path / "foreground.npy", scores[0])
    Image.fromarray(scores.argmax(0).astype(np.uint8)).save(tmp_path / "mask.png")
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / "mine" / kind / split).mkdir(parents=True)
        photo.rotate(180 * (split == "val")).save(tmp_path / f"mine/images/{split}/{split}.png")
        labels = Image.fromarray((scores[0] > 0.5).astype(np.uint8))
        labels.save(tmp_path / f"mine/labels/{split}/{split}.png")
    (tmp_path / "mine" / "classes.txt").write_text("table\ncup\n")
    return tmp_path


def test_the_readme_gives_exactly_two_make_commands() -> None:
    blocks = fenced("README.md", *SHELLS)
    named = [target for block in blocks for target in re.findall(r"\bmake [\w-]+", block)]
    assert sorted(set(named)) == ["make demo", "make test"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_that_a_document_names_exists(document: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    code = re.findall(r"`[^`]*`|^```.*?^```", (ROOT / document).read_text(), re.M | re.S)
    assert set(re.findall(r"\bmake ([a-z]\w*)", " ".join(code))) <= targets


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_relative_link_leads_to_a_file(document: str) -> None:
    path = ROOT / document
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text())
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert not [link for link in local if not (path.parent / link).exists()]


def test_pages_quote_records_that_the_page_of_figures_has() -> None:
    """So that what is measured anew there is not left behind elsewhere."""
    pages = ("README.md", *PAGES)
    records = {page: set(re.findall(r"bench/records/([^)\s]+)", _text(page))) for page in pages}
    known = records.pop("docs/figures.md")
    assert sum(map(bool, records.values())) >= 4
    assert not {page: found - known for page, found in records.items() if found - known}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_that_a_document_shows_is_one(document: str) -> None:
    """Its subcommand and options exist; what it needs is there, and of the right kind."""
    for words in commands(document):
        _parse(typer.main.get_command(cli.app), words)


def _parse(command: Any, words: list[str]) -> None:
    words = [word for word in words if word != "COMMAND"]
    if "--help" in words or not words:
        return
    context = click.Context(command)
    while hasattr(command, "resolve_command"):
        _, found, words = command.resolve_command(context, words)
        command = found
    command.make_context(command.name, list(words))


def test_what_is_no_command_is_found() -> None:
    for words, said in (
        (["segmnt", "photo.jpg"], "No such command"),
        (["segment", "photo.jpg", "--no-such-option"], "No such option"),
        (["refine", "photo.jpg"], "Missing"),
        (["train", "--steps", "many"], "valid integer"),
        (["weights", "list", "more"], "unexpected extra argument"),
    ):
        with pytest.raises(Exception, match=said):
            _parse(typer.main.get_command(cli.app), words)


def test_the_commands_that_are_soon_done_run(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {
        " ".join(["deeplab", *words]) for document in DOCUMENTS for words in commands(document)
    }
    shown |= {code for page in PAGES for code in re.findall(r"`(deeplab [^`]+)`", _text(page))}
    monkeypatch.chdir(files)
    for command in CHEAP:
        assert command in shown
        done(*command.split()[1:])
    assert (files / "out" / "photo_labels.png").is_file()


def _text(document: str) -> str:
    return (ROOT / document).read_text()


def test_every_python_block_and_notebook_runs(files: Path) -> None:
    """Each in a namespace of its own, one after the other in one process."""
    programs = {
        f"{document}, block {number}": block
        for document in ("README.md", *PAGES)
        for number, block in enumerate(fenced(document, "python"), 1)
        if find_spec(NEEDS.get(document, "numpy"))
    }
    if not find_spec("ray"):  # tests/deeplab/test_ray_example.py runs these where it is there
        programs = {name: code for name, code in programs.items() if "import ray" not in code}
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        programs[path.name] = "\n".join(code)
    assert len(programs) > 20
    if find_spec("rasterio"):
        geotiff(files / "scene.tif", noise(40, 48), colours=("red", "green", "blue"))
    if find_spec("av"):
        write_clip(files / "clip.mp4")
    (files / "programs.json").write_text(json.dumps(programs))
    program = """
import json
for name, code in json.load(open("programs.json")).items():
    try:
        exec(compile(code, name, "exec"), {"__name__": "__main__"})
    except Exception as error:
        raise RuntimeError(name) from error
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=files, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
