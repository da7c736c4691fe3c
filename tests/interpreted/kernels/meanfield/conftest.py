"""Tiles that suit the interpreter."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _large_tiles(large_lattice_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of every test that has a lattice, and the mean field's own."""
    from kernels.meanfield import triton  # once configured
    from kernels.meanfield.triton import stack

    monkeypatch.setattr(triton, "TILE", 2**12)
    monkeypatch.setattr(stack, "BLOCK", 1024)
