"""Multi-rate atrous convolution: every rate of a pyramid on one input, in one call.

api.py        multi_rate_atrous_conv2d: validate, choose, call
reference.py  plain PyTorch, one convolution a rate: the oracle
ops.py        the custom operators
packing.py    how weights lie in memory; packed once, for a network that does not train
cost.py       which of the two Triton algorithms should be faster
triton/       shift.py, implicit.py (the algorithms); conv.py, weight_grad.py (the products)
"""

import torch

from kernels.atrous.api import choose, multi_rate_atrous_conv2d
from kernels.atrous.packing import PackedWeight, pack
from kernels.dispatch import Implementation, register

__all__ = ["PackedWeight", "choose", "multi_rate_atrous_conv2d", "pack"]


def _triton(name: str, about: str) -> Implementation:
    dtypes = torch.float16, torch.bfloat16, torch.float32
    return Implementation(f"triton:{name}", about, device="cuda", dtypes=dtypes, triton=True)


register(
    "atrous",
    _triton("shift", "one product for all taps, then a gather"),
    _triton("implicit", "one implicit product over all rates"),
    Implementation("reference", "plain PyTorch, one convolution a rate"),
)
