"""Heads for the comparison of atrous convolutions: inputs, both ways to compute them, and the cost.

Ours takes the weights of all rates in one tensor, the peer a tensor for each rate, as the modules
that people write hold them: gathered in one, its backward would pay for taking them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from frame import Candidate, Cost
from torch import Tensor

import kernels


@dataclass(frozen=True)
class Head:
    """One multi-rate convolution with 3x3 taps: `channels` in, `outputs` a rate.

    Attributes:
        normalised: scale and shift of a folded batch normalisation in the place of the bias.
        backward: also the gradients of input, weights and biases.
    """

    channels: int
    outputs: int
    side: int
    fuse: Literal["sum", "concat"]
    rates: tuple[int, ...] = (6, 12, 18, 24)
    normalised: bool = False
    batch: int = 1
    dtype: torch.dtype = torch.float32
    backward: bool = False

    @property
    def output_channels(self) -> int:
        """Channels of the output: `outputs` once summed, else for every rate side by side."""
        return self.outputs * (1 if self.fuse == "sum" else len(self.rates))


class Operands(NamedTuple):
    """The tensors of one call; a tuple holds one tensor for all rates, one each, or none."""

    input: Tensor
    upstream: Tensor
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...] = ()
    scales: tuple[Tensor, ...] = ()
    shifts: tuple[Tensor, ...] = ()

    def apart(self) -> Operands:
        """The same with tensors of its own for each rate, its scale and shift `[K, 1, 1]`."""
        (weight,) = self.weights

        def columns(vectors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(
                part[:, None, None] for each in vectors for part in each.chunk(len(weight))
            )

        return self._replace(
            weights=tuple(part.clone() for part in weight),
            biases=tuple(part.clone() for each in self.biases for part in each),
            scales=columns(self.scales),
            shifts=columns(self.shifts),
        )

    def double(self) -> Operands:
        """The same in float64."""
        groups = (tuple(tensor.double() for tensor in group) for group in self[2:])
        return Operands(self.input.double(), self.upstream.double(), *groups)


Forward = Callable[[Head, Operands], Tensor]


def operands(head: Head, device: str) -> Operands:
    """Random values of unit scale, all rates in one tensor; channels_last on a GPU."""
    generator = torch.Generator(device).manual_seed(0)
    layout = torch.channels_last if device == "cuda" else torch.contiguous_format

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(*shape, generator=generator, device=device) * scale
        values = values.to(head.dtype)
        return values.contiguous(memory_format=layout) if len(shape) == 4 else values

    rates, side, rows = len(head.rates), head.side, len(head.rates) * head.outputs
    weight = normal(rows, head.channels, 3, 3, scale=(9 * rates * head.channels) ** -0.5)
    return Operands(
        input=normal(head.batch, head.channels, side, side),
        upstream=normal(head.batch, head.output_channels, side, side),
        weights=(weight.unflatten(0, (rates, head.outputs)),),
        biases=() if head.normalised else (normal(rates, head.outputs),),
        scales=(normal(rows),) if head.normalised else (),
        shifts=(normal(rows),) if head.normalised else (),
    )


def ours(head: Head, given: Operands) -> Tensor:
    """One call for all rates."""
    return kernels.multi_rate_atrous_conv2d(
        given.input,
        given.weights[0],
        given.biases[0] if given.biases else None,
        rates=head.rates,
        fuse=head.fuse,
        scale=given.scales[0] if given.scales else None,
        shift=given.shifts[0] if given.shifts else None,
        activation=None if head.fuse == "sum" else "relu",
    )


def one_convolution_a_rate(head: Head, given: Operands) -> Tensor:
    """The head as models write it today."""
    branches = []
    for i, rate in enumerate(head.rates):
        bias = given.biases[i] if given.biases else None
        branch = F.conv2d(given.input, given.weights[i], bias, padding=rate, dilation=rate)
        if given.scales:  # one pass, as batch_norm in evaluation
            branch = torch.addcmul(given.shifts[i], branch, given.scales[i])
        branches.append(branch)
    if head.fuse == "sum":
        total = branches[0]
        for branch in branches[1:]:
            total = total + branch
        return total
    return torch.cat([F.relu(branch, inplace=True) for branch in branches], dim=1)


def compiled(mode: str | None = None, backend: str = "inductor") -> Forward:
    """The peer under torch.compile."""
    torch.compiler.reset()  # cases share the function's code, which is compiled only so many times
    forward: Forward = torch.compile(
        one_convolution_a_rate, dynamic=False, fullgraph=True, mode=mode, backend=backend
    )
    return forward


def call(head: Head, forward: Forward, given: Operands) -> Candidate:
    """The function to time: the output, or by name the output and its gradients."""
    if not head.backward:
        return torch.no_grad()(lambda: forward(head, given))

    def both() -> dict[str, Any]:
        originals = (given.input, *given.weights, *given.biases)
        leaves = tuple(tensor.detach().requires_grad_() for tensor in originals)
        first_bias = 1 + len(given.weights)
        weights, biases = leaves[1:first_bias], leaves[first_bias:]
        output = forward(head, given._replace(input=leaves[0], weights=weights, biases=biases))
        found = torch.autograd.grad(output, leaves, given.upstream)
        return {
            "output": output,
            "d input": found[0],
            "d weight": found[1:first_bias],
            "d bias": found[first_bias:],
        }

    return both


def live_pairs(side: int, rates: Sequence[int], fuse: str) -> int:
    """Pairs of output position and tap within a `side` x `side` map, over the rates.

    The taps at the centre see the same input at every rate: summed, they are one tap.
    """
    pairs = sum(
        max(0, side - abs(i) * rate) * max(0, side - abs(j) * rate)
        for rate in rates
        for i in (-1, 0, 1)
        for j in (-1, 0, 1)
    )
    return pairs - (len(rates) - 1) * side * side if fuse == "sum" else pairs


def cost(head: Head, peak: str = "operations_per_second") -> Cost:
    """The least work of one call, whose operations the ceiling `peak` bounds.

    Input, weights (with biases, or scales and shifts) and output move once. The backward reads the
    first two and the gradient of the output again, and writes the gradients of the first two.

    Each live pair is a column of `channels` multiply-adds for each of its output channels; the
    backward does as much for the input and as much again for the weights.
    """
    positions = head.batch * head.side**2
    vectors = 2 if head.normalised else 1
    sizes = {
        "input": positions * head.channels,
        "weights": len(head.rates) * head.outputs * (9 * head.channels + vectors),
        "output": positions * head.output_channels,
        "live_pairs": live_pairs(head.side, head.rates, head.fuse),
    }
    moved = sizes["input"] + sizes["weights"] + sizes["output"]
    done = 2 * head.batch * head.channels * head.outputs * sizes["live_pairs"]
    if head.backward:
        moved += moved + sizes["input"] + sizes["weights"]
        done *= 3
    return Cost(head.dtype.itemsize * moved, done, sizes, peak)
