"""Multi-rate atrous convolution as one custom operator, `kernels::multi_rate_atrous_conv2d`.

The operator is opaque: `torch.compile` and `torch.export` take it whole. The equation is that of
kernels/atrous/reference.py. Inside runs one of the algorithms of kernels/atrous/triton, on CUDA or
in Triton's interpreter: `impl` names it, or is "triton", the one that kernels/atrous/cost.py
expects to be faster for the sizes at hand, which a compiled program may leave open until it runs.
The backward is a second operator. With g the gradient of y, zero where the ReLU gave zero, and
G_r = correlate(x, g_r), which has the shape of w_r:

    d shift = sum_p g            d scale = sum_{c, t} w * G + bias * sum_p g
    d bias = scale * sum_p g     d w = scale * G       d x = sum_r convolve(scale_r * w_r, g_r)

d scale is sum_p g * z; that z is linear in w saves a second forward pass. The algorithm of the
forward also gives d x, and G unless that is too large for it (`cost.weight_gradient_impl`).

It is differentiable once, by autograd and not by functorch's transforms. Arguments are those of the
public function, already validated; the output and the input's gradient are channels_last where the
input is, else contiguous; the weight's gradient has Cin contiguous.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kernels import dispatch
from kernels.atrous import cost
from kernels.atrous.triton.layout import Epilogue
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
        epilogue = Epilogue(bias, scale, shift, activation)
        with torch.cuda.device_of(input):  # where Triton launches
            dispatch.implementation("atrous", algorithm).forward(
                input, weight, _within(rates, input), fuse, epilogue, output
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
    if activated is not None:
        grad = grad.masked_fill(activated <= 0, 0)
    by_tap = None if scale is None else scale.view(len(rates), -1, 1, 1, 1)
    found: dict[str, Tensor] = {}
    if needs_input:
        found["input"] = torch.empty_like(input, memory_format=_memory_format(input))
    if needs_weight or needs_scale:  # G, in float32 where it is not yet what is returned
        dtype = None if scale is None else torch.float32
        found["weight"] = _empty_weight_gradient(weight, dtype)
    scaled = weight if by_tap is None or not needs_input else weight * by_tap
    products = found.get("input"), found.get("weight")
    with torch.cuda.device_of(input):  # where Triton launches
        _products(grad, input, scaled, _within(rates, input), fuse, impl, *products)
    if needs_bias or needs_scale or needs_shift:
        total = grad.sum((0, 2, 3), dtype=torch.float32)
        of_bias = total.clone() if scale is None else total * scale  # shares no memory with total
        of_bias = of_bias.repeat(len(rates)) if fuse == "sum" else of_bias
        found |= {"bias": of_bias.view(len(rates), -1), "shift": total}
    if needs_scale:
        found["scale"] = (weight * found["weight"]).sum((2, 3, 4)).flatten()
        if bias is not None:
            found["scale"] += bias.flatten() * total
    if needs_weight and by_tap is not None:
        found["weight"] *= by_tap
    names = ("input", "weight", "bias", "scale", "shift")
    wanted = [name for name, needed in zip(names, needs, strict=True) if needed]
    return [found[name].to(input.dtype) for name in wanted]


@multi_rate_atrous_conv2d_backward.register_fake
def _(grad: Tensor, input: Tensor, weight: Tensor, *rest: Any) -> list[Tensor]:
    needs, channels = rest[-2], grad.shape[1]
    gradients = [
        torch.empty_like(input, memory_format=_memory_format(input)),
        _empty_weight_gradient(weight),
        weight.new_empty(weight.shape[:2]),
        weight.new_empty(channels),
        weight.new_empty(channels),
    ]
    return [gradient for gradient, needed in zip(gradients, needs, strict=True) if needed]


def _products(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    rates: Sequence[int],
    fuse: str,
    impl: str,
    of_input: Tensor | None,
    of_weight: Tensor | None,
) -> None:
    """Set `of_input` to sum_r convolve(weight_r, grad_r) and `of_weight` to G, where given."""
    if input.numel() == 0:
        if of_weight is not None:
            of_weight.zero_()
        return
    algorithm = choose(input, weight, rates, fuse, impl).impl
    of_weight_by = cost.weight_gradient_impl(algorithm, weight.shape, fuse)
    arguments = grad, input, weight, rates, fuse
    if of_weight is not None and of_weight_by != algorithm:
        dispatch.implementation("atrous", of_weight_by).gradients(*arguments, None, of_weight)
        of_weight = None
    if of_input is not None or of_weight is not None:
        dispatch.implementation("atrous", algorithm).gradients(*arguments, of_input, of_weight)


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
    _forward = _without_autocast(_device, multi_rate_atrous_conv2d, cast=True)
    _gradients = _without_autocast(_device, multi_rate_atrous_conv2d_backward, cast=False)
    _library.impl("multi_rate_atrous_conv2d", _forward, _key)
    _library.impl("multi_rate_atrous_conv2d_backward", _gradients, _key)


def choose(
    input: Tensor, weight: Tensor, rates: Sequence[int], fuse: str, impl: str
) -> dispatch.Choice:
    """Which algorithm computes these sizes, and why; `impl` "triton" or one of the algorithms.

    Raises:
        ValueError: `impl` cannot run here, as a program may run elsewhere than where it was
            exported, or the map is too large for it.
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
    batch, inputs, height, width, outputs, kernel = sizes
    kind = "half" if dtype.itemsize == 2 else "tf32" if tf32 else "ieee"
    problem = cost.ConvProblem(
        batch, inputs, height, width, rates, outputs, kernel, fuse, dtype.itemsize, kind
    )
    seconds = cost.estimates(problem)
    if choice.impl != "triton":
        if choice.impl not in seconds:
            raise ValueError(
                f"input must be a map of at most {cost.largest_map(problem)} pixels for "
                f"impl={choice.impl!r} with this weight, not {height} x {width}: take "
                f"impl='triton:implicit', or 'triton', which chooses"
            )
        return choice
    expected = [f"{name} expected to take {1e6 * t:.3g} us" for name, t in seconds.items()]
    return dispatch.Choice(min(seconds, key=seconds.__getitem__), "; ".join(expected))


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
    shape, layout = (batch, channels, height, width), _memory_format(input)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=layout)


def _empty_weight_gradient(weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`[R, Cout, Cin, k, k]` with Cin contiguous, whatever weight's own strides.

    The kernels write it in one go; autograd gives `.grad` the parameter's strides.
    """
    rates, outputs, inputs, kernel, _ = weight.shape
    empty = weight.new_empty(rates, outputs, kernel, kernel, inputs, dtype=dtype)
    return empty.permute(0, 1, 4, 2, 3)
