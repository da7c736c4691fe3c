"""Multi-rate atrous convolution: every rate of a pyramid on one input, in one call.

api.py        multi_rate_atrous_conv2d: validate, choose, call
reference.py  plain PyTorch, one convolution a rate: the oracle
ops.py        the custom operators around the Triton algorithms, forward and backward
cost.py       which of the two Triton algorithms computes what
triton/       shift.py, implicit.py (the algorithms); conv.py, weight_grad.py (the products);
              layout.py, configs.py and configs/ (memory layouts and tile sizes)
"""

import torch

from kernels.atrous.api import choose, multi_rate_atrous_conv2d
from kernels.dispatch import Implementation, register

__all__ = ["choose", "multi_rate_atrous_conv2d"]


DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _triton(name: str, about: str, automatic: bool = False) -> Implementation:
    return Implementation(name, about, "cuda", DTYPES, automatic=automatic, triton=True)


register(
    "atrous",
    _triton("triton", "the Triton algorithm that should be faster", automatic=True),
    _triton("triton:shift", "one product for all taps, then a gather"),
    _triton("triton:implicit", "one implicit product over all rates"),
    Implementation("reference", "plain PyTorch, one convolution a rate"),
)
