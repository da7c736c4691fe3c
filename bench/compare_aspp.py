"""Multi-rate atrous convolution: one call of kernels beside one F.conv2d for each rate.

The heads of DeepLab v2: ResNet's (2048 -> 21 at four rates, summed) and one stage of VGG's ASPP-L
(512 -> 1024 at four rates with ReLU, concatenated), batch 1, float32, on the maps of 321 and 513
pixel crops. The gate is an error budget: ours may be off from float64 by twice what PyTorch's own
convolution is, plus one rounding of the largest value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from frame import Candidate, Case, Check, Comparison, Cost, Formula, Prepared, Settings

import kernels

OURS, PEER, COMPILED = "kernels", "F.conv2d a rate", "torch.compile"
RATES = (6, 12, 18, 24)

# Input, weights, bias and output move once; the backward reads the first two and the gradient of
# the output again, and writes three gradients.
FORWARD_BYTES = "4 * (B*Ci*H*W + Wt + B*Co*H*W)"
BACKWARD_BYTES = "4 * (B*Ci*H*W + Wt + B*Co*H*W + B*Ci*H*W + Wt)"
# P counts the pairs of output position and tap that fall within the map. Each is a column of Ci
# multiply-adds for each of its output channels; the backward does as much for the input and as
# much again for the weights.
FORWARD_OPERATIONS = "2 * B * Ci * K * P"


@dataclass(frozen=True)
class Head:
    """One multi-rate convolution: `channels` in, `outputs` a rate, 3x3 taps, RATES."""

    channels: int
    outputs: int
    side: int
    fuse: Literal["sum", "concat"]
    backward: bool = False

    @property
    def rates_in_output(self) -> int:
        """How many times over the output channels appear: once summed, R times side by side."""
        return 1 if self.fuse == "sum" else len(RATES)


COMPILED_HEAD = Head(2048, 21, 41, "sum")  # compiling takes long: one head has this peer too

Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def cases(settings: Settings) -> list[Case]:
    """Each head forward alone, then with its backward, whose memory is measured."""
    if settings.quick:
        small = {
            "256->21 x4 41x41": Head(256, 21, 41, "sum"),
            "64->64 x4 41x41": Head(64, 64, 41, "concat"),
        }
        return [_case(name, head, settings) for name, head in small.items()]
    heads = {
        "2048->21 x4 41x41": COMPILED_HEAD,
        "2048->21 x4 65x65": Head(2048, 21, 65, "sum"),
        "512->1024 x4 41x41": Head(512, 1024, 41, "concat"),
    }
    return [
        _case(name, replace(head, backward=backward), settings)
        for name, head in heads.items()
        for backward in (False, True)
    ]


COMPARISON = Comparison("aspp", " ".join(__doc__.split("\n\n")[0].split()), ("cpu", "cuda"), cases)


def ours(head: Head) -> Forward:
    """One call for all rates."""
    activation: Literal["relu"] | None = None if head.fuse == "sum" else "relu"

    def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return kernels.multi_rate_atrous_conv2d(
            x, weight, bias, rates=RATES, fuse=head.fuse, activation=activation
        )

    return forward


def one_convolution_a_rate(head: Head) -> Forward:
    """The head as models write it today."""

    def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        branches = [
            F.conv2d(x, weight[i], bias[i], padding=rate, dilation=rate)
            for i, rate in enumerate(RATES)
        ]
        if head.fuse == "sum":
            return branches[0] + branches[1] + branches[2] + branches[3]
        return torch.cat([F.relu(branch) for branch in branches], dim=1)

    return forward


def live_pairs(side: int, fuse: str) -> int:
    """Pairs of output position and tap within a `side` x `side` map, over RATES.

    The taps at the centre see the same input at every rate: summed, they are one tap.
    """
    pairs = sum(
        max(0, side - abs(i) * rate) * max(0, side - abs(j) * rate)
        for rate in RATES
        for i in (-1, 0, 1)
        for j in (-1, 0, 1)
    )
    return pairs - (len(RATES) - 1) * side * side if fuse == "sum" else pairs


def prepare(head: Head, device: str, compiled: bool = False) -> Prepared:
    """Inputs, candidates and gate of one case; `compiled` adds torch.compile's to the peers."""
    if device == "cuda":  # one rule for both sides: a convolution may use TF32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    made = tensors(head, device)
    user = one_convolution_a_rate(head)
    forwards = {OURS: ours(head), PEER: user}
    if compiled:
        forwards[COMPILED] = torch.compile(user, dynamic=False)
    return Prepared(
        candidates={name: _call(head, forward, made) for name, forward in forwards.items()},
        gate=partial(_gate, head, made),
        cost=_cost(head),
        facts=vars(head) | {"rates": RATES, "dtype": "float32", "batch": 1},
    )


def _case(name: str, head: Head, settings: Settings) -> Case:
    return Case(
        f"{name} + backward" if head.backward else name,
        partial(prepare, head, settings.device, compiled=head == COMPILED_HEAD),
        memory=head.backward,
    )


def tensors(head: Head, device: str) -> list[torch.Tensor]:
    """Input, weight and bias of unit scale, and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    rates, side = len(RATES), head.side
    return [
        normal(1, head.channels, side, side),
        normal(rates, head.outputs, head.channels, 3, 3) / (9 * rates * head.channels) ** 0.5,
        normal(rates, head.outputs),
        normal(1, head.rates_in_output * head.outputs, side, side),
    ]


def _call(head: Head, forward: Forward, tensors: list[torch.Tensor]) -> Candidate:
    *operands, upstream = tensors
    if not head.backward:
        return torch.no_grad()(partial(forward, *operands))

    def both() -> dict[str, torch.Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in operands]
        output = forward(*leaves)
        d_input, d_weight, d_bias = torch.autograd.grad(output, leaves, upstream)
        return {"output": output, "d input": d_input, "d weight": d_weight, "d bias": d_bias}

    return both


def _gate(head: Head, tensors: list[torch.Tensor], outputs: Mapping[str, Any]) -> list[Check]:
    """Each candidate but the peer against float64, within a budget that the peer's error sets."""
    exact = _named(_call(head, one_convolution_a_rate(head), [t.double() for t in tensors])())
    found = {name: _named(output) for name, output in outputs.items()}
    checks = []
    for name in found.keys() - {PEER}:
        for what, truth in exact.items():
            rounding = torch.finfo(torch.float32).eps * truth.abs().max().item()
            limit = 2 * _error(found[PEER][what], truth) + rounding
            value = _error(found[name][what], truth)
            checks.append(Check(f"largest error of {what} ({name})", value, limit))
    return checks


def _named(output: Any) -> dict[str, torch.Tensor]:
    return output if isinstance(output, dict) else {"output": output}


def _error(value: torch.Tensor, truth: torch.Tensor) -> float:
    return (value.double() - truth).abs().max().item()


def _cost(head: Head) -> Cost:
    sizes = {
        "B": 1,
        "Ci": head.channels,
        "Co": head.rates_in_output * head.outputs,
        "K": head.outputs,
        "H": head.side,
        "W": head.side,
        "Wt": len(RATES) * head.outputs * (9 * head.channels + 1),
        "P": live_pairs(head.side, head.fuse),
    }
    moved = f"{FORWARD_BYTES} + {BACKWARD_BYTES}" if head.backward else FORWARD_BYTES
    done = f"3 * {FORWARD_OPERATIONS}" if head.backward else FORWARD_OPERATIONS
    return Cost(bytes=Formula(moved, sizes), operations=Formula(done, sizes))
