"""The checks of an operator's contract, all of them, and what filters are checked with."""

import pytest
import torch
from torch import Tensor

any_layout = pytest.mark.parametrize(
    ("shape", "strided"), [((2, 30), False), ((2, 30), True), ((0, 5), False), ((1, 1), False)]
)

OPCHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_static",
    "test_aot_dispatch_dynamic",
)


def normal(*shape: int, strided: bool = False) -> Tensor:
    """Random numbers, of contiguous rows or columns."""
    if strided:
        return torch.randn(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)
    return torch.randn(*shape)
