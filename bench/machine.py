"""Where a figure comes from: versions, hardware, commit, and what the machine can do at most."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from timing import percentile, timer_for

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("deeplab-triton", "torch", "triton", "numba", "numpy", "pydensecrf2")


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that a figure depends on; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, GPU, and the load at the start."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_model(),
        "cores": _cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": gpu,
        "system": platform.platform(),
        "load_average": os.getloadavg()[0],
    }


def commit() -> dict[str, Any]:
    """The commit of this checkout, and whether tracked files differ from it."""
    head = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"id": head, "dirty": None if changes is None else bool(changes)}


def ceilings(device: str) -> dict[str, float]:
    """Measured bounds of the device: bytes/s of a copy (read and written bytes both counted) and
    float32 operations/s of a square matrix product. A call can take no less than its bytes over
    the first, nor its operations over the second."""
    timer = timer_for(device)
    side, length = (4096, 2**28) if device == "cuda" else (1536, 2**26)
    source = torch.ones(length // 4, device=device)
    target = torch.empty_like(source)
    matrix = torch.ones(side, side, device=device)
    product = torch.empty_like(matrix)

    def best(call: Any) -> float:
        call()
        return percentile([timer(call) for _ in range(10)], 0)

    return {
        "bytes_per_second": 2 * length / best(lambda: target.copy_(source)),
        "operations_per_second": 2 * side**3 / best(lambda: torch.mm(matrix, matrix, out=product)),
    }


def _cores() -> int | None:
    """Cores that this process may use, where the system tells; else those that there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git(*arguments: str) -> str | None:
    """What git answers about this checkout; None where there is no git or no repository."""
    try:
        process = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return process.stdout.strip()
