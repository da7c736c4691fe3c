"""Where a figure comes from: versions, hardware, commit, and what the machine can do at most."""

import os
import platform
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import switches
import torch
from timing import Budget, EventClock, clock_for, samples, time_in_turn

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "deeplab-triton", "torch", "triton", "numba", "numpy", "pydensecrf2", "torchvision",
    "onnxruntime",
)  # fmt: skip
BF16_PEAK, TF32_PEAK = "bf16_operations_per_second", "tf32_operations_per_second"


def versions() -> dict[str, str | None]:
    """Versions of Python, packages and CUDA that a figure depends on; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    cudnn = torch.backends.cudnn.version()
    return {**found, "cuda": torch.version.cuda, "cudnn": None if cudnn is None else str(cudnn)}


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, GPU, and the load at the start."""
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": None if gpu is None else gpu.name,
        "gpu_memory_bytes": None if gpu is None else gpu.total_memory,
        "gpu_multiprocessors": None if gpu is None else gpu.multi_processor_count,
        "system": platform.platform(),
        "load_average": os.getloadavg()[0],
    }


def cores() -> int:
    """Cores that this process may use, where the system tells; else those that there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def commit() -> dict[str, Any]:
    """The commit of this checkout, and whether tracked files differ from it."""
    head = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"id": head, "dirty": None if changes is None else bool(changes)}


def ceilings(device: str) -> dict[str, float]:
    """Measured bounds of the device: bytes/s of a copy (read and written bytes both counted) and
    operations/s of a square matrix product. A call can take no less than its bytes over the first,
    nor its operations over the second, which is float32's; a GPU has further ones by dtype."""
    if device == "cuda":
        return _gpu_ceilings()
    length, side = 2**26, 1536
    return {
        "bytes_per_second": 2 * length / _copy_seconds(length, device),
        "operations_per_second": 2 * side**3 / _product_seconds(side, torch.float32, device),
    }


def _gpu_ceilings() -> dict[str, float]:
    """Those of the CUDA device, with TF32 and bfloat16 apart from plain float32."""
    length, side, small = 2**30, 8192, 4096
    found = {
        "bytes_per_second": 2 * length / _copy_seconds(length, "cuda"),
        "operations_per_second": 2 * small**3 / _product_seconds(small, torch.float32, "cuda"),
        BF16_PEAK: 2 * side**3 / _product_seconds(side, torch.bfloat16, "cuda"),
    }
    with switches.tuned():
        found[TF32_PEAK] = 2 * side**3 / _product_seconds(side, torch.float32, "cuda")
    torch.cuda.empty_cache()
    return found


def _copy_seconds(length: int, device: str) -> float:
    source = torch.ones(length // 4, device=device)
    target = torch.empty_like(source)
    return _least_seconds(lambda: target.copy_(source), device)


def _product_seconds(side: int, dtype: torch.dtype, device: str) -> float:
    # Random values: a GPU multiplies ones with less power, hence faster than any real input.
    matrix = torch.randn(side, side, device=device).to(dtype)
    product = torch.empty_like(matrix)
    return _least_seconds(lambda: torch.mm(matrix, matrix, out=product), device)


def _least_seconds(call: Callable[[], Any], device: str) -> float:
    clock = EventClock if device == "cuda" else lambda: clock_for("wall")
    return min(samples(time_in_turn({"": call}, Budget(1, 0.2), clock)[""]))


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
