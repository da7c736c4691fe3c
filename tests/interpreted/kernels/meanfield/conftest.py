"""Memory that starts as NaN, and tiles that suit the interpreter: it takes as long for any tile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """What a kernel forgets to write shows up: torch fills new memory with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few programs a launch; pieces so short that there are sums."""
    from kernels.gaussian.permutohedral.triton import (
        building,
        filtering,
        segments,
    )  # once configured
    from kernels.meanfield import triton
    from kernels.meanfield.triton import stack

    monkeypatch.setattr(building, "PLACE_TILE", 2**11)
    monkeypatch.setattr(building, "SEARCH_BLOCK", 1024)
    monkeypatch.setattr(filtering, "SPLAT_TILE", 2**13)
    monkeypatch.setattr(filtering, "TILE", 2**13)
    monkeypatch.setattr(triton, "TILE", 2**12)
    monkeypatch.setattr(stack, "BLOCK", 1024)
    monkeypatch.setattr(segments, "BLOCK", 1024)
    monkeypatch.setattr(segments, "PIECE", 16)
