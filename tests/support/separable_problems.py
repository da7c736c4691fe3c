"""What the tests of the separable filter's kernels share: small blocks in the interpreter."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import dispatch

PROBLEMS = {  # points, channels, spatial dims, colours, positions' and colours' spread in sigmas
    "image": (150, 5, 2, 3, 0.3, 0.9),
    "many channels": (60, 37, 2, 1, 0.2, 0.3),
    "line without colours": (90, 3, 1, 0, 0.6, 0.0),
    "volume": (50, 3, 3, 2, 0.2, 0.2),
    "plane without colours": (60, 1, 2, 0, 0.4, 0.0),
    "one point": (1, 2, 2, 3, 1.0, 1.0),
    "one colour in one place": (90, 3, 2, 3, 0.0, 0.0),
}


def make(problem: str, device: Any = "cpu") -> tuple[Tensor, Tensor, int]:
    """Values, features, and how many of their dimensions are positions."""
    count, channels, spatial, colours, spread, colour_spread = PROBLEMS[problem]
    scale = torch.tensor([spread] * spatial + [colour_spread] * colours)
    values, features = torch.randn(count, channels), torch.randn(count, spatial + colours) * scale
    return values.to(device), features.to(device), spatial


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
