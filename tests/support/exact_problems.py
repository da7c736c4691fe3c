"""What the tests of filters share: the sum over all pairs in float64, and points that prune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import dispatch
from kernels.exact import tiles

SMALL_SHAPES = {  # points, dimensions, channels: around a tile of 16
    "one point": (1, 1, 1),
    "less than a tile": (7, 2, 3),
    "a tile": (16, 5, 21),
    "one point more": (17, 6, 2),
    "channels of two blocks": (33, 3, 40),
    "ragged": (50, 4, 5),
    "many dimensions": (20, 11, 1),
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles so small in the interpreter that there are several."""
    if dispatch.interpreting():
        monkeypatch.setattr(tiles, "TILE", 16)  # the least that tl.dot takes


def all_pairs(values: Tensor, features: Tensor) -> Tensor:
    """sum_j exp(-|f_i - f_j|^2 / 2) v_j in float64, in one piece; `[..., N, C]`, `[..., N, D]`."""
    values, features = values.double(), features.double()
    squares = (features[..., :, None, :] - features[..., None, :, :]).square().sum(-1)
    return torch.exp(-squares / 2) @ values


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that any operation makes."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor):
            self.bytes = max(self.bytes, output.untyped_storage().nbytes())
        return output


@dataclass(frozen=True)
class Problem:
    values: Tensor
    features: Tensor

    def to(self, device: torch.device) -> Problem:
        return Problem(self.values.to(device), self.features.to(device))

    @property
    def kernel(self) -> Tensor:
        """K `[N, N]` in float64."""
        features = self.features.detach().double()
        return torch.exp(-(features[:, None] - features).square().sum(-1) / 2)

    @property
    def mass(self) -> Tensor:
        return self.kernel.sum(1)

    @property
    def filtered(self) -> Tensor:
        return all_pairs(self.values.detach(), self.features.detach())

    def error(self, filtered: Tensor) -> float:
        """max_i |y_i - y| / (n_i max |v|): what eps bounds."""
        off = (filtered.detach().double().cpu() - self.filtered).abs().amax(1) / self.mass
        return float(off.max() / self.values.abs().max())

    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the values and the features, for `grad` of the filtered values, in float64."""
        values = self.values.detach().double().requires_grad_()
        features = self.features.detach().double().requires_grad_()
        return torch.autograd.grad(all_pairs(values, features), (values, features), grad.double())


def problem(
    count: int,
    dims: int = 5,
    channels: int = 3,
    *,
    spread: float = 3.0,
    dtype: torch.dtype = torch.float32,
) -> Problem:
    """Points of a few clusters, a `spread` of sigmas apart, in no order."""
    centres = spread * torch.randn(6, dims, dtype=dtype)
    features = centres[torch.randint(6, (count,))] + 0.5 * torch.randn(count, dims, dtype=dtype)
    return Problem(torch.randn(count, channels, dtype=dtype), features)
