"""The fixtures of tests/support/atrous_problems.py, and memory that starts as NaN."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from atrous_problems import (  # noqa: F401
    assert_exact,
    assert_within_budget,
    by_conv2d,
    by_taps,
    problem,
    with_gradients,
)


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """What a kernel forgets to write shows up: torch fills new memory with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    assert torch.zeros(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
