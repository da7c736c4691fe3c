"""The rules of ARCHITECTURE.md that a test can hold."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("kernels", "crf", "deeplab", "bench", "tests")  # each imports only those to its left
MOST_LINES = 500


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> Iterator[str]:
    """Top-level names that a file imports, inside functions too; relative ones are its own."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("layer", LAYERS[:-1])
def test_imports_go_one_way(layer: str) -> None:
    forbidden = set(LAYERS[LAYERS.index(layer) + 1 :])
    if layer != "bench":
        forbidden |= {path.stem for path in (ROOT / "bench").glob("*.py")}
    wrong = {named(path): sorted(set(imported(path)) & forbidden) for path in modules(layer)}
    assert not {path: names for path, names in wrong.items() if names}


def test_an_import_leaves_heavy_packages_for_their_first_use() -> None:
    program = "import sys, kernels, crf, deeplab.model; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in process.stdout.split()}
    assert loaded > {"kernels", "crf", "deeplab"}
    heavy = {"triton", "numba", "llvmlite", "matplotlib", "pydantic", "typer", "rich"}
    assert not loaded & heavy


@pytest.mark.parametrize("package", LAYERS[:3])
def test_the_map_shows_everything_at_the_top_of_a_package(package: str) -> None:
    shown = re.findall(r"[\w./]+", (ROOT / "ARCHITECTURE.md").read_text())
    entries = {
        path.name + "/" * path.is_dir()
        for path in (ROOT / package).iterdir()
        if not path.name.startswith("__") and (path.is_dir() or path.suffix == ".py")
    }
    assert not entries - set(shown)


@pytest.mark.parametrize("path", modules("kernels", "crf", "deeplab", "bench"), ids=named)
def test_a_module_opens_with_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_no_module_is_longer_than_a_reader_can_take_in() -> None:
    lines = {named(path): len(path.read_text().splitlines()) for path in modules(*LAYERS[:-1])}
    assert not {path: count for path, count in lines.items() if count > MOST_LINES}
