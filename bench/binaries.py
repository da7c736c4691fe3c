"""Compile what a function launches, for GPUs that need not be there, and read the machine code.

The launches are real: the function runs on tensors of device "meta", which hold no memory, and
every argument is specialised as on the GPU. Only Triton's driver is a stub, and nothing is
launched. Compiled code goes to Triton's cache on disk, where a process with a GPU finds it.
"""

import math
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from kernels.atrous.triton import configs

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
KB = 1024
MULTIPROCESSORS = 132  # of an H100 or H200


class Multiprocessor(NamedTuple):
    """What the blocks of one share: registers of 32 bits, warps, bytes of shared memory, of which a
    block takes `reserved` for itself."""

    registers: int
    warps: int
    blocks: int
    shared: int
    reserved: int
    granule: int  # registers that a warp is given at a time


ROOM = {
    "sm_80": Multiprocessor(65536, 64, 32, 164 * KB, KB, 256),
    "sm_90": Multiprocessor(65536, 64, 32, 228 * KB, KB, 256),
    "gfx942": Multiprocessor(4 * 512 * 64, 32, 32, 64 * KB, 0, 8 * 64),
}
RESOURCES = {  # of a listing: registers of a thread, then what did not fit
    "cuda": ("REG", "STACK", "LOCAL"),
    "hip": ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size"),
}
MATRIX = re.compile(r"^(HMMA|HGMMA|IMMA|IGMMA|QGMMA|DMMA|v_mfma_\w+)\b")


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel, how many programs, and its arguments by name."""

    kernel: JITFunction[Any]
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def operation(self) -> str:
        """Its folder in `kernels`."""
        return str(self.kernel.__module__).split(".")[1]

    @property
    def name(self) -> str:
        """That of the kernel."""
        return str(self.kernel.__name__)

    @property
    def programs(self) -> int:
        """How many programs it has."""
        return math.prod(self.grid)

    @property
    def code(self) -> tuple[Any, ...]:
        """What tells code apart: the kernel, its constants, and which arguments are None."""
        constants = sorted((name, str(value)) for name, value in self.kwargs.items())
        none = tuple(argument is None for argument in self.args)
        return self.operation, self.name, tuple(constants), none

    @property
    def arguments(self) -> dict[str, Any]:
        """Every argument, constants too, by name."""
        return {**dict(zip(self.kernel.arg_names, self.args, strict=False)), **self.kwargs}


@dataclass(frozen=True)
class Binary:
    """What the compiler made of a launch.

    Attributes:
        registers: of a thread; on AMD vector registers.
        shared: bytes of a block.
        spills: bytes, or on AMD registers, that did not fit.
        warps: of a block.
        stages: how deep its loops are pipelined.
        resident: blocks that a multiprocessor holds at a time.
        loop: instructions of the innermost loop that computes; None: the kernel has no loop.
        matrix: matrix instructions among them, or in the whole kernel where it has no loop.
        instructions: of the whole kernel.
    """

    registers: int
    shared: int
    spills: int
    warps: int
    stages: int
    resident: int
    loop: int | None
    matrix: int
    instructions: int


def record(function: Callable[[], object]) -> list[Launch]:
    """Run a function, and list the kernels that it would have launched."""
    found: list[Launch] = []

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        found.append(Launch(kernel, tuple(grid), args, kwargs))

    with mock.patch.object(JITFunction, "run", note):
        function()
    return found


def of_target(target: str) -> Any:
    """While it holds, tensors without memory are on a GPU of this kind."""
    return mock.patch.multiple(
        configs, name_of=lambda device: target, multiprocessors=lambda device: MULTIPROCESSORS
    )


def compile_launch(launch: Launch, target: str) -> Binary:
    """Compile for a target, or find it compiled, and read the result."""
    made = compile_for(launch, target)
    said = listing(made, target, "-res-usage", "-sass")
    registers, *spills = resources(said, target)
    code = amd_code(said) if TARGETS[target].backend == "hip" else nvidia_code(said)
    loop = inner_loop(code)
    lines = code.lines if loop is None else code.lines[loop[0] : loop[1] + 1]
    metadata = made.metadata
    return Binary(
        registers=registers,
        shared=metadata.shared,
        spills=sum(spills),
        warps=metadata.num_warps,
        stages=metadata.num_stages,
        resident=resident(target, registers, metadata.shared, metadata.num_warps),
        loop=None if loop is None else len(lines),
        matrix=sum(bool(MATRIX.match(line)) for line in lines),
        instructions=len(code.lines),
    )


def compile_for(launch: Launch, target: str) -> Any:
    """What Triton's compiler makes of a launch; found on disk where it was made before."""
    triton.runtime.driver.set_active(_Driver(target))
    return launch.kernel.run(*launch.args, grid=launch.grid, warmup=True, **launch.kwargs)


def listing(compiled: Any, target: str, *options: str) -> str:
    """The assembly for AMD; for NVIDIA what cuobjdump says with these options."""
    if TARGETS[target].backend == "hip":
        return str(compiled.asm["amdgcn"])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(compiled.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, *options, str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def resources(listed: str, target: str) -> list[int]:
    """The numbers of `RESOURCES` in a listing, whose options are -res-usage at least."""
    names = RESOURCES[TARGETS[target].backend]
    return [int(re.findall(rf"\b{name}:\s*(\d+)", listed)[0]) for name in names]


def resident(target: str, registers: int, shared: int, warps: int) -> int:
    """How many blocks a multiprocessor holds at a time."""
    room = ROOM[target]
    lanes = TARGETS[target].warp_size
    of_warp = -(-max(registers, 1) * lanes // room.granule) * room.granule
    of_block = shared + room.reserved
    return min(
        room.registers // (of_warp * warps),
        room.warps // warps,
        room.blocks,
        room.shared // of_block if of_block else room.blocks,
    )


class Code(NamedTuple):
    """Instructions without addresses and predicates, and jumps (from, to) by instruction."""

    lines: list[str]
    jumps: list[tuple[int, int]]


def nvidia_code(sass: str) -> Code:
    """What cuobjdump -sass lists."""
    lines: list[str] = []
    places: dict[int, int] = {}
    targets: list[tuple[int, int]] = []
    for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", sass):
        instruction = re.sub(r"^@!?U?P\w+\s+", "", text)
        jump = re.match(r"BRA\S*\s+(?:!?U?P\w+,\s*)?`?\(?0x([0-9a-f]+)", instruction)
        places[int(address, 16)] = len(lines)
        if jump:
            targets.append((len(lines), int(jump[1], 16)))
        lines.append(instruction)
    return Code(lines, [(at, places[to]) for at, to in targets if to in places])


def amd_code(assembly: str) -> Code:
    """The instructions of a kernel's assembly: what is neither a label nor a directive."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    targets: list[tuple[int, str]] = []
    for line in assembly.partition(".section")[0].splitlines():
        text = line.partition(";")[0].strip()
        if text.endswith(":"):
            labels[text[:-1]] = len(lines)
        elif text and text[0] not in "./":
            if text.startswith(("s_cbranch", "s_branch")):
                targets.append((len(lines), text.split()[-1]))
            lines.append(text)
    return Code(lines, [(at, labels[to]) for at, to in targets if to in labels])


def inner_loop(code: Code) -> tuple[int, int] | None:
    """First and last instruction of the innermost loop with most matrix instructions, then most
    instructions: from where a backward branch goes to the branch."""
    loops = {(to, at) for at, to in code.jumps if to < at}
    inner = [
        (first, last)
        for first, last in loops
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in loops)
    ]

    def weight(loop: tuple[int, int]) -> tuple[int, int]:
        lines = code.lines[loop[0] : loop[1] + 1]
        return sum(bool(MATRIX.match(line)) for line in lines), len(lines)

    return max(inner, key=weight, default=None)


def pool() -> ProcessPoolExecutor:
    """Processes that compile, one a core."""
    cores = len(os.sched_getaffinity(0))
    return ProcessPoolExecutor(cores, mp_context=get_context("spawn"), initializer=_one_thread)


def _one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True)
class _Driver:
    """What Triton asks of a driver while it compiles."""

    target: str

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.target]

    def get_current_device(self) -> str:
        return self.target  # kernels compiled so far are kept by device

    def get_current_stream(self, device: str) -> int:
        return 0
