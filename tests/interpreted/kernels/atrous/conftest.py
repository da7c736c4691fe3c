"""The fixtures of tests/support/atrous_problems.py."""

from __future__ import annotations

from atrous_problems import (  # noqa: F401
    assert_exact,
    assert_within_budget,
    by_conv2d,
    by_taps,
    problem,
    with_gradients,
)
