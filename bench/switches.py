"""PyTorch's global switches that decide how fast, and how exactly, a GPU convolves."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

TF32_EPS = 2.0**-10  # of operands: TF32 keeps 10 bits of the mantissa


@contextmanager
def tuned() -> Iterator[None]:
    """TF32 allowed wherever float32 is multiplied, and cuDNN free to try its algorithms out.

    One rule for ours and for every peer, since the switches are global; afterwards they are as
    they were.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.benchmark = cudnn.allow_tf32 = matmul.allow_tf32 = True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


@contextmanager
def without_cudnn() -> Iterator[None]:
    """PyTorch's own convolutions: in float64 a plain matrix product, which cuDNN is slow at."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def state() -> dict[str, bool]:
    """The switches as they are now, for the record."""
    return {
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        "cuda.matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
    }
