"""The fused numba mean field against the eager one in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels.meanfield import cpu, reference
from kernels.permutohedral import cpu as lattice_cpu
from kernels.permutohedral import reference as lattice_eager

EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(lattice_cpu, "MIN_PART", 16)
    yield
    torch.set_num_threads(before)


def _random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _lattice(count, dims, build=lattice_cpu.build):
    return build((_random(count, dims, seed=dims).cumsum(0) * 0.3).contiguous())


def _double(term):
    lattice = term.lattice
    wide = kernels.Lattice(
        lattice.corners,
        lattice.weights.double(),
        lattice.neighbours,
        lattice.ghosts,
        lattice.parts,
    )
    cast = [None if t is None else t.double() for t in (term.penalty, term.before, term.after)]
    return kernels.Term(wide, *cast)


def _assert_agrees(unary, terms, iterations, **options):
    ours = cpu.mean_field(unary, terms, iterations, **options)
    single = reference.mean_field(unary, terms, iterations, **options)
    if options.get("start") is not None:
        options["start"] = options["start"].double()
    exact = reference.mean_field(unary.double(), [_double(t) for t in terms], iterations, **options)
    budget = 2 * (single - exact).abs().max() + 16 * EPS * max(1, iterations)
    assert (ours - exact).abs().max() <= budget
    assert ours.stride() == unary.stride()
    return ours


def _penalty(kind, labels):
    return {
        "attractive": torch.full((labels,), -3.0),
        "repulsive": torch.full((labels,), 0.5),
        "diagonal": -1.5 * torch.rand(labels, generator=torch.Generator().manual_seed(2)),
        "potts": 2.0 * (1 - torch.eye(labels)),
        "matrix": _random(labels, labels, seed=3).abs() * 0.5,
    }[kind]


@pytest.mark.parametrize("kind", ["attractive", "repulsive", "diagonal", "potts", "matrix"])
@pytest.mark.parametrize("scaled", ["both", "before", "after", "neither", "same"])
def test_every_penalty_and_normalisation(kind, scaled):
    count, labels = 150, 5
    before = torch.rand(count, generator=torch.Generator().manual_seed(7)) + 0.2
    after = torch.rand(count, generator=torch.Generator().manual_seed(8)) + 0.2
    before, after = {
        "both": (before, after),
        "before": (before, None),
        "after": (None, after),
        "neither": (None, None),
        "same": (before, before),
    }[scaled]
    terms = [
        kernels.Term(_lattice(count, 2), _penalty(kind, labels), before, after),
        kernels.Term(_lattice(count, 5), _penalty("attractive", labels), before, before),
    ]
    _assert_agrees(_random(count, labels), terms, 4)


@pytest.mark.parametrize("labels", [1, 2, 8, 21, 70, 150])
def test_any_number_of_labels(labels):
    term = kernels.Term(_lattice(90, 3), torch.full((labels,), -2.0))
    marginals = _assert_agrees(_random(90, labels), [term], 3)
    torch.testing.assert_close(marginals.sum(1), torch.ones(90))


@pytest.mark.parametrize("iterations", [0, 1, 2, 10])
@pytest.mark.parametrize("given_start", [False, True])
def test_any_number_of_iterations_from_any_start(iterations, given_start):
    start = torch.softmax(3 * _random(120, 4, seed=9), 1) if given_start else None
    term = kernels.Term(_lattice(120, 5), _penalty("matrix", 4))
    _assert_agrees(_random(120, 4), [term], iterations, start=start)


def test_a_start_need_not_sum_to_one():
    start = torch.rand(80, 4, generator=torch.Generator().manual_seed(0))
    term = kernels.Term(_lattice(80, 3), torch.full((4,), -1.0))
    _assert_agrees(_random(80, 4), [term], 1, start=start)


def test_order_says_which_pixel_a_lattice_point_is():
    count = 130
    features, unary = _random(count, 3).cumsum(0) * 0.3, _random(count, 6, seed=4)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    weight = torch.full((6,), -2.0)
    natural = kernels.Term(lattice_cpu.build(features), weight)
    visited = kernels.Term(lattice_cpu.build(features[order].contiguous()), weight)
    expected = cpu.mean_field(unary, [natural], 5)
    result = _assert_agrees(unary, [visited], 5, order=order)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_a_transposed_unary_gives_a_transposed_result():
    unary = _random(7, 100).T
    term = kernels.Term(_lattice(100, 2), torch.full((7,), -2.0))
    result = _assert_agrees(unary, [term], 3)
    assert result.T.is_contiguous()


def test_lattices_built_on_different_numbers_of_threads_work_together():
    terms = [kernels.Term(_lattice(120, 2), torch.full((3,), -1.0))]
    torch.set_num_threads(2)
    terms.append(kernels.Term(_lattice(120, 5), torch.full((3,), -1.0)))
    terms.append(kernels.Term(_lattice(120, 4, lattice_eager.build), torch.full((3,), -1.0)))
    assert len({len(term.lattice.parts) for term in terms}) == 3
    _assert_agrees(_random(120, 3), terms, 3)


def test_no_terms_is_the_softmax():
    unary = _random(50, 9)
    torch.testing.assert_close(cpu.mean_field(unary, [], 5), torch.softmax(-unary, 1))


def test_more_points_than_a_block():
    count = 3 * cpu.BLOCK + 17
    term = kernels.Term(_lattice(count, 5), torch.full((3,), -2.0))
    _assert_agrees(_random(count, 3), [term], 3)


def test_a_forbidden_label_stays_forbidden():
    unary = _random(60, 4)
    unary[:, 2] = float("inf")
    term = kernels.Term(_lattice(60, 3), torch.full((4,), -5.0))
    result = cpu.mean_field(unary, [term], 5)
    assert (result[:, 2] == 0).all()
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
    features = _random(count, 3, seed=seed).cumsum(0).contiguous()
    term = kernels.Term(lattice_cpu.build(features), torch.full((labels,), weight))
    # A repulsive weight makes the updates swing, so that rounding grows: only attraction is tight.
    if weight < 0:
        _assert_agrees(_random(count, labels, seed=seed + 1), [term], iterations)
    result = cpu.mean_field(_random(count, labels, seed=seed + 1), [term], iterations)
    torch.testing.assert_close(result.sum(1), torch.ones(count))
