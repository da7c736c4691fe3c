"""The numba lattice against the eager one, and the properties that its layout promises."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.permutohedral import cpu, reference
from kernels.permutohedral.lattice import elevation_scales

EPS = torch.finfo(torch.float32).eps


@pytest.fixture(params=[1, 3])
def num_threads(request, set_threads):
    set_threads(request.param)
    return request.param


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(cpu, "MIN_PART", 16)  # several parts even for the small inputs of tests


def _features(count, dims, spread, seed=0):
    generator = torch.Generator().manual_seed(seed)
    walk = torch.randn(count, dims, generator=generator).cumsum(0) * 0.3
    return (spread * (walk + 0.1 * torch.randn(count, dims, generator=generator))).contiguous()


def _values(count, channels):
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(1))


def _assert_filters_agree(lattice, features, values, reverse=False):
    """Error of the numba filter at most twice that of the eager one, both against float64."""
    theirs = reference.build(features)
    exact_lattice = reference.build(features.double())
    result = cpu.filter(lattice, values, reverse).double()
    single = reference.filter(theirs, values, reverse).double()
    exact = reference.filter(exact_lattice, values.double(), reverse)
    scale = reference.filter(exact_lattice, values.abs().double(), reverse).max()
    budget = 2 * (single - exact).abs().max() + 4 * EPS * scale
    assert (result - single).abs().max() <= budget


@pytest.mark.parametrize("dims", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("spread", [0.1, 1.0, 20.0])
def test_the_same_vertices_and_weights_as_eager(dims, spread, num_threads):
    features = _features(300, dims, spread)
    ours, theirs = cpu.build(features), reference.build(features)
    assert ours.num_vertices == theirs.num_vertices
    torch.testing.assert_close(ours.weights, theirs.weights, rtol=0, atol=0)
    owners = torch.arange(ours.num_rows)
    owners[ours.ghosts[:, 0].long()] = ours.ghosts[:, 1].long()
    pairs = torch.stack([owners[ours.corners.long()], theirs.corners.long()]).flatten(1)
    assert pairs.unique(dim=1).shape[1] == theirs.num_vertices  # one to one
    assert (ours.parts.shape[0] > 2) == (num_threads > 1)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("channels", [1, 8, 21, 70, 130])
def test_filter_agrees_with_eager_for_any_number_of_channels(channels, reverse, num_threads):
    features = _features(250, 5, 2.0)
    _assert_filters_agree(cpu.build(features), features, _values(250, channels), reverse)


def test_rows_on_pages_of_their_own_start_at_a_cache_line_and_hold_what_others_do(monkeypatch):
    features = _features(100, 3, 1.0)
    lattice, values = cpu.build(features), _values(100, 5)
    expected = cpu.filter(lattice, values)
    monkeypatch.setattr(cpu, "LARGE", 1)
    assert cpu.aligned_rows(3, (0,) * 20).ctypes.data % cpu.CACHE_LINE == 0
    assert torch.equal(cpu.filter(lattice, values), expected)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 200),
    dims=st.integers(1, 7),
    spread=st.sampled_from([1e-3, 0.3, 3.0, 100.0, 3e3]),
    seed=st.integers(0, 2**16),
)
def test_build_and_filter_agree_with_eager_for_any_points(count, dims, spread, seed):
    features = _features(count, dims, spread / math.sqrt(dims), seed)
    lattice, theirs = cpu.build(features), reference.build(features)
    assert lattice.num_vertices == theirs.num_vertices
    _assert_filters_agree(lattice, features, _values(count, 3))


def test_keys_that_need_several_words_are_told_apart():
    generator = torch.Generator().manual_seed(0)
    features = 2000 * torch.rand(200, 9, generator=generator)
    features = torch.cat([features, features + 0.01])  # shared simplices, far-apart points
    _, strides = cpu.pack_keys(features.numpy().T, np.float32(elevation_scales(9)))
    assert strides.shape[1] > 1
    assert cpu.build(features).num_vertices == reference.build(features).num_vertices
    _assert_filters_agree(cpu.build(features), features, _values(400, 3))


def test_packed_keys_are_distinct_and_steps_lead_to_neighbours():
    features = _features(100, 4, 5.0)
    lattice = cpu.build(features)
    before, after = lattice.neighbours[:, 0].long(), lattice.neighbours[:, 1].long()
    none = lattice.num_rows
    for direction in range(5):
        rows = (after[direction] != none).nonzero()[:, 0]
        assert len(rows)
        assert torch.equal(before[direction][after[direction][rows]], rows)


def test_parts_own_their_rows_and_ghosts_have_no_neighbours(num_threads):
    lattice = cpu.build(_features(300, 5, 1.0))
    for first, last, first_row, last_row in cpu.part_ranges(lattice):
        corners = lattice.corners[first:last]
        assert corners.min() == first_row
        assert corners.max() == last_row - 1
    ghosts, owners = lattice.ghosts[:, 0].long(), lattice.ghosts[:, 1].long()
    assert (lattice.neighbours[:, :, ghosts] == lattice.num_rows).all()
    assert not torch.isin(owners, ghosts).any()
    assert (len(ghosts) > 0) == (num_threads > 1)


def test_chains_hold_each_row_with_neighbours_once_and_in_order():
    lattice = cpu.build(_features(300, 3, 1.0))
    none = lattice.num_rows
    for (before, after), chain in zip(lattice.neighbours, lattice.chains, strict=True):
        rows = chain[chain != none]
        linked = ((before != none) | (after != none)).nonzero()[:, 0]
        assert torch.equal(rows.sort().values.long(), linked)
        follows = torch.cat([chain[1:], chain.new_tensor([none])])
        assert torch.equal(after[rows.long()], follows[chain != none])


@pytest.mark.parametrize("spread", [1e3, 1e5])
def test_keys_of_two_words_are_told_apart_where_their_hashes_are_equal(
    spread, num_threads, monkeypatch
):
    """With a multiplier of 1 a hash is the sum of the words, which different keys share."""
    monkeypatch.setattr(cpu, "_multipliers", lambda words: np.ones(words, np.uint64))
    features = _features(150, 6, spread / 200)
    features[:3] = torch.tensor([[0.0], [spread], [-spread]])  # keys too far apart for one word
    assert cpu.pack_keys(features.numpy().T, np.array(elevation_scales(6)))[1].shape[1] > 1
    lattice = cpu.build(features)
    assert lattice.num_vertices == reference.build(features).num_vertices
    _assert_filters_agree(lattice, features, _values(150, 3))


def test_vertices_are_sorted_by_hash_though_some_stand_behind_their_slot():
    """Eight slots, each of the hashes with the same upper three bits; slot 7 is wanted thrice."""
    hashes = np.array([7 << 61 | 5, 7 << 61 | 1, 0, 3 << 61, 3 << 61 | 9, 3 << 61 | 2], np.uint64)
    slots = [0, 1, 2, 3, 4, 5]  # the first of slot 7 is below, the others were put from slot 0 on
    table = np.full((8, 2), -1, np.int64)  # row and key of each slot
    table[slots, 0], table[slots, 1] = slots, hashes.view(np.int64)
    table[7] = 7, np.array([7 << 61 | 3], np.uint64).view(np.int64)[0]
    found, vertices = np.empty(7, np.uint64), np.empty((2, 7), np.int32)
    assert cpu.SORT_BY_HASH(table, np.ones(1, np.uint64), found, vertices, (0,)) == 7
    keys = table[:, 1].view(np.uint64)
    np.testing.assert_array_equal(found, np.sort(np.append(hashes, keys[7])))
    np.testing.assert_array_equal(keys[vertices[1]], found)
    np.testing.assert_array_equal(vertices[0], table[vertices[1], 0])


def test_each_implementation_filters_on_the_others_lattice(num_threads):
    features, values = _features(200, 5, 2.0), _values(200, 5)
    ours, theirs = cpu.build(features), reference.build(features)
    expected = reference.filter(theirs, values)
    torch.testing.assert_close(cpu.filter(theirs, values), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(reference.filter(ours, values), expected, rtol=1e-5, atol=1e-6)


def test_reverse_is_the_transpose(num_threads):
    lattice = cpu.build(_features(200, 5, 2.0))
    x, y = _values(200, 1), torch.randn(200, 1, generator=torch.Generator().manual_seed(5))
    forward = (cpu.filter(lattice, x).double() * y).sum()
    backward = (cpu.filter(lattice, y, reverse=True).double() * x).sum()
    assert abs(forward - backward) <= 100 * EPS * (x.norm() * y.norm())


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_values_of_any_strides_are_read_right(layout):
    features = _features(100, 3, 1.0)
    lattice = cpu.build(features)
    values = {
        "transposed": _values(100, 4).T.contiguous().T,
        "strided": _values(200, 8)[::2, ::2],
        "expanded": _values(100, 1).expand(100, 4),
    }[layout]
    assert torch.equal(cpu.filter(lattice, values), cpu.filter(lattice, values.contiguous()))


@pytest.mark.parametrize("count", [0, 1])
def test_no_points_and_a_single_point(count):
    features, values = torch.zeros(count, 5), torch.ones(count, 2)
    lattice = cpu.build(features)
    expected = reference.filter(reference.build(features), values)
    torch.testing.assert_close(cpu.filter(lattice, values), expected)


def test_repeated_runs_are_bitwise_equal(num_threads):
    features, values = _features(500, 5, 3.0), _values(500, 21)
    first = cpu.filter(cpu.build(features), values)
    for _ in range(3):
        assert torch.equal(cpu.filter(cpu.build(features), values), first)


def test_several_python_threads_may_filter_at_once(num_threads):
    features, values = _features(400, 5, 2.0), _values(400, 7)
    expected = cpu.filter(cpu.build(features), values)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(lambda: cpu.filter(cpu.build(features), values)) for _ in range(12)]
        assert all(torch.equal(job.result(), expected) for job in jobs)


def test_a_table_grows_past_its_first_size():
    features = 1000 * torch.rand(30_000, 2, generator=torch.Generator().manual_seed(0))
    ours, theirs = cpu.build(features), reference.build(features)
    assert ours.num_vertices == theirs.num_vertices > 2**15
