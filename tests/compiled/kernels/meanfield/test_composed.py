"""The update between filters of any kind compiles without spills and is one launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from targets import SHARED_MEMORY, assert_fits, assert_serves_any_size, meta
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import Term
from kernels.meanfield import GridFilter, SeparableFilter, filters
from kernels.meanfield.triton import composed
from kernels.separable import triton as separable_triton
from kernels.separable.factors import Separable

HEIGHT, WIDTH = 375, 500
COUNT = HEIGHT * WIDTH
UPDATE = "composed_update_kernel"


class Computed(TorchDispatchMode):
    """Names what PyTorch would launch: all but views and new memory."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if not (function.is_view or "empty" in function.__name__):
            self.names.append(function.__name__)
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of device "meta" take the filters' Triton kernels."""

    def apply(separable: Separable, values: Tensor, precision: str) -> Tensor:
        return separable_triton.filter(separable, values, precision)

    monkeypatch.setattr(filters, "apply_separable", apply)
    monkeypatch.setattr(filters, "convolve", separable_triton.convolve)


def terms(labels: int, matrix: bool, precision: str) -> list[Term]:
    """A smoothness and an appearance term of a photograph, at sigmas 3, 80 and 13."""
    grid = GridFilter(meta(19), meta(19), WIDTH)
    separable = Separable(
        meta(256, 3), meta(256, 256), (meta(8), meta(9)), (8, 11), meta(COUNT, dtype=torch.int64),
        meta(COUNT, 3), meta(COUNT, 2), meta(COUNT), meta(231, 3, dtype=torch.int32),
        meta(89, dtype=torch.int32), 0.1,
    )  # fmt: skip
    compatibility = meta(labels, labels) if matrix else meta(labels)
    scale = meta(1, COUNT, 1)
    return [
        Term(grid, compatibility, scale, scale),
        Term(SeparableFilter([separable], precision), compatibility, scale, scale),
    ]


def infer(
    iterations: int, labels: int = 21, matrix: bool = False, precision: str = "bf16"
) -> Callable[[], object]:
    unary, pairwise = meta(1, COUNT, labels), terms(labels, matrix, precision)
    return lambda: composed.mean_field(unary, pairwise, iterations)


@pytest.mark.parametrize("precision", ["bf16", "ieee"])
def test_an_iteration_over_landmarks_is_eight_launches_and_none_of_pytorchs(launches, precision):
    found = []
    for iterations in (2, 3):
        with Computed() as computed:
            names = [x.name for x in launches(infer(iterations, precision=precision))]
        assert not computed.names
        found.append(names)
    shorter, longer = found
    iteration = [
        "convolve_kernel",
        *("splat_kernel", "combine_kernel", "convolve_kernel", "convolve_kernel"),
        *("product_kernel", "slice_kernel", UPDATE),
    ]
    assert shorter == [UPDATE, *iteration * 2]
    assert longer == [UPDATE, *iteration * 3]


def test_a_matrix_of_compatibilities_is_one_product_a_term(launches):
    with Computed() as computed:
        names = [x.name for x in launches(infer(1, matrix=True))]
    assert not computed.names
    assert names.count("product_kernel") == 1 + 2


@pytest.mark.parametrize("target", SHARED_MEMORY)
@pytest.mark.parametrize("labels", [2, 21, 256])
def test_updates_spill_nothing_and_multiply_in_float32(binaries, target, labels):
    found = binaries(target, infer(2, labels), {UPDATE})
    assert len(found) == 3  # the first, one between, and the last
    for binary in found:
        assert_fits(binary, target)
        assert not binary.multiplies


@pytest.mark.parametrize("target", SHARED_MEMORY)
def test_products_with_a_matrix_are_in_float32(binaries, target):
    matrices = "f32" if target.startswith("gfx") else None
    for binary in binaries(target, infer(1, matrix=True), {"product_kernel"}):
        assert_fits(binary, target)
        assert binary.multiplies <= {matrices}


def test_sizes_are_no_reason_to_compile_the_update_anew(launches):
    assert_serves_any_size([x for x in launches(infer(2)) if x.name == UPDATE])
