"""Multi-rate atrous convolution as one custom operator, `kernels::multi_rate_atrous_conv2d`.

The operator is opaque: `torch.compile` and `torch.export` take it whole. The equation is that of
kernels/atrous/reference.py. `impl` says what runs inside: "op", one convolution a rate, any device;
"triton:shift" or "triton:implicit" (kernels/atrous/triton), on CUDA or in Triton's interpreter; or
"auto", whichever of these two kernels/atrous/cost.py expects to be faster for the sizes at hand.
The backward is a second operator. With g the gradient of y, zero where the ReLU gave zero:

    d shift = sum_p g        d scale = sum_p g * z          d z = scale * g
    d bias_r = sum_p d z_r   d w_r = correlate(x, d z_r)    d x = sum_r convolve(w_r, d z_r)

It is differentiable once, by autograd and not by functorch's transforms. Arguments are those of the
public function, already validated; the output and the input's gradient are channels_last where the
input is, else contiguous; the weight's gradient has Cin contiguous.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import dispatch
from kernels.atrous import cost
from kernels.atrous.packing import empty_weight_gradient
from kernels.operators import opaque_operator


@opaque_operator("kernels::multi_rate_atrous_conv2d")
def multi_rate_atrous_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rates: Sequence[int],
    fuse: str,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str | None,
    impl: str = "op",
    rows: Tensor | None = None,
) -> Tensor:
    """`[B, Cin, H, W]`, `[R, Cout, Cin, k, k]` -> `[B, Cout, H, W]` or `[B, R*Cout, H, W]`.

    rows: weight as the shift algorithm reads it (`kernels.atrous.pack`); None: packed here.
    """
    output = _empty_output(input, weight, fuse)
    if impl != "op":
        from kernels.atrous import triton

        algorithm = choose(input, weight, rates, fuse, impl).impl.partition(":")[2]
        arguments = bias, rates, fuse, scale, shift, activation, algorithm, rows
        triton.forward(input, weight, *arguments, output)
        return output
    output.zero_()
    for r, branch in enumerate(_branches(output, len(rates), fuse)):
        branch += _conv(input, weight, bias, rates, r)
    if scale is not None and shift is not None:
        torch.addcmul(shift[:, None, None], output, scale[:, None, None], out=output)
    elif scale is not None:
        output *= scale[:, None, None]
    elif shift is not None:
        output += shift[:, None, None]
    return output.relu_() if activation == "relu" else output


@multi_rate_atrous_conv2d.register_fake
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rates: Sequence[int],
    fuse: str,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str | None,
    impl: str = "op",
    rows: Tensor | None = None,
) -> Tensor:
    return _empty_output(input, weight, fuse)


@opaque_operator("kernels::multi_rate_atrous_conv2d_backward")
def multi_rate_atrous_conv2d_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rates: Sequence[int],
    fuse: str,
    scale: Tensor | None,
    activated: Tensor | None,
    needs: Sequence[bool],
    impl: str = "op",
    rows: Tensor | None = None,
) -> list[Tensor]:
    """Gradients of input, weight, bias, scale and shift: those that `needs` asks for, in order.

    activated: the forward's output where a ReLU made it, else None.
    """
    if impl != "op":
        from kernels.atrous import triton

        algorithm = choose(input, weight, rates, fuse, impl).impl.partition(":")[2]
        arguments = bias, rates, fuse, scale, activated, needs, algorithm, rows
        return triton.backward(grad, input, weight, *arguments, _empty_input_gradient(input))
    if activated is not None:
        grad = grad.masked_fill(activated <= 0, 0)
    grads = []
    if any(needs[:3]):
        grad_z = grad if scale is None else grad * scale[:, None, None]
        grads += _conv_gradients(grad_z, input, weight, rates, fuse, needs[:3])
    if needs[3]:
        branches = enumerate(_branches(grad, len(rates), fuse))
        sums = [(g * _conv(input, weight, bias, rates, r)).sum((0, 2, 3)) for r, g in branches]
        grads.append(torch.cat(sums))
    if needs[4]:
        grads.append(grad.sum((0, 2, 3)))
    return grads


@multi_rate_atrous_conv2d_backward.register_fake
def _(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rates: Sequence[int],
    fuse: str,
    scale: Tensor | None,
    activated: Tensor | None,
    needs: Sequence[bool],
    impl: str = "op",
    rows: Tensor | None = None,
) -> list[Tensor]:
    channels = grad.shape[1]
    gradients = [
        _empty_input_gradient(input),
        empty_weight_gradient(weight),
        weight.new_empty(weight.shape[:2]),
        weight.new_empty(channels),
        weight.new_empty(channels),
    ]
    return [gradient for gradient, needed in zip(gradients, needs, strict=True) if needed]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, bias, ctx.rates, ctx.fuse, scale, _shift, activation, ctx.impl, rows = inputs
    activated = output if activation == "relu" else None
    ctx.save_for_backward(input, weight, bias, scale, activated, rows)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight, bias, scale, activated, rows = ctx.saved_tensors
    of_input, of_weight, of_bias, _, _, of_scale, of_shift, *_ = ctx.needs_input_grad
    needs = [of_input, of_weight, of_bias, of_scale, of_shift]
    settings = bias, ctx.rates, ctx.fuse, scale, activated, needs, ctx.impl, rows
    grads = iter(multi_rate_atrous_conv2d_backward(grad, input, weight, *settings))
    x, w, b, c, s = (next(grads) if needed else None for needed in needs)
    return x, w, b, None, None, c, s, None, None, None


def _refuse_second_derivative(ctx: Any, grads: list[Tensor]) -> None:
    raise NotImplementedError(
        "kernels::multi_rate_atrous_conv2d (impl 'op' and 'triton:...', and 'auto' on CUDA) is "
        "differentiable once; for second derivatives call multi_rate_atrous_conv2d with "
        "impl='eager'"
    )


multi_rate_atrous_conv2d.register_autograd(_backward, setup_context=_save)
multi_rate_atrous_conv2d_backward.register_autograd(_refuse_second_derivative)


def _without_autocast(device: str, operator: Callable[..., Any], cast: bool) -> Callable[..., Any]:
    """`operator` as autocast should run it: in autocast's dtype if `cast`, and out of its reach."""

    def run(*args: Any) -> Any:
        if cast:
            dtype = torch.get_autocast_dtype(device)
            args = tuple(_autocast(arg, device, dtype) for arg in args)
        with torch.autocast(device, enabled=False):
            return operator(*args)

    return run


def _autocast(arg: Any, device: str, dtype: torch.dtype) -> Any:
    if not isinstance(arg, Tensor) or arg.device.type != device or arg.dtype == torch.float64:
        return arg  # as autocast's own rule: float64 stays
    return arg.to(dtype)


# `CustomOpDef.register_autocast` takes one fixed dtype; autocast's dtype is chosen at run time.
_library = torch.library.Library("kernels", "FRAGMENT")
for _device, _key in [("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA"), ("xpu", "AutocastXPU")]:
    _library.impl(
        "multi_rate_atrous_conv2d",
        _without_autocast(_device, multi_rate_atrous_conv2d, cast=True),
        _key,
    )
    _library.impl(
        "multi_rate_atrous_conv2d_backward",
        _without_autocast(_device, multi_rate_atrous_conv2d_backward, cast=False),
        _key,
    )


def choose(
    input: Tensor, weight: Tensor, rates: Sequence[int], fuse: str, impl: str
) -> dispatch.Choice:
    """Which Triton algorithm runs for these sizes, and why; `impl` "auto" or one of them."""
    tf32 = input.element_size() == 4 and dispatch.convolutions_allow_tf32()
    sizes = *input.shape, *weight.shape[1:4:2]
    return _choose(input.device, input.dtype, sizes, tuple(rates), fuse, impl, tf32)


@functools.lru_cache(4096)  # asked at every call
def _choose(
    device: torch.device,
    dtype: torch.dtype,
    sizes: tuple[int, ...],
    rates: tuple[int, ...],
    fuse: str,
    impl: str,
    tf32: bool,
) -> dispatch.Choice:
    batch, inputs, height, width, outputs, kernel = sizes
    kind = "half" if dtype.itemsize == 2 else "tf32" if tf32 else "ieee"
    problem = cost.Problem(
        batch, inputs, height, width, rates, outputs, kernel, fuse == "sum", dtype.itemsize, kind
    )
    estimates = cost.estimates(problem) if impl == "auto" else None
    return dispatch.choose("atrous", impl, device=device, dtype=dtype, estimates=estimates)


def _memory_format(x: Tensor) -> torch.memory_format:
    """channels_last where the strides say so (slices included), as conv2d reads them."""
    _, channels, _, _ = x.shape
    _, step_c, step_h, step_w = x.stride()
    if step_c == 1 and 1 < channels <= step_w <= step_h:
        return torch.channels_last
    return torch.contiguous_format


def _empty_output(input: Tensor, weight: Tensor, fuse: str) -> Tensor:
    batch, _, height, width = input.shape
    rates, channels = weight.shape[:2]
    shape = (batch, channels if fuse == "sum" else rates * channels, height, width)
    return torch.empty(
        shape, dtype=input.dtype, device=input.device, memory_format=_memory_format(input)
    )


def _empty_input_gradient(input: Tensor) -> Tensor:
    return torch.empty_like(input, memory_format=_memory_format(input))


def _branches(x: Tensor, rates: int, fuse: str) -> Sequence[Tensor]:
    """The channels of each rate in an output or its gradient."""
    return [x] * rates if fuse == "sum" else x.chunk(rates, dim=1)


def _conv(
    input: Tensor, weight: Tensor, bias: Tensor | None, rates: Sequence[int], r: int
) -> Tensor:
    padding = rates[r] * (weight.shape[-1] // 2)
    bias_r = None if bias is None else bias[r]
    return F.conv2d(input, weight[r], bias_r, padding=padding, dilation=rates[r])


def _conv_gradients(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    rates: Sequence[int],
    fuse: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of input, weight and bias, those that `needs` asks for, from that of z."""
    of_input = torch.zeros_like(input, memory_format=_memory_format(input))
    of_weight, of_bias = [], []
    for r, grad_r in enumerate(_branches(grad, len(rates), fuse)):
        x, w, b = torch.ops.aten.convolution_backward(
            grad_r,
            input,
            weight[r],
            bias_sizes=[weight.shape[1]],
            stride=[1, 1],
            padding=[rates[r] * (weight.shape[-1] // 2)] * 2,
            dilation=[rates[r]] * 2,
            transposed=False,
            output_padding=[0, 0],
            groups=1,
            output_mask=needs,
        )
        if needs[0]:
            of_input += x
        of_weight.append(w)
        of_bias.append(b)
    stacked_weight = []
    if needs[1]:
        stacked_weight = [empty_weight_gradient(weight).copy_(torch.stack(of_weight))]
    stacked_bias = [torch.stack(of_bias)] if needs[2] else []
    return [*([of_input] if needs[0] else []), *stacked_weight, *stacked_bias]
