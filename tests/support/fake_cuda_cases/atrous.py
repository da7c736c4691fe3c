"""Atrous convolution by both algorithms, forward and backward."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from fake_cuda import DEVICE, Case, tensor
from torch import Tensor

import kernels
from fake_cuda_cases.alike import CHANNELS_LAST, expect, expect_like, gradients, staged

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32


@dataclass(frozen=True)
class Pyramid:
    inputs: int
    outputs: int
    size: int
    rates: tuple[int, ...]
    fuse: str = "sum"
    has_bias: bool = True
    has_scale: bool = False  # and a shift
    activation: str | None = None

    @property
    def channels(self) -> int:
        return self.outputs * (1 if self.fuse == "sum" else len(self.rates))

    def tensors(self, batch: int, dtype: torch.dtype, **layout: Any) -> dict[str, Tensor]:
        """The arguments that are tensors, all of which want gradients."""
        make = partial(tensor, dtype=dtype, requires_grad=True)
        x = make(batch, self.inputs, self.size, self.size, **layout)
        found = {"input": x, "weight": make(len(self.rates), self.outputs, self.inputs, 3, 3)}
        if self.has_bias:
            found["bias"] = make(len(self.rates), self.outputs)
        if self.has_scale:
            found |= {"scale": make(self.channels), "shift": make(self.channels)}
        return found


V2 = Pyramid(2048, 21, 65, (6, 12, 18, 24))
VGG = Pyramid(512, 1024, 41, (6, 12, 18, 24), "concat", activation="relu")
V3 = Pyramid(
    2048, 256, 65, (12, 24, 36), "concat", has_bias=False, has_scale=True, activation="relu"
)


@staged
def forward(
    pyramid: Pyramid, impl: str, batch: int, dtype: torch.dtype, **layout: Any
) -> Iterator[None]:
    tensors = {k: t.detach() for k, t in pyramid.tensors(batch, dtype, **layout).items()}
    yield
    output = _convolve(pyramid, impl, tensors)
    shape = batch, pyramid.channels, pyramid.size, pyramid.size
    expect(output, *shape, dtype=dtype, **layout)


@staged
def backward(
    pyramid: Pyramid, impl: str, batch: int, dtype: torch.dtype, **layout: Any
) -> Iterator[None]:
    """The backward alone: the forward is done before."""
    tensors = pyramid.tensors(batch, dtype, **layout)
    output = _convolve(pyramid, impl, tensors)
    yield
    found = dict(zip(tensors, gradients(output, *tensors.values()), strict=True))
    weight = found.pop("weight")
    last = tensors["weight"].permute(0, 1, 3, 4, 2)  # Cin contiguous
    made = torch.empty(last.shape, dtype=dtype, device=DEVICE).permute(0, 1, 4, 2, 3)
    expect_like(weight, made)
    for name, gradient in found.items():
        expect_like(gradient, tensors[name])


@staged
def under_autocast() -> Iterator[None]:
    tensors = V2.tensors(1, SINGLE)
    yield
    with torch.autocast("cuda", dtype=HALF):
        output = _convolve(V2, "auto", tensors)
    expect(output, 1, 21, 65, 65, dtype=HALF)
    for gradient, given in zip(gradients(output, *tensors.values()), tensors.values(), strict=True):
        assert (gradient.shape, gradient.dtype) == (given.shape, given.dtype)


def _convolve(pyramid: Pyramid, impl: str, tensors: dict[str, Tensor]) -> Tensor:
    return kernels.multi_rate_atrous_conv2d(
        **tensors, rates=pyramid.rates, fuse=pyramid.fuse, activation=pyramid.activation, impl=impl
    )


def _problems() -> dict[str, tuple[Any, ...]]:
    last: dict[str, Any] = {"memory_format": CHANNELS_LAST}
    return {
        "v2 head, batch 1, float16": (V2, 1, HALF, {}),
        "v2 head, batch 1, float16, channels_last": (V2, 1, HALF, last),
        "v2 head, batch 1, bfloat16": (V2, 1, BRAIN, {}),
        "v2 head, batch 1, float32": (V2, 1, SINGLE, {}),
        "v2 head, batch 16, float16": (V2, 16, HALF, {}),
        "VGG ASPP, batch 4, float16": (VGG, 4, HALF, {}),
        "v3 head, batch 4, float16": (V3, 4, HALF, {}),
        "v3 head, batch 4, float16, channels_last": (V3, 4, HALF, last),
    }


CASES: dict[str, Case] = {
    f"{name}, {impl.removeprefix('triton:')}, {way.__name__}": way(
        pyramid, impl, batch, dtype, **layout
    )
    for name, (pyramid, batch, dtype, layout) in _problems().items()
    for impl in ("triton:shift", "triton:implicit")
    for way in (forward, backward)
}
CASES["v2 head, batch 1, under autocast"] = under_autocast()
