"""Tests that compare rounded numbers hold on processors that this machine does not have.

oneDNN, PyTorch and numba choose their instructions by the processor, and with them the order of
sums and whether a * b + c is rounded once or twice. Environment variables make them choose as on
another processor. The tests marked `processors` run once more so, each setting in a process of its
own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PROCESSORS = {
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "SSE4.1": {
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "ATEN_CPU_CAPABILITY": "default",
        "NUMBA_CPU_NAME": "generic",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("processor", PROCESSORS)
def test_rounded_numbers_agree_as_another_processor_computes_them(processor):
    settings = PROCESSORS[processor]
    own = torch.backends.cpu.get_cpu_capability()
    if settings.items() <= os.environ.items() or own == processor:
        pytest.skip(f"this whole run computes as {processor} does")
    if own == "DEFAULT" and processor == "AVX2":
        pytest.skip("this processor has no AVX2")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "processors and not slow",
        "--tb=short",
        *_files(),
    ]
    about = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_ADDOPTS", "PYTEST_XDIST"))
    }
    about |= settings | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, cwd=ROOT, env=about, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    assert re.search(r"^\d+ passed", process.stdout.splitlines()[-1]), process.stdout


def _files() -> list[str]:
    """Those that have such tests: to collect all would take longer than to run these."""
    here = Path(__file__)
    found = (path for path in here.parent.rglob("test_*.py") if path != here)
    return [str(path) for path in found if "mark.processors" in path.read_text()]
