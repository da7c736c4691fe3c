"""Multi-rate atrous convolution in plain PyTorch: the oracle, on any device, in any float dtype.

    z_r[o, p] = bias_r[o] + sum_{c, t} weight_r[o, c, t] * input[c, p + rate_r * t]
    sum:    y = sum_r z_r
    concat: y = act(scale * [z_1, ..., z_R] + shift)

p is a pixel, t a tap in {-(k-1)/2, ..., (k-1)/2}^2, and the input is zero outside the map.
Source: Chen et al., "DeepLab", TPAMI 2018, equation 1 and figure 7.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def multi_rate_atrous_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rates: Sequence[int],
    fuse: str,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str | None,
) -> Tensor:
    """One `conv2d` a rate; the arguments of the public function, already validated."""
    if fuse == "sum":
        output = _branch(input, weight, bias, rates, 0)
        for r in range(1, len(rates)):
            output += _branch(input, weight, bias, rates, r)  # autograd needs neither operand
        return output
    output = torch.cat([_branch(input, weight, bias, rates, r) for r in range(len(rates))], dim=1)
    output = _affine(output, scale, shift)
    return F.relu(output) if activation == "relu" else output


def _branch(
    input: Tensor, weight: Tensor, bias: Tensor | None, rates: Sequence[int], r: int
) -> Tensor:
    padding = rates[r] * (weight.shape[-1] // 2)
    bias_r = None if bias is None else bias[r]
    return F.conv2d(input, weight[r], bias_r, padding=padding, dilation=rates[r])


def _affine(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    # Autocast casts what conv2d reads, not what multiplies its result: keep the result's dtype.
    scale = None if scale is None else scale.to(x.dtype)[:, None, None]
    shift = None if shift is None else shift.to(x.dtype)[:, None, None]
    if scale is not None and shift is not None:
        return torch.addcmul(shift, x, scale)
    if scale is not None:
        return x * scale
    return x if shift is None else x + shift
