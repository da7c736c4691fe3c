"""Tile sizes for the Triton kernels: read from configs/*.json, the nearest measured problem wins.

A file names what it is for: one GPU (`"gpu"`, written by the tuning script), or a family of them
(`"target"`, a heuristic for GPUs that nobody tuned). Each entry has the kernel, what it computes in
and the problem that it stands for; a call takes the entry whose problem is nearest, by the
logarithm of pixels, outputs and inputs. Nothing is timed at the first call: one configuration is
compiled for a kernel and its shapes, and Triton keeps it on disk.
"""

import functools
import json
import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels import dispatch

FOLDER = Path(__file__).parent / "configs"
FALLBACK = "generic"  # small enough for any GPU


@dataclass(frozen=True)
class ConvConfig:
    """One tiling: pixels (or outputs) x outputs (or inputs) x the inner dimension."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


def select(kernel: str, x: Tensor, pixels: int, outputs: int, inputs: int) -> ConvConfig:
    """The configuration of `kernel` for a problem on x's device and in x's dtype."""
    return _select(name_of(x.device), kernel, arithmetic(x.dtype), pixels, outputs, inputs)


@functools.lru_cache(4096)  # looked up at every launch
def _select(name: str, *problem: Any) -> ConvConfig:
    return nearest(table(name), *problem)


def nearest(
    entries: list[dict[str, Any]], kernel: str, kind: str, pixels: int, outputs: int, inputs: int
) -> ConvConfig:
    """The configuration of the entry whose problem is nearest."""
    fitting = [e for e in entries if e["kernel"] == kernel and e["arithmetic"] == kind]
    if not fitting:
        raise ValueError(f"no configuration of {kernel!r} in {kind} is listed")

    def distance(entry: dict[str, Any]) -> float:
        problem = zip(("pixels", "outputs", "inputs"), (pixels, outputs, inputs), strict=True)
        return sum(abs(math.log(max(size, 1) / entry[name])) for name, size in problem)

    best = min(fitting, key=distance)
    return ConvConfig(**{field.name: best[field.name] for field in fields(ConvConfig)})


def arithmetic(dtype: torch.dtype) -> str:
    """What a product of this dtype is computed in: "half", "tf32" or "ieee"."""
    return "half" if dtype in (torch.float16, torch.bfloat16) else precision(dtype)


def precision(dtype: torch.dtype) -> str:
    """`input_precision` of tl.dot: float32 follows the switches of PyTorch's convolutions."""
    if dtype != torch.float32:
        return "ieee"  # without meaning for half precision
    return "tf32" if dispatch.convolutions_allow_tf32() else "ieee"


def slug(name: str) -> str:
    """A GPU's name as a file's: "NVIDIA H100 80GB HBM3" is nvidia_h100_80gb_hbm3."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


@functools.cache
def name_of(device: torch.device) -> str:
    """The name of the file for a device: its own, its family's, or the fallback."""
    if device.type == "cpu":
        return "interpreter"
    own = slug(torch.cuda.get_device_properties(device).name)
    for name in (own, family(device)):
        if (FOLDER / f"{name}.json").exists():
            return name
    return FALLBACK


def family(device: torch.device) -> str:
    """The target that Triton compiles for on a GPU, such as sm_90 or gfx942."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


@functools.cache
def table(name: str) -> list[dict[str, Any]]:
    """The entries of configs/NAME.json."""
    entries: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.json").read_text())["configs"]
    return entries


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many tiles a device computes at once."""
    if device.type == "cpu":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
