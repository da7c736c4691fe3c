"""Small tiles, so that there are several."""

from __future__ import annotations

import pytest

from kernels.exact import tiles


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 16)  # the least that tl.dot takes
