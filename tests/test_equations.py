"""EQUATIONS.md is true: each file that it names exists, and each name is defined in it."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "EQUATIONS.md").read_text()
PLACE = re.compile(r"`([\w/]+\.py):(\w+)`")
ROWS = [line.strip("|").split("|") for line in TEXT.splitlines() if line.startswith("| ")]
EQUATIONS = [row for row in ROWS if row[0].strip() != "Equation"]


@cache
def defined(path: str) -> set[str]:
    """The functions and classes at the top of a file."""
    kinds = ast.FunctionDef | ast.ClassDef
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, kinds)}


@pytest.mark.parametrize(("path", "name"), sorted(set(PLACE.findall(TEXT))))
def test_every_name_is_defined_in_its_file(path: str, name: str) -> None:
    assert (ROOT / path).is_file()
    assert name in defined(path)


@pytest.mark.parametrize("row", EQUATIONS, ids=lambda row: row[0].strip()[:40])
def test_every_equation_has_a_reference_and_a_test(row: list[str]) -> None:
    equation, reference, fast, tests = row
    for cell, folders in ((reference, {"kernels", "crf", "deeplab"}), (tests, {"tests"})):
        places = PLACE.findall(cell)
        assert places, equation
        assert {path.split("/")[0] for path, _ in places} <= folders
    assert all(name.startswith("test_") for _, name in PLACE.findall(tests))
    assert not any(path.startswith("tests/") for path, _ in PLACE.findall(fast))


def test_every_operation_with_a_reference_is_listed() -> None:
    references = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("kernels/*/reference.py")}
    assert references
    assert references <= {path for path, _ in PLACE.findall(TEXT)}
