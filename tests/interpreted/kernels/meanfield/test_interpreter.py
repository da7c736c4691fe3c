"""The Triton mean field in the interpreter: any sizes and tiles, what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mean_field_problems import (
    assert_agrees,
    compatibility,
    mean_field,
    normal,
    term,
    uniform,
    walked,
)

import crf
from kernels import dispatch, memory
from kernels.meanfield import ops, triton
from kernels.meanfield.build import FilterSettings
from kernels.meanfield.term import LatticeTerm
from kernels.meanfield.triton import composed
from kernels.permutohedral import reference as lattice_eager
from kernels.permutohedral import triton as lattice_triton


@pytest.mark.parametrize("tile", [8, 32])
def test_more_points_than_a_tile(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    monkeypatch.setattr(triton, "TILE", tile)
    one = term(walked(13, 2), torch.full((6,), -2.0))
    assert_agrees("triton", normal(13, 6), [one], 2)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    count=st.integers(1, 50),
    labels=st.integers(1, 30),
    iterations=st.integers(1, 3),
    dims=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    weight=st.floats(-10, 0),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_weight(
    count: int, labels: int, iterations: int, dims: list[int], weight: float, seed: int
) -> None:
    terms = [
        term(
            lattice_eager.build(normal(count, d, seed=seed).cumsum(0)),
            torch.full((labels,), weight),
        )
        for d in dims
    ]
    marginals = assert_agrees("triton", normal(count, labels, seed=seed + 1), terms, iterations)
    torch.testing.assert_close(marginals.sum(1), torch.ones(count))


def test_what_does_not_fit_is_refused_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 10**9)
    one = LatticeTerm(walked(4, 2), torch.full((3,), -1.0))
    unary = torch.zeros(4, 1).expand(4, 10**8)
    with pytest.raises(MemoryError, match="mean field of 4 points with 100000000 labels needs"):
        triton._require_memory(unary, [one])


def test_repeated_runs_give_the_same_bits() -> None:
    unary = normal(60, 5)
    one = term(lattice_triton.build(normal(60, 3)), compatibility("matrix", 5))
    first = mean_field("triton", unary, [one], 3)
    assert torch.equal(mean_field("triton", unary, [one], 3), first)


def test_more_entries_than_32_bits_index_are_refused() -> None:
    single = walked(1, 2)
    wide = dataclasses.replace(single, corners=single.corners[:, :1].expand(1, 2**30))
    one = LatticeTerm(wide, torch.full((3,), -1.0))
    with pytest.raises(ValueError, match="32 bits"):
        triton._require_memory(normal(1, 3), [one, one])


@pytest.mark.parametrize("method", ["exact", "separable"])
def test_other_methods_are_updated_by_the_kernel_where_no_gradient_is_wanted(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, unary = 255 * uniform(2, 3, 5, 4), normal(2, 3, 20)
    terms = [crf.Gaussian(3.0, 2.0), crf.Bilateral(4.0, 9.0, 90.0)]
    features = [term.features(images) for term in terms]
    compatibilities = [compatibility("attractive", 3), compatibility("matrix", 3)]
    settings = FilterSettings(
        method, "symmetric", iterations=2, precision="ieee", eps=0.0, tolerance=1e-3, width=4,
        has_gaussian=True, spatial_dims=2, marginals=True,
    )  # fmt: skip
    expected = ops.infer(unary, features, compatibilities, settings)
    interpreted = dispatch.Implementation("triton", "as on a GPU", device="cpu", triton=True)
    monkeypatch.setitem(dispatch.OPERATIONS, "meanfield", (interpreted,))
    updates = []
    update = composed.mean_field
    monkeypatch.setattr(
        composed, "mean_field", lambda *a, **options: (updates.append(a), update(*a, **options))[1]
    )
    found = ops.infer(unary, features, compatibilities, settings)
    torch.testing.assert_close(found, expected)
    assert len(updates) == 1
    with_gradient = ops.infer(unary.requires_grad_(), features, compatibilities, settings)
    torch.testing.assert_close(with_gradient, expected)
    assert len(updates) == 1
