"""What the documents show is true: commands exist, links lead somewhere, Python blocks run."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (
    "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "EQUATIONS.md",
    "bench/README.md", "docs/figures.md", "docs/callbacks.md",
    "docs/geotiff.md", "docs/ray.md",
)  # fmt: skip


def fenced(document: str, *languages: str) -> list[str]:
    """The fenced code blocks of a document that are marked with one of the languages."""
    opening = rf"^```(?:{'|'.join(languages)})$"
    return re.findall(rf"{opening}\n(.*?)^```$", (ROOT / document).read_text(), re.M | re.S)


def test_the_readme_gives_exactly_two_make_commands() -> None:
    blocks = fenced("README.md", "bash", "sh", "console", "shell")
    commands = [target for block in blocks for target in re.findall(r"\bmake [\w-]+", block)]
    assert sorted(set(commands)) == ["make demo", "make test"]


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


def test_every_python_block_of_the_readme_runs(tmp_path: Path) -> None:
    """Each in a namespace of its own, beside a `photo.jpg`."""
    blocks = fenced("README.md", "python")
    assert blocks
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((160, 120)).save(tmp_path / "photo.jpg")
    for number, block in enumerate(blocks, 1):
        (tmp_path / f"block_{number}.py").write_text(block)
    files = [f"block_{number}.py" for number in range(1, len(blocks) + 1)]
    program = "import runpy, sys\nfor file in sys.argv[1:]: runpy.run_path(file)"
    command = [sys.executable, "-c", program, *files]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
