"""What the cases share: how they are written, and the check of a result."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from fake_cuda import Case, description, tensor
from torch import Tensor

CHANNELS_LAST = torch.channels_last


def staged(steps: Callable[..., Iterator[None]]) -> Callable[..., Case]:
    """Cases of a function in two stages: up to its `yield` it prepares, what follows is counted."""

    @functools.wraps(steps)
    def make(*args: Any, **options: Any) -> Case:
        def case() -> Callable[[], None]:
            running = steps(*args, **options)
            next(running)
            return lambda: next(running, None)

        return case

    return make


def expect(found: Tensor, *shape: int, dtype: torch.dtype = torch.float32, **layout: Any) -> None:
    """It is as `fake_cuda.tensor` makes it of the same arguments: contiguous unless they say so."""
    expect_like(found, tensor(*shape, dtype=dtype, **layout))


def expect_like(found: Tensor, wanted: Tensor) -> None:
    """Of the same shape, dtype, strides and device."""
    said, wanted_said = description(found), description(wanted)
    assert said == wanted_said, f"{said} where {wanted_said} is wanted"


def gradients(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, inputs, torch.empty_like(output))
