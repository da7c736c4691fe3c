"""Multi-rate atrous convolution: every rate of a pyramid on one input, in one call."""

from kernels.atrous.api import multi_rate_atrous_conv2d

__all__ = ["multi_rate_atrous_conv2d"]
