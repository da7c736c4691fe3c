"""The Triton lattice in the interpreter: rows and weights of eager, filters within budget."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import kernels
from kernels import memory
from kernels.permutohedral import cpu, reference, triton
from kernels.permutohedral.lattice import Lattice
from kernels.permutohedral.triton import building, filtering, segments

EPS = torch.finfo(torch.float32).eps


def walk(count: int, dims: int, spread: float, seed: int = 0) -> Tensor:
    """Points of which some lie near each other, as pixels do."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, dims, generator=generator).cumsum(0) * 0.3
    return (spread * (points + 0.1 * torch.randn(count, dims, generator=generator))).contiguous()


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_equal_lattices(ours: Lattice, theirs: Lattice) -> None:
    for name in ("corners", "weights", "neighbours", "ghosts", "parts"):
        found, expected = getattr(ours, name), getattr(theirs, name)
        assert found.dtype == expected.dtype, name
        assert torch.equal(found, expected), name


def assert_within_budget(lattice: Lattice, features: Tensor, values: Tensor, reverse: bool) -> None:
    """Error at most twice that of the eager filter, both against float64 on the same lattice."""
    theirs = reference.build(features)
    exact = dataclasses.replace(theirs, weights=theirs.weights.double())
    truth = reference.filter(exact, values.double(), reverse)
    mass = reference.filter(exact, values.abs().double(), reverse).max()
    single = (reference.filter(theirs, values, reverse) - truth).abs().max()
    error = (triton.filter(lattice, values, reverse) - truth).abs().max()
    assert error <= 2 * single + 4 * EPS * mass


# Building


@pytest.mark.parametrize("dims", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("spread", [0.1, 20.0])
def test_rows_weights_and_neighbours_are_bit_for_bit_those_of_eager(
    dims: int, spread: float
) -> None:
    features = walk(70, dims, spread / math.sqrt(dims))
    assert_equal_lattices(triton.build(features), reference.build(features))


@pytest.mark.parametrize(
    "features",
    [
        torch.zeros(5, 3),
        torch.arange(6.0)[:, None],
        torch.full((3, 2), -0.0),
        torch.tensor([[0.5, -0.5, 0.5], [1e-30, 0.0, -1e-30]]),
        torch.tensor([[2e5], [-2e5], [2e5 + 0.25]]),
    ],
    ids=["on a vertex", "integers", "negative zeros", "ties", "far from the origin"],
)
def test_points_on_the_borders_of_simplices_are_placed_as_eager_does(features: Tensor) -> None:
    assert_equal_lattices(triton.build(features), reference.build(features))


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    count=st.integers(1, 60),
    dims=st.integers(1, 7),
    spread=st.sampled_from([1e-3, 0.3, 3.0, 100.0, 3e3]),
    channels=st.integers(1, 20),
    reverse=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_points_and_values_are_filtered_as_by_eager(
    count: int, dims: int, spread: float, channels: int, reverse: bool, seed: int
) -> None:
    features = walk(count, dims, spread / math.sqrt(dims), seed)
    lattice = triton.build(features)
    assert_equal_lattices(lattice, reference.build(features))
    assert_within_budget(lattice, features, normal(count, channels), reverse)


@pytest.mark.parametrize("images", [1, 2])
def test_keys_beyond_62_bits_are_told_apart(images: int) -> None:
    generator = torch.Generator().manual_seed(0)
    features = 2000 * torch.rand(30, 9, generator=generator)
    features = torch.cat([features, features + 0.01])  # shared simplices, far-apart points
    _, _, report = building.pack(features)
    extents = [int(extent) for extent in report[1:].tolist()]
    assert math.prod(extents) > 2**63
    assert len(building._word_strides(extents, images)) > 1
    points = features.reshape(2, 30, 9).transpose(0, 1).reshape(60, 9) if images > 1 else features
    lattice = triton.build(points, images)
    if images == 1:
        assert_equal_lattices(lattice, reference.build(features))
    else:
        rows = [reference.build(half).num_rows for half in points.split(30)]
        assert lattice.num_rows == sum(rows)
    assert (lattice.neighbours < lattice.num_rows).any()


@pytest.mark.parametrize("word", [2**10, 2**20, 2**40])
def test_any_number_of_words_gives_the_same_lattice(
    monkeypatch: pytest.MonkeyPatch, word: int
) -> None:
    features = walk(60, 4, 1.0)
    monkeypatch.setattr(building, "WORD", word)
    assert_equal_lattices(triton.build(features), reference.build(features))


@pytest.mark.parametrize("word", [2**62, 2**12])
def test_images_of_one_lattice_share_no_vertex(monkeypatch: pytest.MonkeyPatch, word: int) -> None:
    monkeypatch.setattr(building, "WORD", word)
    features, values = walk(60, 3, 0.5), normal(60, 4)
    together = triton.filter(triton.build(features, 3), values)
    apart = [
        triton.filter(triton.build(f), v)
        for f, v in zip(features.split(20), values.split(20), strict=True)
    ]
    assert torch.equal(together, torch.cat(apart))


def test_the_lattice_says_what_every_row_sums() -> None:
    features = walk(100, 3, 1.0)
    lattice = triton.build(features)
    own = segments.completed(reference.build(features))
    for name in ("entries", "pieces", "sums"):
        assert torch.equal(getattr(lattice, name), getattr(own, name)), name
    assert lattice.entries is not None
    rows = lattice.corners.flatten()[lattice.entries.long()]
    assert torch.equal(rows, rows.sort().values)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lengths=st.lists(st.one_of(st.integers(0, 5), st.integers(14, 70)), min_size=1, max_size=30))
def test_pieces_hold_each_entry_once_and_sums_each_partial_row(lengths: list[int]) -> None:
    starts = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    total, rows = sum(lengths), len(lengths)
    pieces, sums = segments.cut(starts, total)
    assert (pieces[1] - pieces[0]).max() <= segments.PIECE
    assert pieces[2].max() < rows + segments.num_partials(total)
    entries: dict[int, list[int]] = {}
    for first, last, row in pieces.T.tolist():
        assert (row >= 0) or first == last
        if row >= 0:
            assert row not in entries
            entries[row] = list(range(first, last))
    for first, last, row in sums.T.tolist():
        if row >= 0:
            assert row not in entries
            entries[row] = [e for partial in range(first, last) for e in entries.pop(partial)]
    bounds = starts.tolist()
    assert entries == {r: list(range(bounds[r], bounds[r + 1])) for r in range(rows)}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, before we refuse
@pytest.mark.parametrize(
    ("bad", "says"),
    [(math.nan, "finite"), (math.inf, "finite"), (-math.inf, "finite"), (1e7, "too large")],
)
def test_features_that_no_lattice_holds_are_refused(bad: float, says: str) -> None:
    features = walk(10, 3, 1.0)
    features[4, 1] = bad
    for call in (
        lambda: kernels.build_lattice(features, impl="triton"),
        lambda: kernels.gaussian_filter(normal(1, 10, 2), features[None], impl="triton"),
    ):
        with pytest.raises(ValueError, match=says) as ours:
            call()
        with pytest.raises(ValueError, match=says) as theirs:
            kernels.build_lattice(features, impl="reference")
        assert str(ours.value) == str(theirs.value)


def test_too_many_points_are_refused_before_anything_is_computed() -> None:
    features = torch.zeros(1, 1).expand(2**30, 1)
    with pytest.raises(ValueError, match="32 bits"):
        kernels.build_lattice(features, impl="triton")


def test_what_does_not_fit_is_refused_with_its_size_before_it_is_allocated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 10**9)
    features = torch.zeros(1, 1).expand(10**8, 1)
    with pytest.raises(MemoryError, match=r"a lattice of 100000000 points .* at least 8\.8 GB"):
        triton.build(features)


# Filtering


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 21, 70])
def test_any_number_of_channels_is_filtered_within_budget(channels: int, reverse: bool) -> None:
    features = walk(80, 2, 2.0)
    assert_within_budget(triton.build(features), features, normal(80, channels), reverse)


@pytest.mark.parametrize("spread", [0.0, 1e-4])
@pytest.mark.parametrize("piece", [3, 128])
def test_all_points_on_few_vertices_are_summed_in_pieces(
    monkeypatch: pytest.MonkeyPatch, spread: float, piece: int
) -> None:
    monkeypatch.setattr(segments, "PIECE", piece)
    features = walk(300, 1, spread)
    lattice = triton.build(features)
    assert (lattice.sums[2] >= 0).any()
    assert_within_budget(lattice, features, normal(300, 5), False)


@pytest.mark.parametrize("tile", [32, 128])
def test_tiles_smaller_than_the_data_leave_nothing_out(
    monkeypatch: pytest.MonkeyPatch, tile: int
) -> None:
    features, values = walk(40, 2, 0.3), normal(40, 12)
    expected = triton.filter(triton.build(features), values)
    for module, name in ((filtering, "TILE"), (filtering, "SPLAT_TILE")):
        monkeypatch.setattr(module, name, tile)
    monkeypatch.setattr(filtering, "MAX_BLOCK_C", 8)
    monkeypatch.setattr(filtering, "FOLD_BLOCK", 32)
    monkeypatch.setattr(building, "SEARCH_BLOCK", 16)
    monkeypatch.setattr(building, "PLACE_TILE", 64)
    lattice = triton.build(features)
    assert_equal_lattices(lattice, reference.build(features))
    torch.testing.assert_close(triton.filter(lattice, values), expected, rtol=1e-5, atol=1e-5)


def test_the_filter_in_reverse_is_the_adjoint() -> None:
    lattice = triton.build(walk(80, 4, 1.0))
    u, v = normal(80, 1, seed=3), normal(80, 1, seed=4)
    forward = (u.double() * triton.filter(lattice, v)).sum()
    backward = (triton.filter(lattice, u, reverse=True) * v.double()).sum()
    # Each side rounds 2 (D+1) products and D+1 blurs of the terms of |u| F |v|.
    bound = (u.abs() * triton.filter(lattice, v.abs())).sum()
    assert abs(forward - backward) <= 2 * 15 * EPS * bound


def test_gradients_are_the_adjoint_any_number_of_times() -> None:
    features, values = walk(50, 3, 1.0), normal(50, 3)
    lattice, theirs = triton.build(features), reference.build(features)
    for reverse in (False, True):
        found, expected = [], []
        for built, impl, grads in ((lattice, "triton", found), (theirs, "reference", expected)):
            leaf = values.clone().requires_grad_()
            output = kernels.apply_lattice(built, leaf, reverse=reverse, impl=impl)
            (first,) = torch.autograd.grad(output.pow(3).sum(), leaf, create_graph=True)
            grads += [output, first, *torch.autograd.grad(first.sum(), leaf)]
        for ours, other in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


def test_the_batched_filter_has_the_gradient_of_each_image() -> None:
    features, values = walk(45, 2, 1.0).view(3, 15, 2), normal(3, 15, 2)
    leaves = [values.clone().requires_grad_() for _ in range(2)]
    for leaf, impl in zip(leaves, ("triton", "reference"), strict=True):
        kernels.gaussian_filter(leaf, features, impl=impl).square().sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-5, atol=1e-5)


def test_large_batches_are_filtered_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    features, values = walk(15, 2, 1.0).view(3, 5, 2), normal(3, 5, 2)
    expected = triton.filter_batch(values, features)
    for most in (1, 12):
        monkeypatch.setattr(triton, "MOST_POINTS", most)
        assert torch.equal(triton.filter_batch(values, features), expected)


@pytest.mark.parametrize("origin", ["reference", "cpu in parts", "without the last points"])
def test_lattices_of_other_builds_are_filtered_on(
    monkeypatch: pytest.MonkeyPatch, origin: str
) -> None:
    features, values = walk(90, 3, 1.0), normal(90, 3)
    expected = reference.filter(reference.build(features), values)
    if origin == "cpu in parts":
        monkeypatch.setattr(cpu, "MIN_PART", 16)
        threads = torch.get_num_threads()
        torch.set_num_threads(3)
        lattice = cpu.build(features)
        torch.set_num_threads(threads)
        assert len(lattice.ghosts)
    elif origin == "reference":
        lattice = reference.build(features)
    else:  # points that carry no values, but whose vertices are there
        more = torch.cat([features, features.new_zeros(3, 3)])
        built, theirs = triton.build(more), reference.build(more)
        lattice = dataclasses.replace(built, corners=built.corners[:90], weights=built.weights[:90])
        expected = reference.filter(theirs, torch.cat([values, values.new_zeros(3, 3)]))[:90]
    found = triton.filter(lattice, values)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_values_of_any_strides_are_read_right(layout: str) -> None:
    lattice = triton.build(walk(30, 2, 1.0))
    values = {
        "transposed": normal(4, 30).T,
        "strided": normal(60, 8)[::2, ::2],
        "expanded": normal(30, 1).expand(30, 4),
    }[layout]
    assert torch.equal(triton.filter(lattice, values), triton.filter(lattice, values.contiguous()))


def test_no_points_a_single_point_and_no_images_are_possible() -> None:
    for count in (0, 1):
        features, values = torch.zeros(count, 5), torch.ones(count, 2)
        lattice = triton.build(features)
        assert_equal_lattices(lattice, reference.build(features))
        expected = reference.filter(reference.build(features), values)
        torch.testing.assert_close(triton.filter(lattice, values), expected)
    assert kernels.gaussian_filter(
        torch.ones(0, 3, 2), torch.ones(0, 3, 1), impl="triton"
    ).shape == (
        0,
        3,
        2,
    )


def test_repeated_runs_give_the_same_bits() -> None:
    features, values = walk(60, 4, 1.0), normal(60, 5)
    first = triton.filter(triton.build(features), values)
    for _ in range(2):
        assert torch.equal(triton.filter(triton.build(features), values), first)


@pytest.mark.parametrize("spread", [0.0, 0.5])  # all points on a simplex, or on many
@pytest.mark.parametrize("fillers", [0, 1])
def test_a_repeated_lattice_has_the_sums_of_one_built_of_all_its_images(
    spread: float, fillers: int
) -> None:
    features, values = walk(30, 3, spread), normal(90, 4)
    filled = torch.cat([features, features.new_zeros(fillers, 3)])
    one = triton.build(filled)
    one = dataclasses.replace(one, corners=one.corners[:30], weights=one.weights[:30])
    repeated = kernels.repeat_lattice(one, 3)
    for reverse in (False, True):
        alone = [triton.filter(one, v, reverse) for v in values.split(30)]
        assert torch.equal(triton.filter(repeated, values, reverse), torch.cat(alone))
    if not fillers:
        built = kernels.build_lattice(features.expand(3, -1, -1), impl="triton")
        for name in ("corners", "weights", "neighbours", "ghosts", "entries"):
            assert torch.equal(getattr(repeated, name), getattr(built, name)), name


def test_images_given_to_the_public_build_do_not_mix() -> None:
    features, values = walk(40, 2, 0.5).view(2, 20, 2), normal(40, 3)
    lattice = kernels.build_lattice(features, impl="triton")
    for b, image in enumerate(torch.arange(40).split(20)):
        own = kernels.build_lattice(features[b], impl="triton")
        found = kernels.apply_lattice(lattice, values, impl="triton")[image]
        assert torch.equal(found, kernels.apply_lattice(own, values[image], impl="triton"))
    assert kernels.build_lattice(torch.empty(0, 4, 2), impl="triton").num_points == 0
