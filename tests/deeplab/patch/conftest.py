"""A pyramid to patch, and what it computes with."""

from typing import Any

import pytest
import torch
from patched_models import RATES, randomise
from torch import Tensor

import deeplab.patch


@pytest.fixture
def aspp(torchvision: Any) -> Any:
    return randomise(torchvision.deeplabv3.ASPP(32, RATES, 16)).eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 32, 17, 14)


@pytest.fixture
def in_float64(aspp: Any, image: Tensor) -> tuple[Any, Tensor]:
    """The pyramid and the image in float64, where what is the same agrees to 1e-7 and better.

    A fused call sums in another order than the branches do, and in float32 the difference reaches
    the tolerance of assert_close on some processors.
    """
    return aspp.double(), image.double()


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of every fused convolution from here on."""
    calls: list[dict[str, Any]] = []
    compute = deeplab.patch.multi_rate_atrous_conv2d

    def record(*args: Any, **options: Any) -> Tensor:
        calls.append(options)
        return compute(*args, **options)

    monkeypatch.setattr(deeplab.patch, "multi_rate_atrous_conv2d", record)
    return calls
