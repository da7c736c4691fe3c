"""The problems and budgets of tests/kernels/atrous, and memory that starts as NaN."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

_shared = Path(__file__).parents[3] / "kernels" / "atrous" / "conftest.py"
_spec = importlib.util.spec_from_file_location("atrous_problems", _shared)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _module  # where dataclasses look for it
_spec.loader.exec_module(_module)
problem = _module.problem
by_taps = _module.by_taps
by_conv2d = _module.by_conv2d
with_gradients = _module.with_gradients
assert_exact = _module.assert_exact
assert_within_budget = _module.assert_within_budget


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """What a kernel forgets to write shows up: torch fills new memory with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    assert torch.zeros(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
