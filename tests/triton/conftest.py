"""What every test of Triton kernels starts from that runs on a GPU and in the interpreter."""

from __future__ import annotations

import pytest
import torch
from triton_fixtures import (  # noqa: F401
    large_lattice_tiles,
    lighter_interpreter,
    poisoned_memory,
)

from kernels import dispatch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run: a CPU in Triton's interpreter, else a GPU."""
    return torch.device("cpu" if dispatch.interpreting() else "cuda")
