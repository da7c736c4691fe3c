"""What tests of the Gaussian filters share: points of any spread, and the sum over all pairs."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


def _all_pairs(values: Tensor, features: Tensor) -> Tensor:
    """sum_j exp(-|f_i - f_j|^2 / 2) v_j in float64, in one piece; `[..., N, C]`, `[..., N, D]`."""
    values, features = values.double(), features.double()
    squares = (features[..., :, None, :] - features[..., None, :, :]).square().sum(-1)
    return torch.exp(-squares / 2) @ values


@pytest.fixture(scope="session")
def all_pairs() -> Callable[[Tensor, Tensor], Tensor]:
    return _all_pairs
