"""The Gaussian filters: building what they go by, filtering, and the gradients."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from fake_cuda import Case, tensor

import kernels
from fake_cuda_cases.alike import expect, expect_like, gradients, staged

N, D, C = 375 * 500, 5, 21


@staged
def filtering(method: Any, batch: int = 1, **options: Any) -> Iterator[None]:
    """Build and filter, forward and backward; by the exact filter to the features too."""
    values = tensor(batch, N, C, requires_grad=True)
    features = tensor(batch, N, D, requires_grad=method == "exact")
    inputs = [each for each in (values, features) if each.requires_grad]
    yield
    found = kernels.gaussian_filter(values, features, method=method, **options)
    expect(found, batch, N, C)
    for gradient, given in zip(gradients(found, *inputs), inputs, strict=True):
        expect_like(gradient, given)


@staged
def build(make: Callable[..., Any], *shape: int, **parts: tuple[int, ...]) -> Iterator[None]:
    """Make it of features of a shape: it has parts of these shapes."""
    features = tensor(*shape)
    yield
    made = make(features)
    for name, expected in parts.items():
        expect(getattr(made, name), *expected)


@staged
def apply(
    make: Callable[..., Any], filter: Callable[..., Any], channels: int = C, **options: Any
) -> Iterator[None]:
    made = make(tensor(N, D))
    values = tensor(channels, N).T  # as logits lie
    yield
    expect(filter(made, values, **options), N, channels)


LATTICE = kernels.build_lattice, kernels.apply_lattice
SEPARABLE = kernels.build_separable, kernels.apply_separable
ALL_PAIRS = partial(kernels.build_tiles, eps=0.0)
SOME_PAIRS = partial(kernels.build_tiles, eps=1e-3)

CASES: dict[str, Case] = {
    "lattice, positions, build": build(LATTICE[0], 1, N, 2, weights=(N, 3)),
    "lattice, positions and colours, build": build(LATTICE[0], 1, N, D, weights=(N, 6)),
    "lattice, positions and colours, 8 images, build": build(
        LATTICE[0], 8, N, D, weights=(8 * N, 6)
    ),
    # keys of several words
    "lattice, 20 dimensions, build": build(LATTICE[0], 1, N, 20, weights=(N, 21)),
    "lattice, positions and colours, apply": apply(*LATTICE),
    "lattice, positions and colours, apply to 150 channels": apply(*LATTICE, 150),
    "lattice, positions and colours, filter and gradient": filtering("permutohedral"),
    "lattice, positions and colours, 30 images, filter and gradient": filtering(
        "permutohedral", 30
    ),
    "exact, all pairs, build": build(ALL_PAIRS, N, D, mass=(N,)),
    "exact, eps 1e-3, build": build(SOME_PAIRS, N, D, mass=(N,)),
    "exact, all pairs, ieee, apply": apply(ALL_PAIRS, kernels.apply_tiles, precision="ieee"),
    "exact, eps 1e-3, bf16, apply": apply(SOME_PAIRS, kernels.apply_tiles, precision="bf16"),
    "exact, all pairs, ieee, filter and gradients": filtering("exact"),
    "exact, eps 1e-3, tf32, 2 images, filter and gradients": filtering(
        "exact", 2, eps=1e-3, precision="tf32"
    ),
    "separable, positions, build": build(SEPARABLE[0], N, 2, colours=(N, 0), diagonal=(N,)),
    "separable, positions and colours, build": build(
        SEPARABLE[0], N, D, colours=(N, 3), diagonal=(N,)
    ),
    "separable, ieee, apply": apply(*SEPARABLE, precision="ieee"),
    "separable, bf16, apply": apply(*SEPARABLE, precision="bf16"),
    "separable, tf32, 2 images, filter and gradient": filtering("separable", 2, precision="tf32"),
}
