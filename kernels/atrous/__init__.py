"""Multi-rate atrous convolution: every rate of a pyramid on one input, in one call.

api.py        multi_rate_atrous_conv2d: validate, choose, call
reference.py  plain PyTorch, one convolution a rate: the oracle
ops.py        the custom operators around the Triton algorithms, forward and backward
cost.py       which of the two Triton algorithms computes what
triton/       shift.py: multiply, then shift, for few outputs; implicit.py: one implicit matrix
              product, for many; both over the products of conv.py (forward, and the gradient to
              the input) and weight_grad.py; layout.py, how tensors lie in memory; configs.py,
              tile sizes, from configs/*.json
"""

import torch

from kernels.atrous.api import choose, multi_rate_atrous_conv2d
from kernels.dispatch import Implementation, on_cuda, register

__all__ = ["choose", "multi_rate_atrous_conv2d"]

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

register(
    "atrous",
    on_cuda("the Triton algorithm that should be faster", "triton", DTYPES),
    on_cuda("one product for all taps, then a gather", "triton:shift", DTYPES, automatic=False),
    on_cuda("one implicit product over all rates", "triton:implicit", DTYPES, automatic=False),
    Implementation("reference", "plain PyTorch, one convolution a rate"),
)
