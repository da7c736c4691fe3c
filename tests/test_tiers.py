"""The tiers that need a process of their own pass there: the interpreter's and the compiler's."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_WORKERS = 4  # each holds half a gigabyte


@pytest.mark.slow
def test_a_tier_passes_in_a_process_of_its_own(
    tier: tuple[str, Path], record_property: Callable[[str, object], None]
) -> None:
    name, folder = tier
    began = time.perf_counter()
    process = _run(folder)
    counts = _counts(process.stdout)
    line = f"{name} tier: {counts} in {time.perf_counter() - began:.0f} s"
    record_property("tier", line)
    if process.returncode or "passed" not in counts:
        said = f"{line} (exit status {process.returncode})"
        pytest.fail(f"{said}\n{process.stdout}\n{process.stderr}", pytrace=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "tests"),
    [
        (["tests/interpreted/kernels/exact"], ["tests/interpreted", "tests/triton"]),
        (["tests/interpreted/kernels/exact/test_interpreter.py"], ["tests/interpreted"]),
        (["-m", "gpu", "tests/triton/kernels/exact"], ["tests/triton"]),
    ],
)
def test_what_holds_on_a_gpu_and_in_the_interpreter_is_collected_for_either(
    arguments: list[str], tests: list[str]
) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = {"/".join(line.split("/")[:2]) for line in done.stdout.splitlines() if "::" in line}
    assert found == set(tests), done.stdout + done.stderr
    assert "deselected" not in done.stdout, (
        "outside the interpreter all of tests/triton is for a GPU"
    )


def test_the_counts_are_those_of_the_last_line() -> None:
    assert _counts("....\n3 passed in 0.10s\n2 passed, 1 skipped in 71.30s (0:01:11)") == (
        "2 passed, 1 skipped"
    )
    assert _counts("\nno tests ran in 0.02s\n") == "no tests ran"
    assert _counts("Segmentation fault") == "no counts"


def _run(folder: Path) -> subprocess.CompletedProcess[str]:
    """pytest on a folder, in a child that knows nothing of this run's options and workers."""
    command = [sys.executable, "-m", "pytest", str(folder), "-q", "--tb=short", "--color=no"]
    workers = min(MOST_WORKERS, os.cpu_count() or 1)
    if workers > 1 and importlib.util.find_spec("xdist"):
        command += ["-n", str(workers)]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_ADDOPTS", "PYTEST_XDIST", "TRITON_INTERPRET"))
    }
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def _counts(output: str) -> str:
    """ "120 passed, 2 skipped" of what pytest -q prints last."""
    found = re.findall(r"^(\d+ \w+(?:, \d+ \w+)*|no tests ran) in [\d.]+s", output, re.MULTILINE)
    return found[-1] if found else "no counts"
