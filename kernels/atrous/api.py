"""Multi-rate atrous convolution: validate the arguments, choose an implementation, call it."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from kernels import dispatch, validate
from kernels.atrous import ops, reference

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def multi_rate_atrous_conv2d(
    input: Tensor,
    weight: Tensor,
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
        weight: `[R, Cout, Cin, k, k]`, k odd.
        bias: `[R, Cout]`.
        rates: R integers in pixels, each at least 1; a rate may exceed the map.
        fuse: `"sum"` or `"concat"`.
        scale: `[R*Cout]`, for `"concat"` only. Like shift, it may have gradients.
        shift: `[R*Cout]`, for `"concat"` only.
        activation: `"relu"`, for `"concat"` only, or None.
        impl: `"reference"` is plain PyTorch, one convolution a rate, differentiable any number of
            times. `"triton:shift"` (one product for all taps, then a gather: few outputs; its
            float32 slices of one map, H * W * taps * Cout, are at most 256 MiB, and a float32
            gradient to weight of more than 64 MiB is computed by the other) and
            `"triton:implicit"` (one implicit product over all rates: many outputs) are Triton
            kernels for float16, bfloat16 and float32 on CUDA, differentiable once; float32 is
            computed in TF32 where `torch.backends.cudnn.allow_tf32` lets convolutions do so.
            `"triton"` is the one of these two that should be faster. `"auto"` is `"triton"` where
            that runs, and `"reference"` on a CPU or in float64. `kernels.atrous.choose` tells
            which, and why.

    Returns:
        y in input's dtype (under autocast, in autocast's unless input is float64), channels_last
        where input is.

    Raises:
        TypeError: an argument is not of the type or dtype named here.
        ValueError: a shape, device or value does not fit, or `impl` cannot run here.
    """
    _check_tensors(input=input, weight=weight, bias=bias, scale=scale, shift=shift)
    _check_shapes(input, weight, bias)
    _check_rates(rates, weight.shape[0])
    _check_fusion(fuse, weight.shape[0] * weight.shape[1], scale, shift, activation)
    choice = dispatch.choose("atrous", impl, device=input.device, dtype=_computed_in(input))
    arguments = input, weight, bias, rates, fuse, scale, shift, activation
    if choice.impl == "reference":
        return reference.multi_rate_atrous_conv2d(*arguments)
    output: Tensor = ops.multi_rate_atrous_conv2d(*arguments, choice.impl)
    return output


def choose(
    input: Tensor,
    weight: Tensor,
    *,
    rates: Sequence[int],
    fuse: Literal["sum", "concat"] = "sum",
    impl: str = "auto",
) -> dispatch.Choice:
    """Which implementation `multi_rate_atrous_conv2d` runs for these arguments, and why.

    Raises:
        ValueError: `impl` is unknown or cannot run here.
    """
    choice = dispatch.choose("atrous", impl, device=input.device, dtype=_computed_in(input))
    if choice.impl != "triton":
        return choice
    algorithm = ops.choose(input, weight, rates, fuse, choice.impl)
    return dispatch.Choice(algorithm.impl, f"{choice.reason}; {algorithm.reason}")


def _computed_in(tensor: Tensor) -> torch.dtype:
    """The dtype that autocast, where it is on, gives a tensor of a convolution; else its own."""
    device = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return tensor.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def _check_tensors(input: Tensor, **others: Tensor | None) -> None:
    validate.check_tensor("input", input, DTYPES)
    for name, tensor in others.items():
        if tensor is not None or name == "weight":
            validate.check_tensor(name, tensor, DTYPES)
            assert tensor is not None
            validate.check_alike(name, tensor, "input", input, _computed_in)


def _check_shapes(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    fits = input.dim() == 4 and 0 not in input.shape[1:]
    validate.check_shape("input", input, "[B, Cin, H, W] with Cin, H and W at least 1", fits)
    fits = weight.dim() == 5 and 0 not in weight.shape
    validate.check_shape("weight", weight, "[R, Cout, Cin, k, k], none of them 0", fits)
    rates, channels, in_channels, height, width = weight.shape
    fits = height == width and height % 2 == 1
    validate.check_shape("weight", weight, "[R, Cout, Cin, k, k] with one odd k", fits)
    fits = in_channels == input.shape[1]
    layout = "[R, Cout, {inputs}, k, k] for the channels of input"
    validate.check_shape("weight", weight, layout, fits, inputs=input.shape[1])
    if bias is not None:
        fits = bias.shape == (rates, channels)
        wanted = [rates, channels]
        validate.check_shape("bias", bias, "[R, Cout] = {wanted}", fits, wanted=wanted)


def _check_rates(rates: Sequence[int], expected: int) -> None:
    if not isinstance(rates, (list, tuple)):
        raise TypeError(f"rates must be a list or tuple of integers, not {rates!r}")
    for r, rate in enumerate(rates):
        validate.check_integer(f"rates[{r}]", rate, least=1)
    if len(rates) != expected:
        raise ValueError(
            f"rates must be {expected}, one for each kernel of weight, not {len(rates)}"
        )


def _check_fusion(
    fuse: str, channels: int, scale: Tensor | None, shift: Tensor | None, activation: str | None
) -> None:
    validate.check_option("fuse", fuse, ("sum", "concat"))
    validate.check_option("activation", activation, ("relu", None))
    for name, value in {"scale": scale, "shift": shift, "activation": activation}.items():
        if value is not None and fuse == "sum":
            raise ValueError(f"{name} must be None with fuse='sum': it goes with fuse='concat'")
        if isinstance(value, Tensor):
            fits = value.shape == (channels,)
            validate.check_shape(name, value, "[R*Cout] = [{channels}]", fits, channels=channels)
