"""What the tests of the GPU share: sigmas, a picture, and how often the host waits."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

SIGMAS = [(80.0, 13.0), (49.0, 5.0), (67.0, 3.0)]  # of positions and of colours

any_sigma = pytest.mark.parametrize("sigmas", SIGMAS, ids=lambda s: f"{s[0]:g}/{s[1]:g}")


def colours(height: int, width: int) -> Tensor:
    """`[H, W, 3]`: a picture shaded with edges and a little noise, under a flat sky."""
    y, x = torch.arange(height)[:, None] / 60, torch.arange(width) / 70
    shade = 120 + 80 * torch.sin(x) * torch.cos(y) + 40 * ((x + y) % 2 > 1)
    found = shade[..., None] * torch.tensor([1.0, 0.8, 0.6]) + 5 * torch.randn(height, width, 3)
    found[: height // 4] = torch.tensor([120.0, 160.0, 230.0])
    return found.clamp(0, 255).round()


def waits_of(function: Callable[[], object]) -> int:
    """How often the host waits for the GPU while it runs."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in found)
