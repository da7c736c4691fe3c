"""What the tests of compiled kernels share: the memory of each target, tensors without memory."""

from typing import Any

import torch
from torch import Tensor

from kernels.permutohedral.lattice import Lattice
from kernels.permutohedral.triton import segments

KB = 1024
SHARED_MEMORY = {"sm_80": 163 * KB, "sm_90": 227 * KB, "gfx942": 64 * KB}  # of one program


def assert_fits(binary: Any, target: str) -> None:
    """All in registers, and no more shared memory than the target has."""
    assert not binary.spills, binary
    assert binary.shared <= SHARED_MEMORY[target], binary


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def lattice(dims: int, count: int = 187_500, rows: int = 224_001) -> Lattice:
    """A lattice as a Triton build gives it, by default of a VOC image."""
    entries = count * (dims + 1)
    partial = entries // segments.PIECE
    return Lattice(
        meta(count, dims + 1, dtype=torch.int32),
        meta(count, dims + 1),
        meta(dims + 1, 2, rows, dtype=torch.int32),
        meta(0, 2, dtype=torch.int32),
        meta(2, 3, dtype=torch.int64),
        None,
        meta(entries, dtype=torch.int32),
        meta(3, rows + partial, dtype=torch.int32),
        meta(3, partial, dtype=torch.int32),
    )


def assert_serves_any_size(launches: list[Any]) -> None:
    """No size is a reason to compile anew: what was compiled for one image serves any other."""
    for launch in launches:
        arguments = zip(launch.kernel.arg_names, launch.args, strict=False)
        numbers = {name for name, value in arguments if isinstance(value, int)}
        assert numbers <= set(launch.kernel.do_not_specialize), launch.name
