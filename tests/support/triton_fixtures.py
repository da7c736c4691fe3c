"""Fixtures of every test of Triton kernels: NaN in new memory, a lighter interpreter, its tiles."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from lighter_interpreter import lighten

from kernels import dispatch


@pytest.fixture(autouse=True, scope="session")
def lighter_interpreter() -> None:
    """See lighter_interpreter.py."""
    if dispatch.interpreting():
        lighten()


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """What a kernel forgets to write shows up: torch fills new memory with NaN."""
    # On a GPU some of PyTorch's own operators, which oracles use, have no deterministic variant.
    torch.use_deterministic_algorithms(True, warn_only=not dispatch.interpreting())
    assert torch.empty(3).isnan().all()
    assert torch.zeros(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def large_lattice_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few programs a launch, each of which takes the interpreter its time; short pieces."""
    from kernels.permutohedral.triton import (
        building,
        filtering,
        segments,  # once configured
    )

    monkeypatch.setattr(building, "SEARCH_BLOCK", 1024)
    monkeypatch.setattr(building, "PLACE_TILE", 2**11)
    monkeypatch.setattr(filtering, "SPLAT_TILE", 2**10)
    monkeypatch.setattr(filtering, "TILE", 2**10)
    monkeypatch.setattr(segments, "BLOCK", 1024)
    monkeypatch.setattr(segments, "PIECE", 16)
