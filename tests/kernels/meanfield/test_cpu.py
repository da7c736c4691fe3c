"""The fused numba mean field against plain PyTorch in float64."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mean_field_problems import (
    assert_agrees,
    compatibility,
    lattice_of,
    mean_field,
    normal,
    term,
    uniform,
    walked,
)

from kernels.meanfield import cpu
from kernels.permutohedral import cpu as lattice_cpu


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch, set_threads):
    set_threads(3)
    monkeypatch.setattr(lattice_cpu, "MIN_PART", 16)


_lattice = functools.partial(walked, build=lattice_cpu.build)


@pytest.mark.parametrize("kind", ["attractive", "repulsive", "diagonal", "potts", "matrix"])
@pytest.mark.parametrize("scaled", ["both", "before", "after", "neither", "same"])
def test_every_compatibility_and_normalisation(kind, scaled):
    count, labels = 150, 5
    before = uniform(count, seed=7) + 0.2
    after = uniform(count, seed=8) + 0.2
    before, after = {
        "both": (before, after),
        "before": (before, None),
        "after": (None, after),
        "neither": (None, None),
        "same": (before, before),
    }[scaled]
    terms = [
        term(_lattice(count, 2), compatibility(kind, labels), before, after),
        term(_lattice(count, 5), compatibility("attractive", labels), before, before),
    ]
    assert_agrees("cpu", normal(count, labels), terms, 4)


@pytest.mark.parametrize("labels", [1, 2, 8, 21, 65, 256])
def test_any_number_of_labels(labels):
    one = term(_lattice(90, 3), torch.full((labels,), -2.0))
    marginals = assert_agrees("cpu", normal(90, labels), [one], 3)
    torch.testing.assert_close(marginals.sum(1), torch.ones(90))


@pytest.mark.parametrize("iterations", [0, 1, 2, 10])
@pytest.mark.parametrize("given_start", [False, True])
def test_any_number_of_iterations_from_any_start(iterations, given_start):
    start = torch.softmax(3 * normal(120, 4, seed=9), 1) if given_start else None
    one = term(_lattice(120, 5), compatibility("matrix", 4))
    assert_agrees("cpu", normal(120, 4), [one], iterations, start=start)


@pytest.mark.parametrize("labels", [2, 4, 21])
def test_a_start_need_not_sum_to_one(labels):
    start = torch.rand(80, labels, generator=torch.Generator().manual_seed(0))
    one = term(_lattice(80, 3), torch.full((labels,), -1.0))
    assert_agrees("cpu", normal(80, labels), [one], 1, start=start)


def test_order_says_which_pixel_a_lattice_point_is():
    count = 130
    features, unary = normal(count, 3).cumsum(0) * 0.3, normal(count, 6, seed=4)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    weight = torch.full((6,), -2.0)
    natural = term(lattice_cpu.build(features), weight)
    visited = term(lattice_cpu.build(features[order].contiguous()), weight, order=order)
    expected = mean_field("cpu", unary, [natural], 5)
    result = assert_agrees("cpu", unary, [visited], 5)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_a_transposed_unary_gives_a_transposed_result():
    unary = normal(7, 100).T
    one = term(_lattice(100, 2), torch.full((7,), -2.0))
    result = assert_agrees("cpu", unary, [one], 3)
    assert result.T.is_contiguous()


def test_lattices_built_on_different_numbers_of_threads_work_together():
    terms = [term(_lattice(120, 2), torch.full((3,), -1.0))]
    torch.set_num_threads(2)
    terms.append(term(_lattice(120, 5), torch.full((3,), -1.0)))
    terms.append(term(walked(120, 4), torch.full((3,), -1.0)))
    assert len({len(lattice_of(one).parts) for one in terms}) == 3
    assert_agrees("cpu", normal(120, 3), terms, 3)


@pytest.mark.parametrize("kind", ["attractive", "potts", "matrix"])
def test_logits_are_those_of_plain_pytorch(kind):
    terms = [term(_lattice(80, 2), compatibility(kind, 5)), term(_lattice(80, 3), torch.ones(5))]
    for iterations in (0, 1, 3):
        assert_agrees("cpu", normal(80, 5), terms, iterations, marginals=False)


def test_no_terms_is_the_softmax():
    unary = normal(50, 9)
    torch.testing.assert_close(mean_field("cpu", unary, [], 5), torch.softmax(-unary, 1))


def test_more_points_than_a_block():
    count = 3 * cpu.BLOCK + 17
    one = term(_lattice(count, 5), torch.full((3,), -2.0))
    assert_agrees("cpu", normal(count, 3), [one], 3)


@pytest.mark.parametrize(("labels", "forbidden"), [(2, 0), (2, 1), (4, 2), (21, 3), (21, 20)])
def test_a_forbidden_label_stays_forbidden(labels, forbidden):
    unary = normal(60, labels)
    unary[:, forbidden] = float("inf")
    one = term(_lattice(60, 3), torch.full((labels,), -5.0))
    result = mean_field("cpu", unary, [one], 5)
    assert (result[:, forbidden] == 0).all()
    torch.testing.assert_close(result.sum(1), torch.ones(60))


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 80),
    labels=st.integers(1, 30),
    iterations=st.integers(1, 5),
    weight=st.floats(-10, 10),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_weight(count, labels, iterations, weight, seed):
    features = normal(count, 3, seed=seed).cumsum(0).contiguous()
    one = term(lattice_cpu.build(features), torch.full((labels,), weight))
    # A repulsive weight makes the updates swing, so that rounding grows: only attraction is tight.
    if weight < 0:
        assert_agrees("cpu", normal(count, labels, seed=seed + 1), [one], iterations)
    result = mean_field("cpu", normal(count, labels, seed=seed + 1), [one], iterations)
    torch.testing.assert_close(result.sum(1), torch.ones(count))
