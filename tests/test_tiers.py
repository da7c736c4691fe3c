"""The tiers that need a process of their own pass there: the interpreter's and the compiler's."""

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

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
def test_what_holds_on_a_gpu_too_is_collected_with_the_interpreters_folder_of_that_name() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    folder = "kernels/exact"
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q"]
    command += [f"tests/interpreted/{folder}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = {line.rpartition("/")[0] for line in done.stdout.splitlines() if "::" in line}
    assert found == {f"tests/interpreted/{folder}", f"tests/triton/{folder}"}, done.stdout


@pytest.mark.parametrize(
    ("arguments", "tier", "alike"),
    [
        (["tests/interpreted"], "interpreter", ["tests/triton"]),
        (["tests/interpreted/kernels/exact/test_interpreter.py::test_x"], "interpreter", []),
        (["tests/triton", "tests/interpreted/crf"], "interpreter", ["tests/triton/crf"]),
        (["tests/compiled/kernels"], "compile-only", []),
        (["tests/triton/kernels/exact"], None, []),
        (["tests"], None, []),
    ],
)
def test_a_run_is_of_the_tier_in_whose_folder_all_its_arguments_lie(
    arguments: list[str], tier: str | None, alike: list[str], pytestconfig: pytest.Config
) -> None:
    conftest = pytestconfig.pluginmanager.get_plugin(str(ROOT / "tests" / "conftest.py"))
    run = SimpleNamespace(args=arguments, invocation_params=SimpleNamespace(dir=ROOT))
    assert conftest._tier_of_run(run) == tier
    assert conftest._alike(run) == [str(ROOT / folder) for folder in alike]


def test_tiers_are_not_mixed(pytestconfig: pytest.Config) -> None:
    conftest = pytestconfig.pluginmanager.get_plugin(str(ROOT / "tests" / "conftest.py"))
    arguments = ["tests/interpreted", "tests/compiled"]
    run = SimpleNamespace(args=arguments, invocation_params=SimpleNamespace(dir=ROOT))
    with pytest.raises(pytest.UsageError, match="name it alone: interpreted, compiled"):
        conftest._tier_of_run(run)


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
