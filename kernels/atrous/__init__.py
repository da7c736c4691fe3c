"""Multi-rate atrous convolution: every rate of a pyramid on one input, in one call."""

from kernels.atrous.api import choose, multi_rate_atrous_conv2d
from kernels.atrous.packing import PackedWeight, pack

__all__ = ["PackedWeight", "choose", "multi_rate_atrous_conv2d", "pack"]
