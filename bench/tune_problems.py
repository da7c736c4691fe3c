"""The launches that tuning is about: each as the library makes it, and its truth in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from switches import TF32_EPS
from torch import Tensor

from kernels.atrous.triton import weight_grad
from kernels.atrous.triton.conv import conv
from kernels.atrous.triton.layout import pixels_of, taps_of

RATES, V3_RATES = (6, 12, 18, 24), (12, 24, 36)
ARITHMETIC = {"half": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32}


@dataclass(frozen=True)
class TuneProblem:
    """One launch: the product of the shift algorithm (one rate, 1 x 1) or a wide convolution.

    to_input: the gradient to the input, from `inputs` channels of each rate, which reads the
    weights the other way.
    """

    kernel: str
    batch: int
    side: int
    inputs: int
    outputs: int
    rates: tuple[int, ...] = (1,)
    size: int = 1
    to_input: bool = False

    @property
    def summed(self) -> int:
        """How many products an entry of the result adds up."""
        if self.kernel == "weight_grad":
            return self.batch * self.side**2
        return self.inputs * self.size**2 * (len(self.rates) if self.to_input else 1)


PROBLEMS = [
    TuneProblem("conv", 1, 41, 2048, 704),
    TuneProblem("conv", 1, 65, 2048, 704),
    TuneProblem("conv", 8, 65, 2048, 704),
    TuneProblem("conv", 1, 65, 704, 2048, to_input=True),
    TuneProblem("conv", 8, 65, 704, 2048, to_input=True),
    TuneProblem("conv", 1, 41, 512, 1024, RATES, 3),
    TuneProblem("conv", 4, 41, 512, 1024, RATES, 3),
    TuneProblem("conv", 4, 41, 1024, 512, RATES, 3, to_input=True),
    TuneProblem("conv", 4, 65, 2048, 256, V3_RATES, 3),
    TuneProblem("conv", 4, 65, 256, 2048, V3_RATES, 3, to_input=True),
    TuneProblem("weight_grad", 1, 65, 2048, 704),
    TuneProblem("weight_grad", 8, 65, 2048, 704),
    TuneProblem("weight_grad", 4, 41, 512, 1024, RATES, 3),
    TuneProblem("weight_grad", 4, 65, 2048, 256, V3_RATES, 3),
]


class Run(NamedTuple):
    """`call` launches the kernel, which writes `out`, and gives its result; `truth` is that in
    float64."""

    call: Callable[[], Tensor]
    truth: Callable[[], Tensor]
    out: Tensor


def budget(problem: TuneProblem, kind: str, result: torch.dtype) -> float:
    """How far the result may be off, as a share of its norm: one rounding of it, those of both
    operands where TF32 cuts them off, and float32's in sums whose errors add up as a random walk.
    """
    sums = torch.finfo(torch.float32).eps * problem.summed**0.5
    operands = 2 * TF32_EPS if kind == "tf32" else 0.0
    return torch.finfo(result).eps + operands + sums


def launch(problem: TuneProblem, kind: str, device: str) -> Run:
    """Random operands on the device, in the layouts that the library has them in."""
    torch.manual_seed(0)
    p, rates, dtype = problem, len(problem.rates), ARITHMETIC[kind]

    def maps(channels: int) -> Tensor:
        made = torch.randn(p.batch, channels, p.side, p.side, device=device, dtype=dtype)
        return made.contiguous(memory_format=torch.channels_last)

    def weights(outputs: int, inputs: int) -> Tensor:
        made = torch.randn(rates, outputs, inputs, p.size, p.size, device=device, dtype=dtype)
        return made / p.summed**0.5

    if p.kernel == "weight_grad":
        return _weight_grad(p, maps(p.inputs), maps(rates * p.outputs))
    if p.to_input:
        return _to_input(p, maps(rates * p.inputs), weights(p.inputs, p.outputs))
    return _forward(p, maps(p.inputs), weights(p.outputs, p.inputs))


def _forward(p: TuneProblem, x: Tensor, weight: Tensor) -> Run:
    pixels, _ = pixels_of(x)
    shape, dtype, fuse = (p.batch, len(p.rates) * p.outputs, p.side, p.side), x.dtype, "concat"
    if p.size == 1:  # all pixels in a row, and float32 slices
        pixels = pixels.as_row()
        shape, dtype, fuse = (1, p.outputs, 1, pixels.pixels), torch.float32, "sum"
    out = x.new_empty(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
    taps = taps_of(weight)

    def call() -> Tensor:
        conv(pixels, taps, out, p.rates, fuse=fuse)
        return out

    def truth() -> Tensor:
        branches = [
            F.conv2d(x.double(), w.double(), padding=rate * (p.size // 2), dilation=rate)
            for w, rate in zip(weight, p.rates, strict=True)
        ]
        exact = torch.cat(branches, 1)
        return exact.transpose(0, 1).reshape(shape) if p.size == 1 else exact

    return Run(call, truth, out)


def _to_input(p: TuneProblem, g: Tensor, weight: Tensor) -> Run:
    pixels, step = pixels_of(g, len(p.rates))
    taps = taps_of(weight, pad_outputs=True).transposed(p.outputs)
    out = g.new_empty(p.batch, p.outputs, p.side, p.side).contiguous(
        memory_format=torch.channels_last
    )
    stride = step if len(p.rates) > 1 else 0

    def call() -> Tensor:
        conv(pixels, taps, out, p.rates, fuse="sum", direction=-1, x_rate_stride=stride)
        return out

    def truth() -> Tensor:
        total = torch.zeros_like(out, dtype=torch.float64)
        for w, part, rate in zip(weight, g.chunk(len(p.rates), 1), p.rates, strict=True):
            reach = rate * (p.size // 2)
            total += F.conv_transpose2d(part.double(), w.double(), padding=reach, dilation=rate)
        return total

    return Run(call, truth, out)


def _weight_grad(p: TuneProblem, x: Tensor, g: Tensor) -> Run:
    pixels, _ = pixels_of(x)
    grads, step = pixels_of(g, len(p.rates))
    if p.size == 1:
        part, of_part = pixels.as_row(), grads.as_row()
        _, splits = weight_grad.splits_for(part, p.outputs, 1, p.outputs)
        slices = x.new_empty(splits, p.outputs, p.inputs, dtype=torch.float32)

        def multiply() -> Tensor:
            weight_grad.product(part, of_part, slices, add=False)
            return slices.sum(0)

        return Run(multiply, lambda: torch.einsum("bohw,bihw->oi", g.double(), x.double()), slices)
    shape = len(p.rates), p.outputs, p.size, p.size, p.inputs
    gradient = x.new_empty(shape).permute(0, 1, 4, 2, 3)

    def correlate() -> Tensor:
        weight_grad.correlate(pixels, grads, p.rates, step, gradient)
        return gradient

    def truth() -> Tensor:
        exact: list[Tensor] = []
        for part, rate in zip(g.double().chunk(len(p.rates), 1), p.rates, strict=True):
            weight = torch.zeros_like(gradient[0], dtype=torch.float64).requires_grad_()
            reach = rate * (p.size // 2)
            out = F.conv2d(x.double(), weight, padding=reach, dilation=rate)
            exact += torch.autograd.grad(out, weight, part)
        return torch.stack(exact)

    return Run(correlate, truth, gradient)
