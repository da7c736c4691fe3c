"""The fixtures of tests/support/atrous_problems.py, on the device of the kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from atrous_problems import (  # noqa: F401
    Problem,
    assert_exact,
    assert_within_budget,
    by_conv2d,
    by_taps,
    with_gradients,
)
from atrous_problems import problem as problem_on_a_cpu  # noqa: F401


@pytest.fixture(scope="session")
def problem(
    problem_on_a_cpu: Callable[..., Problem],  # noqa: F811
    device: torch.device,
) -> Callable[..., Problem]:
    return lambda *args, **options: problem_on_a_cpu(*args, **options).to(device)


@pytest.fixture
def trained() -> Callable[[Problem, torch.dtype], Problem]:
    """A problem channels_last, its weights of the scale that training gives them."""

    def scaled(p: Problem, dtype: torch.dtype) -> Problem:
        fan_in = p.weight[0, 0].numel() * (len(p.rates) if p.fuse == "sum" else 1)
        weight = (p.weight / fan_in**0.5).detach().requires_grad_()
        input = p.input.contiguous(memory_format=torch.channels_last).detach().requires_grad_()
        return Problem(**{**vars(p), "weight": weight, "input": input}).to(dtype)

    return scaled
