"""Compile what a function launches for GPUs that are not there, and read what the compiler made.

The launches are real: the function is run on tensors of device "meta", which hold no memory, and
every argument is specialised as on the GPU (alignment, ones, and on AMD tensors below 2 GB). Only
the driver is a stub, and nothing is launched.

Triton's cache on disk stays where it is. Its key holds the source, the options, the target and
Triton's version, and each test reads the compiled code, not whether it was compiled: a second run
is quick and fails as the first did.
"""

from __future__ import annotations

import gc
import re
import subprocess
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
MATRIX_INSTRUCTIONS = {  # the last group is the type of what is multiplied
    "sm_80": r"mma\.sync\.aligned\.\w+\.row\.col\.f32\.(\w+)",
    "sm_90": r"wgmma\.mma_async\.sync\.aligned\.\w+\.f32\.(\w+)",
    "gfx942": r"v_mfma_f32_\d+x\d+x\d+_(\w+)",
}


@dataclass(frozen=True)
class Launch:
    kernel: JITFunction[Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


@dataclass(frozen=True)
class Binary:
    """What the compiler made of a launch.

    kernel: its name. shared: bytes of shared memory. spills: what does not fit the registers, all
    0 if all is well. multiplies: the types that its matrix instructions take. assembly: PTX, or
    AMD's. object: the file that a GPU loads.
    """

    kernel: str
    shared: int
    spills: dict[str, int]
    multiplies: set[str]
    assembly: str
    object: bytes = field(repr=False)


@dataclass(frozen=True)
class Driver:
    """What Triton asks of a driver while it compiles."""

    target: str

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.target]

    def get_current_device(self) -> str:
        return self.target  # kernels compiled so far are kept by device

    def get_current_stream(self, device: str) -> int:
        return 0


@pytest.fixture(autouse=True, scope="session")
def _quick_garbage_collection() -> None:
    """Parsing kernels makes much garbage: do not look through all of torch for it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], list[Launch]]:
    """Run a function, and list the kernels that it would have launched."""

    def run(function: Callable[[], object]) -> list[Launch]:
        found: list[Launch] = []

        def record(kernel: JITFunction[Any], *args: Any, **kwargs: Any) -> None:
            found.append(Launch(kernel, args, kwargs))

        with monkeypatch.context() as patch:
            patch.setattr(JITFunction, "run", record)
            function()
        return found

    return run


@pytest.fixture
def binaries(
    launches: Callable[[Callable[[], object]], list[Launch]], tmp_path: Path
) -> Callable[[str, Callable[[], object], Collection[str]], list[Binary]]:
    """Compile, for a target, the launches of the kernels named; a binary is read once."""

    def make(target: str, function: Callable[[], object], kernels: Collection[str]) -> list[Binary]:
        triton.runtime.driver.set_active(Driver(target))
        compiled = [
            launch.kernel.run(*launch.args, **{**launch.kwargs, "warmup": True})
            for launch in launches(function)
            if launch.name in kernels
        ]
        once = {each.hash: each for each in compiled}
        return [_read(each, target, tmp_path) for each in once.values()]

    return make


@pytest.fixture
def sass(tmp_path: Path) -> Callable[[Binary], str]:
    """List the machine code of a binary for NVIDIA."""

    def listing(binary: Binary) -> str:
        return _cuobjdump("-sass", binary.object, tmp_path)

    return listing


def _read(compiled: Any, target: str, folder: Path) -> Binary:
    on_amd = TARGETS[target].backend == "hip"
    assembly = compiled.asm["amdgcn" if on_amd else "ptx"]
    return Binary(
        kernel=compiled.metadata.name,
        shared=compiled.metadata.shared,
        spills=_spills_on_amd(assembly) if on_amd else _spills_on_nvidia(compiled, folder),
        multiplies=set(re.findall(MATRIX_INSTRUCTIONS[target], assembly)),
        assembly=assembly,
        object=compiled.asm["hsaco" if on_amd else "cubin"],
    )


def _spills_on_amd(assembly: str) -> dict[str, int]:
    names = "sgpr_spill_count", "vgpr_spill_count", "private_segment_fixed_size"
    return {name: int(re.findall(rf"\.{name}:\s+(\d+)", assembly)[0]) for name in names}


def _spills_on_nvidia(compiled: Any, folder: Path) -> dict[str, int]:
    usage = _cuobjdump("-res-usage", compiled.asm["cubin"], folder)
    return {name: int(re.findall(rf"{name}:(\d+)", usage)[0]) for name in ("STACK", "LOCAL")}


def _cuobjdump(option: str, cubin: bytes, folder: Path) -> str:
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    command = [triton.knobs.nvidia.cuobjdump.path, option, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
