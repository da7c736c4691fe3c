"""Multi-rate atrous convolution as one custom operator, `kernels::multi_rate_atrous_conv2d`.

The operator is opaque: `torch.compile` and `torch.export` take it whole. The equation is that of
kernels/atrous/reference.py. Inside runs one of the algorithms of kernels/atrous/triton, on CUDA or
in Triton's interpreter: `impl` names it, or is "triton", the one that kernels/atrous/cost.py
expects to be faster for the sizes at hand, which a compiled program may leave open until it runs.
The backward is a second operator. With g the gradient of y, zero where the ReLU gave zero:

    d shift = sum_p g        d scale = sum_p g * z          d z = scale * g
    d bias_r = sum_p d z_r   d w_r = correlate(x, d z_r)    d x = sum_r convolve(w_r, d z_r)

The algorithm of the forward also gives d x, and d w unless that is too large for it
(`cost.weight_gradient_impl`); d scale is an implicit product always.

It is differentiable once, by autograd and not by functorch's transforms. Arguments are those of the
public function, already validated; the output and the input's gradient are channels_last where the
input is, else contiguous; the weight's gradient has Cin contiguous.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kernels import dispatch
from kernels.atrous import cost
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
    impl: str,
) -> Tensor:
    """`[B, Cin, H, W]`, `[R, Cout, Cin, k, k]` -> `[B, Cout, H, W]` or `[B, R*Cout, H, W]`."""
    output = _empty_output(input, weight, rates, fuse)
    algorithm = choose(input, weight, rates, fuse, impl).impl
    if output.numel():
        bias, scale, shift = (None if t is None else t.contiguous() for t in (bias, scale, shift))
        dispatch.implementation("atrous", algorithm).forward(
            input, weight, bias, _within(rates, input), fuse, scale, shift, activation, output
        )
    return output


@multi_rate_atrous_conv2d.register_fake
def _(input: Tensor, weight: Tensor, bias: Any, rates: Any, fuse: str, *_: Any) -> Tensor:
    return _empty_output(input, weight, rates, fuse)


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
    impl: str,
) -> list[Tensor]:
    """Gradients of input, weight, bias, scale and shift: those that `needs` asks for, in order.

    activated: the forward's output where a ReLU made it, else None.
    """
    needs_input, needs_weight, needs_bias, needs_scale, needs_shift = needs
    rates = _within(rates, input)
    if activated is not None:
        grad = grad.masked_fill(activated <= 0, 0)
    gradients = []
    if needs_input or needs_weight:
        grad_z = grad if scale is None else grad * scale[:, None, None]
        gradients += _products(grad_z, input, weight, rates, fuse, impl, needs_input, needs_weight)
    if needs_bias or needs_shift:
        total = grad.sum((0, 2, 3), dtype=torch.float32)
    if needs_bias:
        of_bias = total.clone() if scale is None else total * scale  # outputs share no memory
        of_bias = of_bias.repeat(len(rates)) if fuse == "sum" else of_bias
        gradients.append(of_bias.unflatten(0, (len(rates), -1)))
    if needs_scale:
        gradients.append(_scale_gradient(grad, input, weight, bias, rates))
    if needs_shift:
        gradients.append(total)
    return [gradient.to(input.dtype) for gradient in gradients]


@multi_rate_atrous_conv2d_backward.register_fake
def _(grad: Tensor, input: Tensor, weight: Tensor, *rest: Any) -> list[Tensor]:
    needs, channels = rest[-2], grad.shape[1]
    gradients = [
        _empty_input_gradient(input),
        _empty_weight_gradient(weight),
        weight.new_empty(weight.shape[:2]),
        weight.new_empty(channels),
        weight.new_empty(channels),
    ]
    return [gradient for gradient, needed in zip(gradients, needs, strict=True) if needed]


def _products(
    grad_z: Tensor,
    input: Tensor,
    weight: Tensor,
    rates: Sequence[int],
    fuse: str,
    impl: str,
    needs_input: bool,
    needs_weight: bool,
) -> list[Tensor]:
    """d x and d w, those that are needed."""
    of_input = _empty_input_gradient(input) if needs_input else None
    of_weight = _empty_weight_gradient(weight) if needs_weight else None
    found = [gradient for gradient in (of_input, of_weight) if gradient is not None]
    if input.numel() == 0:
        return [gradient.zero_() for gradient in found]
    algorithm = choose(input, weight, rates, fuse, impl).impl
    of_weight_by = cost.weight_gradient_impl(algorithm, weight.shape, fuse)
    arguments = grad_z, input, weight, rates, fuse
    if of_weight is not None and of_weight_by != algorithm:
        dispatch.implementation("atrous", of_weight_by).gradients(*arguments, None, of_weight)
        of_weight = None
    if of_input is not None or of_weight is not None:
        dispatch.implementation("atrous", algorithm).gradients(*arguments, of_input, of_weight)
    return found


def _scale_gradient(
    grad: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, rates: Sequence[int]
) -> Tensor:
    if input.numel() == 0:
        return grad.new_zeros(grad.shape[1])
    bias = None if bias is None else bias.contiguous()
    implicit = dispatch.implementation("atrous", "triton:implicit")
    found: Tensor = implicit.scale_gradient(grad, input, weight, bias, rates)
    return found


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, bias, ctx.rates, ctx.fuse, scale, _shift, activation, ctx.impl = inputs
    activated = output if activation == "relu" else None
    ctx.save_for_backward(input, weight, bias, scale, activated)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight, bias, scale, activated = ctx.saved_tensors
    of_input, of_weight, of_bias, _, _, of_scale, of_shift, *_ = ctx.needs_input_grad
    needs = [of_input, of_weight, of_bias, of_scale, of_shift]
    settings = bias, ctx.rates, ctx.fuse, scale, activated, needs, ctx.impl
    grads = iter(multi_rate_atrous_conv2d_backward(grad, input, weight, *settings))
    x, w, b, c, s = (next(grads) if needed else None for needed in needs)
    return x, w, b, None, None, c, s, None, None


def _refuse_second_derivative(ctx: Any, grads: list[Tensor]) -> None:
    raise NotImplementedError(
        "kernels::multi_rate_atrous_conv2d (impl 'triton' and 'triton:...', and 'auto' on CUDA) is "
        "differentiable once; for second derivatives call multi_rate_atrous_conv2d with "
        "impl='reference'"
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
    """Which algorithm computes these sizes, and why; `impl` "triton" or one of the algorithms.

    Raises:
        ValueError: `impl` cannot run here: a program may run elsewhere than where it was exported.
    """
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
    choice = dispatch.choose("atrous", impl, device=device, dtype=dtype)
    if choice.impl != "triton":
        return choice
    batch, inputs, height, width, outputs, kernel = sizes
    kind = "half" if dtype.itemsize == 2 else "tf32" if tf32 else "ieee"
    seconds = cost.estimates(
        cost.Problem(
            batch, inputs, height, width, rates, outputs, kernel, fuse, dtype.itemsize, kind
        )
    )
    expected = "; ".join(
        f"{name} expected to take {1e6 * seconds[name]:.3g} us" for name in seconds
    )
    return dispatch.Choice(min(seconds, key=seconds.__getitem__), expected)


def _within(rates: Sequence[int], input: Tensor) -> tuple[int, ...]:
    """Rates that look beyond the map made as small as does that: offsets are 32-bit integers."""
    size = max(input.shape[2:])
    return tuple(min(rate, size) for rate in rates)


def _memory_format(x: Tensor) -> torch.memory_format:
    """channels_last where the strides say so (slices included), as conv2d reads them."""
    _, channels, _, _ = x.shape
    _, step_c, step_h, step_w = x.stride()
    if step_c == 1 and 1 < channels <= step_w <= step_h:
        return torch.channels_last
    return torch.contiguous_format


def _empty_output(input: Tensor, weight: Tensor, rates: Sequence[int], fuse: str) -> Tensor:
    batch, _, height, width = input.shape
    channels = weight.shape[1] * (1 if fuse == "sum" else len(rates))
    return torch.empty(
        (batch, channels, height, width),
        dtype=input.dtype,
        device=input.device,
        memory_format=_memory_format(input),
    )


def _empty_input_gradient(input: Tensor) -> Tensor:
    return torch.empty_like(input, memory_format=_memory_format(input))


def _empty_weight_gradient(weight: Tensor) -> Tensor:
    """`[R, Cout, Cin, k, k]` with Cin contiguous, whatever weight's own strides.

    The kernels write it in one go; autograd gives `.grad` the parameter's strides.
    """
    rates, outputs, inputs, kernel, _ = weight.shape
    return weight.new_empty(rates, outputs, kernel, kernel, inputs).permute(0, 1, 4, 2, 3)
