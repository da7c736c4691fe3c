"""The permutohedral lattice: building it, filtering on it, and the gradient."""

from collections.abc import Callable

from fake_cuda import Case, tensor

import kernels
from fake_cuda_cases.alike import expect, gradients

N, C = 375 * 500, 21


def filtering(batch: int, dims: int) -> Case:
    """Build and filter, forward and backward."""

    def case() -> Callable[[], None]:
        values, features = tensor(batch, N, C, requires_grad=True), tensor(batch, N, dims)

        def run() -> None:
            found = kernels.gaussian_filter(values, features, method="permutohedral")
            expect(found, batch, N, C)
            (gradient,) = gradients(found, values)
            expect(gradient, batch, N, C)

        return run

    return case


def build(batch: int, dims: int) -> Case:
    def case() -> Callable[[], None]:
        features = tensor(batch, N, dims)

        def run() -> None:
            lattice = kernels.build_lattice(features)
            expect(lattice.weights, batch * N, dims + 1)

        return run

    return case


def apply(dims: int, channels: int) -> Case:
    def case() -> Callable[[], None]:
        lattice = kernels.build_lattice(tensor(N, dims))
        values = tensor(channels, N).T  # as logits lie

        def run() -> None:
            expect(kernels.apply_lattice(lattice, values), N, channels)

        return run

    return case


CASES: dict[str, Case] = {
    "lattice, positions, build": build(1, 2),
    "lattice, positions and colours, build": build(1, 5),
    "lattice, positions and colours, 8 images, build": build(8, 5),
    "lattice, 20 dimensions, build": build(1, 20),  # keys of several words
    "lattice, positions and colours, apply": apply(5, C),
    "lattice, positions and colours, apply to 150 channels": apply(5, 150),
    "lattice, positions and colours, filter and gradient": filtering(1, 5),
    "lattice, positions and colours, 30 images, filter and gradient": filtering(30, 5),
}
