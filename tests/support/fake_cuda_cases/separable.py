"""The separable filter: building it, filtering, and the gradient."""

from collections.abc import Callable
from typing import Any

from fake_cuda import Case, tensor

import kernels
from fake_cuda_cases.alike import expect, gradients

N, D, C = 375 * 500, 5, 21


def filtering(batch: int, precision: Any) -> Case:
    """Build and filter, forward and backward."""

    def case() -> Callable[[], None]:
        values, features = tensor(batch, N, C, requires_grad=True), tensor(batch, N, D)

        def run() -> None:
            found = kernels.gaussian_filter(
                values, features, method="separable", precision=precision
            )
            expect(found, batch, N, C)
            (gradient,) = gradients(found, values)
            expect(gradient, batch, N, C)

        return run

    return case


def build(dims: int) -> Case:
    def case() -> Callable[[], None]:
        features = tensor(N, dims)

        def run() -> None:
            separable = kernels.build_separable(features)
            expect(separable.colours, N, dims - 2)
            expect(separable.diagonal, N)

        return run

    return case


def apply(precision: Any) -> Case:
    def case() -> Callable[[], None]:
        separable = kernels.build_separable(tensor(N, D))
        values = tensor(C, N).T  # as logits lie

        def run() -> None:
            expect(kernels.apply_separable(separable, values, precision=precision), N, C)

        return run

    return case


CASES: dict[str, Case] = {
    "separable, positions, build": build(2),
    "separable, positions and colours, build": build(5),
    "separable, ieee, apply": apply("ieee"),
    "separable, bf16, apply": apply("bf16"),
    "separable, tf32, 2 images, filter and gradient": filtering(2, "tf32"),
}
