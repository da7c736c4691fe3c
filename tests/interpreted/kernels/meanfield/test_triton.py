"""The fused Triton mean field in the interpreter against plain PyTorch in float64."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mean_field_problems import (
    assert_agrees,
    compatibility,
    lattice_of,
    mean_field,
    normal,
    term,
    uniform,
)

import kernels
from kernels import memory
from kernels.meanfield import triton
from kernels.meanfield.term import LatticeTerm
from kernels.permutohedral import cpu as lattice_cpu
from kernels.permutohedral import reference as lattice_eager
from kernels.permutohedral import triton as lattice_triton


def lattice(count: int, dims: int, build: Any = lattice_eager.build) -> kernels.Lattice:
    return build((normal(count, dims, seed=dims).cumsum(0) * 0.3).contiguous())


@pytest.mark.parametrize(
    ("kind", "scaled"),
    [
        *itertools.product(["attractive", "diagonal", "matrix"], ["both", "neither"]),
        ("repulsive", "before"),
        ("attractive", "after"),
        ("potts", "both"),
    ],
)
def test_every_compatibility_and_normalisation(kind: str, scaled: str) -> None:
    count, labels = 40, 5
    before, after = uniform(count, seed=7) + 0.2, uniform(count, seed=8) + 0.2
    of_first = {
        "both": (before, after),
        "before": (before, None),
        "after": (None, after),
        "neither": (None, None),
    }[scaled]
    terms = [
        term(lattice(count, 1), compatibility(kind, labels), *of_first),
        term(lattice(count, 3), compatibility("attractive", labels), before, before),
    ]
    assert_agrees("triton", normal(count, labels), terms, 2)


@pytest.mark.parametrize("labels", [1, 2, 21, 256])
def test_any_number_of_labels(labels: int) -> None:
    kind = "matrix" if labels == 21 else "attractive"
    one = term(lattice(30, 2), compatibility(kind, labels))
    marginals = assert_agrees("triton", normal(30, labels), [one], 2)
    torch.testing.assert_close(marginals.sum(1), torch.ones(30))


@pytest.mark.parametrize("iterations", [0, 1, 5])
@pytest.mark.parametrize("given_start", [False, True])
def test_any_number_of_iterations_from_any_start(iterations: int, given_start: bool) -> None:
    start = torch.softmax(3 * normal(40, 4, seed=9), 1) if given_start else None
    one = term(lattice(40, 2), compatibility("matrix", 4))
    assert_agrees("triton", normal(40, 4), [one], iterations, start=start)


@pytest.mark.parametrize("given_start", [False, True])
def test_order_says_which_pixel_a_lattice_point_is(given_start: bool) -> None:
    count = 50
    features, unary = normal(count, 2).cumsum(0) * 0.3, normal(6, count, seed=4).T
    start = torch.softmax(normal(count, 6, seed=5), 1) if given_start else None
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    weight = torch.full((6,), -2.0)
    natural = term(lattice_triton.build(features), weight)
    visited = term(lattice_triton.build(features[order]), weight, order=order)
    expected = mean_field("triton", unary, [natural], 3, start=start)
    result = assert_agrees("triton", unary, [visited], 3, start=start)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_arguments_of_any_strides_are_read_right() -> None:
    count, labels = 30, 3
    order = torch.randperm(2 * count, generator=torch.Generator().manual_seed(1)).argsort()
    order = order[order < count].repeat_interleave(2)[::2]
    scale = (uniform(2 * count, seed=5) + 0.2)[::2]
    both = normal(count, 2 * labels)[:, ::2]
    built, wide = lattice(count, 2), -uniform(2 * labels)[::2]
    one = term(built, wide, scale, scale[:1].expand(count), order)
    start = torch.softmax(normal(labels, count), 0).T
    dense = term(
        built, wide.contiguous(), scale.contiguous(), scale[:1].expand(count).contiguous(), order
    )
    found = mean_field("triton", both, [one], 2, start)
    expected = mean_field("reference", both, [dense], 2, start)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_transposed_unary_gives_a_transposed_result() -> None:
    one = term(lattice(40, 2), torch.full((7,), -2.0))
    assert assert_agrees("triton", normal(7, 40).T, [one], 2).T.is_contiguous()


def test_lattices_of_any_build_and_dimension_work_together(monkeypatch) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(lattice_cpu, "MIN_PART", 8)
    builds = lattice_cpu.build, lattice_triton.build, lattice_eager.build
    terms = [
        term(lattice(50, dims, build), torch.full((3,), -1.0))
        for dims, build in zip((3, 1, 4), builds, strict=True)
    ]
    torch.set_num_threads(threads)
    assert len(lattice_of(terms[0]).ghosts)
    assert_agrees("triton", normal(50, 3), terms, 2)


def test_all_points_on_one_simplex() -> None:
    terms = [
        term(lattice_triton.build(torch.zeros(150, 2)), torch.full((4,), -0.01)),
        term(lattice_triton.build(1e-4 * normal(150, 1)), torch.full((4,), -0.01)),
    ]
    assert all((lattice_of(one).sums[2] >= 0).any() for one in terms)
    assert_agrees("triton", normal(150, 4), terms, 2)


def test_points_that_carry_no_values_take_part_in_the_blur_alone() -> None:
    features = torch.cat([normal(30, 2), torch.zeros(2, 2)])

    def without_last(built: kernels.Lattice) -> kernels.Lattice:
        return dataclasses.replace(built, corners=built.corners[:30], weights=built.weights[:30])

    weight, unary = torch.full((3,), -2.0), normal(30, 3)
    found, expected = (
        mean_field(impl, unary, [term(without_last(build(features)), weight)], 3)
        for impl, build in (
            ("triton", lattice_triton.build),
            ("reference", lattice_eager.build),
        )
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_several_images_in_one_call_do_not_mix() -> None:
    features, unary = normal(40, 2), normal(40, 3, seed=2)
    weight = torch.full((3,), -2.0)
    terms = [term(lattice_triton.build(features, 2), weight)]
    halves = [
        mean_field("triton", u, [term(lattice_triton.build(f.contiguous()), weight)], 2)
        for u, f in zip(unary.split(20), features.split(20), strict=True)
    ]
    assert torch.equal(mean_field("triton", unary, terms, 2), torch.cat(halves))


@pytest.mark.parametrize("kind", ["attractive", "potts", "matrix"])
def test_logits_are_those_of_plain_pytorch(kind: str) -> None:
    terms = [term(lattice(30, 2), compatibility(kind, 5)), term(lattice(30, 1), torch.ones(5))]
    for iterations in (0, 1, 2):
        assert_agrees("triton", normal(30, 5), terms, iterations, marginals=False)


def test_no_terms_and_no_points() -> None:
    unary = normal(20, 9)
    torch.testing.assert_close(mean_field("triton", unary, [], 5), torch.softmax(-unary, 1))
    empty = term(lattice_triton.build(torch.empty(0, 2)), torch.full((3,), -1.0))
    assert mean_field("triton", torch.empty(0, 3), [empty], 2).shape == (0, 3)


def test_a_forbidden_label_stays_forbidden() -> None:
    unary = normal(30, 4)
    unary[:, 2] = math.inf
    for kind in ("attractive", "matrix"):
        one = term(lattice(30, 2), compatibility(kind, 4))
        result = mean_field("triton", unary, [one], 3)
        assert (result[:, 2] == 0).all()
        torch.testing.assert_close(result.sum(1), torch.ones(30))


@pytest.mark.parametrize("tile", [8, 32])
def test_more_points_than_a_tile(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    monkeypatch.setattr(triton, "TILE", tile)
    one = term(lattice(30, 2), torch.full((6,), -2.0))
    assert_agrees("triton", normal(30, 6), [one], 2)


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
    one = LatticeTerm(lattice(4, 2), torch.full((3,), -1.0))
    unary = torch.zeros(4, 1).expand(4, 10**8)
    with pytest.raises(MemoryError, match="mean field of 4 points with 100000000 labels needs"):
        triton._require_memory(unary, [one])


def test_repeated_runs_give_the_same_bits() -> None:
    unary = normal(60, 5)
    one = term(lattice_triton.build(normal(60, 3)), compatibility("matrix", 5))
    first = mean_field("triton", unary, [one], 3)
    assert torch.equal(mean_field("triton", unary, [one], 3), first)


def test_more_entries_than_32_bits_index_are_refused() -> None:
    single = lattice(1, 2)
    wide = dataclasses.replace(single, corners=single.corners[:, :1].expand(1, 2**30))
    one = LatticeTerm(wide, torch.full((3,), -1.0))
    with pytest.raises(ValueError, match="32 bits"):
        triton._require_memory(normal(1, 3), [one, one])
