"""What the tests of the Triton lattice share: points, values, and what equal lattices are."""

import dataclasses

import pytest
import torch
from torch import Tensor

from kernels import dispatch
from kernels.permutohedral.lattice import Lattice


@pytest.fixture(autouse=True)
def suitable_tiles(request: pytest.FixtureRequest) -> None:
    """Tiles that suit the interpreter, where it runs the kernels."""
    if dispatch.interpreting():
        request.getfixturevalue("large_lattice_tiles")


def walk(count: int, dims: int, spread: float, seed: int = 0) -> Tensor:
    """Points of which some lie near each other, as pixels do."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, dims, generator=generator).cumsum(0) * 0.3
    return (spread * (points + 0.1 * torch.randn(count, dims, generator=generator))).contiguous()


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moved(lattice: Lattice, device: torch.device) -> Lattice:
    """The lattice with its tensors on a device."""
    tensors = {k: v.to(device) for k, v in vars(lattice).items() if isinstance(v, Tensor)}
    return dataclasses.replace(lattice, **tensors)


def assert_equal_lattices(ours: Lattice, theirs: Lattice) -> None:
    for name in ("corners", "weights", "neighbours", "ghosts", "parts"):
        found, expected = getattr(ours, name).cpu(), getattr(theirs, name)
        assert found.dtype == expected.dtype, name
        assert torch.equal(found, expected), name
