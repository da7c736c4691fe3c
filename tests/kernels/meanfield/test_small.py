"""Small images: fewer steps give, bit for bit, what those for larger ones give."""

import numpy as np
import pytest
import torch

import kernels
from kernels.meanfield import Term, mean_field, small
from kernels.meanfield.filters import LatticeFilter, pixel_order, reference_lattice
from kernels.permutohedral import cpu as lattice_cpu

DIAGONAL = torch.tensor([-3.0, -3.0, -3.0])


@pytest.fixture
def as_large(monkeypatch):
    """Call with it what computes as larger images do."""

    def call(function, *args):
        with monkeypatch.context() as patch:
            patch.setattr(small, "is_small", lambda count: False)
            return function(*args)

    return call


def _features(count, dims, spread):
    generator = torch.Generator().manual_seed(100 * count + dims)
    return spread * torch.rand(count, dims, generator=generator)


@pytest.mark.parametrize("dims", [1, 2, 9])
@pytest.mark.parametrize(("count", "spread"), [(1, 1.0), (9, 400.0), (66, 3.0), (64, 900.0)])
def test_the_term_of_a_small_image_is_that_of_a_larger_one(as_large, count, dims, spread):
    """Points far apart have more vertices than there is room for at first."""
    features, order = _features(count, dims, spread), torch.randperm(count)
    found = Term.on_cpu(features, order, DIAGONAL, "symmetric")
    expected = as_large(Term.on_cpu, features, order, DIAGONAL, "symmetric")
    torch.testing.assert_close(found.before, expected.before, rtol=0, atol=0)
    assert found.before is found.after
    (lattice,), (other,) = found.filter.lattices, expected.filter.lattices
    for name in ("corners", "weights", "ghosts", "parts", "chains"):
        assert torch.equal(getattr(lattice, name), getattr(other, name)), name
    assert lattice.neighbours is None
    assert lattice.num_rows == reference_lattice(features).num_rows


def test_vertices_far_apart_need_a_larger_table(monkeypatch):
    """Or the case above is none."""
    calls = []
    place = small.PLACE_POINTS
    monkeypatch.setattr(small, "PLACE_POINTS", lambda *args: calls.append(1) or place(*args))
    small.reference_lattice(_features(64, 2, 900.0), None)
    assert len(calls) > 1


@pytest.mark.parametrize("normalization", ["symmetric", "after", "none"])
@pytest.mark.parametrize(("iterations", "marginals"), [(1, True), (4, True), (3, False), (0, True)])
def test_mean_field_of_a_small_image_is_that_of_a_larger_one(
    as_large, normalization, iterations, marginals
):
    height, width, labels = 7, 9, 3
    order = pixel_order(height, width)
    features = [_features(height * width, dims, 3.0)[order] for dims in (2, 5)]
    costs = DIAGONAL, 2 * (1 - torch.eye(labels))
    terms = [
        Term.on_cpu(each, order, cost, normalization)
        for each, cost in zip(features, costs, strict=True)
    ]
    unary = torch.randn(1, labels, height * width).transpose(1, 2)
    arguments = unary, terms, iterations
    found = mean_field(*arguments, marginals=marginals)
    expected = as_large(lambda: mean_field(*arguments, marginals=marginals))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert found.stride() == unary.stride()


def test_what_is_no_single_part_or_differs_between_labels_is_left_to_others(monkeypatch):
    features = _features(40, 2, 3.0)
    term = Term.on_cpu(features, None, DIAGONAL, "symmetric")
    unary, output = torch.randn(40, 3), torch.empty(40, 3)

    def done(terms, iterations=2):
        return small.mean_field(unary, terms, iterations, None, True, output)

    assert done([term, term])
    differing = Term(term.filter, torch.tensor([-1.0, -2.0, -3.0]), term.before, term.after)
    without_chains = kernels.build_lattice(features, impl="reference")
    monkeypatch.setattr(lattice_cpu, "MIN_PART", 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    in_parts = lattice_cpu.build(features)
    others = [Term(LatticeFilter([each]), DIAGONAL) for each in (without_chains, in_parts)]
    for terms in ([differing], *([other] for other in others), [term, others[1]], []):
        assert not done(terms)
    assert not done([term], iterations=0)


def test_an_image_of_several_parts_or_more_points_is_none(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert small.is_small(4096)
    assert not small.is_small(4097)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert small.is_small(2**14)
    assert not small.is_small(2**14 + 1)


def test_features_that_no_lattice_holds_are_refused_as_of_larger_images(as_large):
    for value in (np.nan, np.inf, 1e7):
        features = torch.full((5, 2), value)
        with pytest.raises(ValueError, match="features") as found:
            small.reference_lattice(features, None)
        with pytest.raises(ValueError, match="features") as expected:
            as_large(reference_lattice, features)
        assert str(found.value) == str(expected.value)
