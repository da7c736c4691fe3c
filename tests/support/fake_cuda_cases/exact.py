"""The exact filter: tiles, the filter and its gradients."""

from collections.abc import Callable
from typing import Any

from fake_cuda import Case, tensor

import kernels
from fake_cuda_cases.alike import expect, gradients

N, D, C = 375 * 500, 5, 21


def filtering(batch: int, **options: Any) -> Case:
    """The filter, and its gradients to values and features."""

    def case() -> Callable[[], None]:
        values = tensor(batch, N, C, requires_grad=True)
        features = tensor(batch, N, D, requires_grad=True)

        def run() -> None:
            found = kernels.gaussian_filter(values, features, method="exact", **options)
            expect(found, batch, N, C)
            to_values, to_features = gradients(found, values, features)
            expect(to_values, batch, N, C)
            expect(to_features, batch, N, D)

        return run

    return case


def build(eps: float) -> Case:
    def case() -> Callable[[], None]:
        features = tensor(N, D)

        def run() -> None:
            expect(kernels.build_tiles(features, eps=eps).mass, N)

        return run

    return case


def apply(eps: float, precision: Any) -> Case:
    def case() -> Callable[[], None]:
        tiles = kernels.build_tiles(tensor(N, D), eps=eps)
        values = tensor(C, N).T  # as logits lie

        def run() -> None:
            expect(kernels.apply_tiles(tiles, values, precision=precision), N, C)

        return run

    return case


CASES: dict[str, Case] = {
    "exact, all pairs, build": build(0.0),
    "exact, eps 1e-3, build": build(1e-3),
    "exact, all pairs, ieee, apply": apply(0.0, "ieee"),
    "exact, eps 1e-3, bf16, apply": apply(1e-3, "bf16"),
    "exact, all pairs, ieee, filter and gradients": filtering(1),
    "exact, eps 1e-3, tf32, 2 images, filter and gradients": filtering(
        2, eps=1e-3, precision="tf32"
    ),
}
