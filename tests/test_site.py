"""The documentation site, its pictures, and what else a stranger meets first."""

import os
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from deeplab import model
from deeplab.model import DeepLab
from deeplab.weights import SHIPPED

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
OUTSIDE = re.compile(r"(?:https?:)?//")
# What a reader's browser fetches for a page, by tag; a link that is followed is none of it.
LOADED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}
UNLOADED = {"canonical", "next", "prev", "alternate"}  # relations that are only told


class Resources(HTMLParser):
    """Collects what a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        address = given.get(LOADED.get(tag, ""))
        if address and given.get("rel") not in UNLOADED:
            self.found.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning of mkdocs is an error."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        if not find_spec(package):
            pytest.skip(f"{package} is not installed: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return folder


def test_every_page_is_built_and_in_the_navigation(site: Path) -> None:
    start = (site / "index.html").read_text()
    for page in sorted((ROOT / "docs").rglob("*.md")):
        built = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert (site / built).is_file()
        assert built == "index.html" or f'href="{built}"' in start
    assert 'href="repository/EQUATIONS.html"' in start


def test_links_beside_the_pages_lead_to_files_of_the_site(site: Path) -> None:
    """Records, examples, the README of the benchmarks: as in the repository."""
    figures = (site / "figures.html").read_text()
    records = re.findall(r'href="(repository/bench/records/[^"]+\.json)"', figures)
    assert len(records) > 10
    assert all((site / record).is_file() for record in records)
    assert (site / "repository" / "bench" / "index.html").is_file()


def test_the_reference_has_signatures_and_docstrings(site: Path) -> None:
    page = (site / "api" / "crf.html").read_text()
    for said in ('id="crf.DenseCRF.forward"', "return_kl", "Mean-field inference", "Raises:"):
        assert said in page


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    loaded = dict(_loaded(site))
    assert any(address.endswith(".css") for address in loaded)
    assert any(address.endswith(".js") for address in loaded)
    assert not {address: page for address, page in loaded.items() if OUTSIDE.match(address)}
    # The theme's script fetches this one where a page has a diagram of that kind.
    assert not [page for page in site.rglob("*.html") if 'class="mermaid"' in page.read_text()]


def _loaded(site: Path) -> Iterator[tuple[str, str]]:
    for page in site.rglob("*.html"):
        parser = Resources()
        parser.feed(page.read_text())
        yield from ((address, page.name) for address in parser.found)
    for sheet in site.rglob("*.css"):
        text = sheet.read_text()
        for address in re.findall(r"url\(\s*['\"]?([^)'\"]+)|@import\s+['\"]([^'\"]+)", text):
            yield from ((each, sheet.name) for each in address if each)


def test_what_a_page_loads_is_found() -> None:
    parser = Resources()
    parser.feed(
        '<link rel="stylesheet" href="https://fonts.example/css"><a href="https://example.org">'
        '<script src="//cdn.example/x.js"></script><link rel="next" href="https://example.org">'
    )
    assert parser.found == ["https://fonts.example/css", "//cdn.example/x.js"]
    assert all(OUTSIDE.match(address) for address in parser.found)


def test_every_picture_is_made_by_the_script_shown_on_a_page_and_small() -> None:
    script = (ROOT / "docs" / "make_pictures.py").read_text()
    pages = "\n".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    files = sorted(PICTURES.iterdir())
    assert files
    for file in files:
        assert f"\ndef {file.stem}() -> Figure:" in script
        assert f"](pictures/{file.name})" in pages
        assert file.stat().st_size < 300_000
        with Image.open(file) as picture:
            assert 900 < picture.width < 1300
            corner = picture.convert("RGBA").getpixel((0, 0))
        assert corner == (255, 255, 255, 255)  # white, on a dark page too


def test_notebooks_are_valid_and_without_outputs() -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    paths = sorted((ROOT / "examples").glob("*.ipynb"))
    assert len(paths) == 2
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert not [cell for cell in code if cell.outputs or cell.execution_count]


def test_torch_hub_builds_the_networks_of_a_clone() -> None:
    where = {"repo_or_dir": str(ROOT), "source": "local"}
    small = torch.hub.load(**where, model="deeplab_v2_small", num_classes=4)
    assert isinstance(small, DeepLab)
    assert small.num_classes == 4
    known = torch.hub.load(**where, model="load_model", path=SHIPPED)
    assert not known.training


def test_torch_hub_knows_every_builder() -> None:
    builders = {name for name in model.__all__ if name.startswith(("build", "deeplab_"))}
    found = runpy.run_path(str(ROOT / "hubconf.py"))
    offered = {name for name in found if callable(found[name]) and not name.startswith("_")}
    assert offered == builders | {"load_model"}  # as torch.hub.list finds them
    assert all(find_spec(name) for name in found["dependencies"])


def test_the_citation_is_of_this_version() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert (citation["title"], citation["license"]) == (project["name"], project["license"])
    assert {"cff-version", "message", "authors"} <= set(citation)
    assert [each["year"] for each in citation["references"]] == [2015, 2018, 2011]


def test_the_container_takes_what_it_copies_and_installs() -> None:
    """No build of it is tried here: its names at least are those of the repository."""
    text = (ROOT / "Dockerfile").read_text()
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")
    }
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for name in line.split()}
    assert copied == kept
    assert "://" not in text  # whoever builds it says which index it is from
    assert all((ROOT / name).exists() for name in copied)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = set(re.findall(r"\.\[([\w,]+)\]", text))
    assert {name for each in wanted for name in each.split(",")} <= set(
        extras["optional-dependencies"]
    )
    assert re.findall(r"^FROM \S+ AS (\w+)$", text, re.M) == ["base", "cpu", "cuda"]
