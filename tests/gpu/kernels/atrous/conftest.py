"""The fixtures of tests/support/atrous_problems.py."""

from atrous_problems import (  # noqa: F401
    assert_exact,
    assert_within_budget,
    by_conv2d,
    by_taps,
    problem,
    with_gradients,
)
