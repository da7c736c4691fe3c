"""What the tests of the separable filter's kernels share: small blocks in the interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kernels import dispatch


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several of each: pieces of 40 points in blocks of 16 and 32, landmarks in blocks of 16."""
    if not dispatch.interpreting():
        return
    from kernels.separable import (
        factors,
        triton,  # once configured
    )

    monkeypatch.setattr(factors, "PIECE", 40)
    monkeypatch.setattr(triton, "PIECE", 40)
    monkeypatch.setattr(triton, "BLOCK_COMBINE", 64)
    monkeypatch.setattr(triton, "OWN", replace(triton.OWN, block_p=32, block_k=16))
    for table, points in ((triton.SPLAT, 16), (triton.SLICE, 32)):
        small = {name: replace(c, block_p=points, block_k=16) for name, c in table.items()}
        monkeypatch.setattr(triton, "SPLAT" if table is triton.SPLAT else "SLICE", small)
