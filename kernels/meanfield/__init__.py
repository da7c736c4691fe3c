"""The mean-field update of a fully connected CRF (Krähenbühl and Koltun, 2011, algorithm 1)."""

import torch

from kernels.dispatch import Implementation, register
from kernels.meanfield.api import mean_field
from kernels.meanfield.term import Term

__all__ = ["Term", "mean_field"]

SINGLE = (torch.float32,)

register(
    "meanfield",
    Implementation("cpu", "compiled by numba, threaded", device="cpu", dtypes=SINGLE),
    Implementation(
        "triton", "Triton kernels without atomics", device="cuda", dtypes=SINGLE, triton=True
    ),
    Implementation("reference", "plain PyTorch"),
)
