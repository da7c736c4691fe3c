"""Compile what a function launches for GPUs that are not there, and read what the compiler made.

bench/binaries.py does both. Triton's cache on disk stays where it is. Its key holds the source, the
options, the target and Triton's version, and each test reads the compiled code, not whether it was
compiled: a second run is quick and fails as the first did.
"""

import gc
import re
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from binaries import Launch, compile_for, listing, record, resources

MATRIX_INSTRUCTIONS = {  # the last group is the type of what is multiplied
    "sm_80": r"mma\.sync\.aligned\.\w+\.row\.col\.f32\.(\w+)",
    "sm_90": r"wgmma\.mma_async\.sync\.aligned\.\w+\.f32\.(\w+)",
    "gfx942": r"v_mfma_f32_\d+x\d+x\d+_(\w+)",
}


@dataclass(frozen=True)
class Binary:
    """What the compiler made of a launch.

    kernel: its name. shared: bytes of shared memory. spills: bytes, or on AMD registers, that did
    not fit. multiplies: the types that its matrix instructions take. assembly: PTX, or AMD's.
    compiled: as Triton has it.
    """

    kernel: str
    shared: int
    spills: int
    multiplies: set[str]
    assembly: str
    compiled: Any = field(repr=False)


@pytest.fixture(autouse=True, scope="session")
def _quick_garbage_collection() -> None:
    """Parsing kernels makes much garbage: do not look through all of torch for it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def launches() -> Callable[[Callable[[], object]], list[Launch]]:
    """Run a function, and list the kernels that it would have launched."""
    return record


@pytest.fixture
def binaries() -> Callable[[str, Callable[[], object], Collection[str]], list[Binary]]:
    """Compile, for a target, the launches of the kernels named; a binary is read once."""

    def make(target: str, function: Callable[[], object], kernels: Collection[str]) -> list[Binary]:
        launched = [launch for launch in record(function) if launch.name in kernels]
        compiled = [compile_for(launch, target) for launch in launched]
        once = {each.hash: each for each in compiled}
        return [_read(each, target) for each in once.values()]

    return make


def _read(compiled: Any, target: str) -> Binary:
    assembly = compiled.asm["amdgcn" if target.startswith("gfx") else "ptx"]
    _, *spills = resources(listing(compiled, target, "-res-usage"), target)
    return Binary(
        kernel=compiled.metadata.name,
        shared=compiled.metadata.shared,
        spills=sum(spills),
        multiplies=set(re.findall(MATRIX_INSTRUCTIONS[target], assembly)),
        assembly=assembly,
        compiled=compiled,
    )
