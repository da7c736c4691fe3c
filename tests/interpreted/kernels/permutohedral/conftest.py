"""Tiles that suit the interpreter."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _large_tiles(large_lattice_tiles: None) -> None:
    """Those of every test that has a lattice."""
