"""Calls of the atrous convolution on tensors without memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels.atrous import cost
from kernels.atrous.triton import configs, implicit, shift
from kernels.atrous.triton.layout import Epilogue

ALGORITHMS = {"triton:shift": shift, "triton:implicit": implicit}

RATES = (6, 12, 18, 24)


@pytest.fixture(autouse=True)
def _an_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of a GPU besides its configurations."""
    monkeypatch.setattr(configs, "multiprocessors", lambda device: 132)


@pytest.fixture
def call() -> Callable[..., None]:
    """Compute a convolution at four rates, or its gradient to `input` or `weight`.

    Maps are 41 x 41 and 65 x 65, those of a 321 x 321 and a 513 x 513 image: pixels, height and
    width are no multiples of 16, the rows of channels are.
    """

    def run(
        dtype: torch.dtype,
        algorithm: str = "triton:implicit",
        fuse: str = "concat",
        inputs: int = 512,
        outputs: int = 1024,
        batch: int = 4,
        size: int = 41,
        gradient: str | None = None,
    ) -> None:
        channels = outputs if fuse == "sum" else len(RATES) * outputs
        x = _map(batch, inputs, size, dtype)
        y = _map(batch, channels, size, dtype)
        weight = torch.empty(len(RATES), outputs, 3, 3, inputs, dtype=dtype, device="meta")
        weight = weight.permute(0, 1, 4, 2, 3)
        bias = torch.empty(len(RATES), outputs, dtype=dtype, device="meta")
        scale = None if fuse == "sum" else torch.empty(channels, dtype=dtype, device="meta")
        if gradient is None:
            relu = None if fuse == "sum" else "relu"
            of = ALGORITHMS[algorithm].forward
            of(x, weight, RATES, fuse, Epilogue(bias, scale, scale, relu), y)
        elif gradient == "input":
            of = ALGORITHMS[algorithm].gradients
            of(y, x, weight, RATES, fuse, torch.empty_like(x), None)
        else:
            of = ALGORITHMS[cost.weight_gradient_impl(algorithm, weight.shape, fuse)].gradients
            of(y, x, weight, RATES, fuse, None, torch.empty_like(weight))

    return run


def _map(batch: int, channels: int, size: int, dtype: torch.dtype) -> Tensor:
    shape = batch, channels, size, size
    last = torch.channels_last
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=last)
