"""Multi-rate atrous convolution: validate the arguments, choose an implementation, call it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from kernels import dispatch
from kernels.atrous import ops, reference
from kernels.atrous.packing import PackedWeight

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def multi_rate_atrous_conv2d(
    input: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    *,
    rates: Sequence[int],
    fuse: Literal["sum", "concat"] = "sum",
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: Literal["relu"] | None = None,
    impl: str = "auto",
) -> Tensor:
    """Convolve one input at R atrous rates, and sum the results or lay them side by side.

    With z_r = conv2d(input, weight[r], bias[r]) at dilation rates[r], stride 1 and zero padding
    rates[r] * (k - 1) / 2, so that the map keeps its size:

        fuse="sum"     y = z_1 + ... + z_R                               [B, Cout, H, W]
        fuse="concat"  y = act(scale * [z_1, ..., z_R] + shift)          [B, R*Cout, H, W]

    Channel r * Cout + i of a concatenation is output i at rates[r]. This is the pyramid of Chen et
    al., "DeepLab", TPAMI 2018, figure 7; scale and shift hold a batch normalisation in evaluation.

    Args:
        input: `[B, Cin, H, W]`, float16, bfloat16, float32 or float64, any strides; B may be 0.
        weight: `[R, Cout, Cin, k, k]`, k odd; or what `kernels.atrous.pack` made of one.
        bias: `[R, Cout]`.
        rates: R integers in pixels, each at least 1; a rate may exceed the map.
        fuse: `"sum"` or `"concat"`.
        scale: `[R*Cout]`, for `"concat"` only. Like shift, it may have gradients.
        shift: `[R*Cout]`, for `"concat"` only.
        activation: `"relu"`, for `"concat"` only, or None.
        impl: `"reference"` is plain PyTorch, one convolution a rate, differentiable any number of
            times. `"triton:shift"` (one product for all taps, then a gather: few outputs) and
            `"triton:implicit"` (one implicit product over all rates: many outputs) are Triton
            kernels for float16, bfloat16 and float32 on CUDA, differentiable once; float32 is
            computed in TF32 where `torch.backends.cudnn.allow_tf32` lets convolutions do so.
            `"auto"` is the one of these two that should be faster, and `"reference"` on a CPU or in
            float64; `kernels.atrous.choose` tells which, and why. `"op"` is the operator
            `kernels::multi_rate_atrous_conv2d` around the convolutions of `"reference"`.

    Returns:
        y in input's dtype (under autocast, in autocast's unless input is float64), channels_last
        where input is.

    Raises:
        TypeError: an argument is not of the type named here.
        ValueError: a shape, dtype, device or value does not fit, or `impl` cannot run here.
    """
    rows = None
    if isinstance(weight, PackedWeight):
        if weight.fuse != fuse:
            raise ValueError(f"weight was packed for fuse={weight.fuse!r}, not fuse={fuse!r}")
        rows, weight = weight.rows, weight.weight
    _check_tensors(input, weight, bias, scale, shift)
    _check_shapes(input, weight, bias)
    _check_rates(rates, weight.shape[0])
    _check_fusion(fuse, weight.shape[0] * weight.shape[1], scale, shift, activation)
    choice = dispatch.choose("atrous", impl, device=input.device, dtype=_computed_in(input))
    arguments = input, weight, bias, rates, fuse, scale, shift, activation
    if choice.impl == "reference":
        return reference.multi_rate_atrous_conv2d(*arguments)
    output: Tensor = ops.multi_rate_atrous_conv2d(*arguments, impl, rows)
    return output


def choose(
    input: Tensor,
    weight: Tensor | PackedWeight,
    *,
    rates: Sequence[int],
    fuse: Literal["sum", "concat"] = "sum",
    impl: str = "auto",
) -> dispatch.Choice:
    """Which implementation `multi_rate_atrous_conv2d` runs for these arguments, and why.

    Raises:
        ValueError: `impl` is unknown or cannot run here.
    """
    weight = weight.weight if isinstance(weight, PackedWeight) else weight
    dtype = _computed_in(input)
    choice = dispatch.choose("atrous", impl, device=input.device, dtype=dtype)
    return ops.choose(input, weight, rates, fuse, impl) if "triton" in choice.impl else choice


def _computed_in(tensor: Tensor) -> torch.dtype:
    """The dtype that autocast, where it is on, gives a tensor of a convolution; else its own."""
    device = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return tensor.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def _check_tensors(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> None:
    named = {"input": input, "weight": weight, "bias": bias, "scale": scale, "shift": shift}
    for name, tensor in named.items():
        if tensor is None and name in ("bias", "scale", "shift"):
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, not {type(tensor).__name__}")
        if tensor.dtype not in DTYPES:
            raise ValueError(
                f"{name} must be float16, bfloat16, float32 or float64, not {tensor.dtype}"
            )
        if tensor.device != input.device:
            raise ValueError(
                f"{name} is on {tensor.device} and input on {input.device}: "
                "move them to the same device"
            )
        if _computed_in(tensor) != _computed_in(input):
            raise ValueError(
                f"{name} is {tensor.dtype} and input {input.dtype}: convert one with .to(dtype)"
            )


def _check_shapes(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if input.dim() != 4 or 0 in input.shape[1:]:
        raise ValueError(
            f"input must be [B, Cin, H, W] with Cin, H and W at least 1, not {list(input.shape)}"
        )
    if weight.dim() != 5 or 0 in weight.shape:
        raise ValueError(
            f"weight must be [R, Cout, Cin, k, k] and not empty, not {list(weight.shape)}"
        )
    rates, channels, in_channels, height, width = weight.shape
    if height != width or height % 2 == 0:
        raise ValueError(f"weight must have a square kernel of odd size, not {height} x {width}")
    if in_channels != input.shape[1]:
        raise ValueError(
            f"weight is for {in_channels} input channels (its third dimension), "
            f"but input has {input.shape[1]}"
        )
    if bias is not None and bias.shape != (rates, channels):
        raise ValueError(f"bias must be [R, Cout] = {[rates, channels]}, not {list(bias.shape)}")


def _check_rates(rates: Sequence[int], expected: int) -> None:
    if not isinstance(rates, (list, tuple)):
        raise TypeError(f"rates must be a list or tuple of integers, not {rates!r}")
    for rate in rates:
        if isinstance(rate, bool) or not isinstance(rate, int):
            raise TypeError(f"rates must be integers, not {rate!r} of {type(rate).__name__}")
        if rate < 1:
            raise ValueError(f"rates must be at least 1, not {rate}")
    if len(rates) != expected:
        raise ValueError(
            f"rates must name one rate for each of weight's {expected} kernels, not {len(rates)}"
        )


def _check_fusion(
    fuse: str, channels: int, scale: Tensor | None, shift: Tensor | None, activation: str | None
) -> None:
    if fuse not in ("sum", "concat"):
        raise ValueError(f"fuse must be 'sum' or 'concat', not {fuse!r}")
    if activation not in (None, "relu"):
        raise ValueError(f"activation must be 'relu' or None, not {activation!r}")
    for name, value in {"scale": scale, "shift": shift, "activation": activation}.items():
        if value is not None and fuse == "sum":
            raise ValueError(f"{name} goes with fuse='concat'; with fuse='sum' leave it None")
        if isinstance(value, Tensor) and value.shape != (channels,):
            raise ValueError(f"{name} must be [R*Cout] = {[channels]}, not {list(value.shape)}")
