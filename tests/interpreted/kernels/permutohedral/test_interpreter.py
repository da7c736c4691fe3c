"""The Triton lattice in the interpreter: any sizes of tiles and words, what is refused."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lattice_problems import assert_equal_lattices, normal, walk
from torch import Tensor

import kernels
from kernels import memory
from kernels.permutohedral import lattice, reference, triton
from kernels.permutohedral.lattice import Lattice
from kernels.permutohedral.triton import building, filtering, segments

EPS = torch.finfo(torch.float32).eps


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


@pytest.mark.parametrize("word", [2**10, 2**20, 2**40])
def test_any_number_of_words_gives_the_same_lattice(
    monkeypatch: pytest.MonkeyPatch, word: int
) -> None:
    features = walk(60, 4, 1.0)
    monkeypatch.setattr(lattice, "WORD", word)
    assert_equal_lattices(triton.build(features), reference.build(features))


@pytest.mark.parametrize("word", [2**62, 2**12])
def test_images_of_one_lattice_share_no_vertex(monkeypatch: pytest.MonkeyPatch, word: int) -> None:
    monkeypatch.setattr(lattice, "WORD", word)
    features, values = walk(60, 3, 0.5), normal(60, 4)
    together = triton.filter(triton.build(features, 3), values)
    apart = [
        triton.filter(triton.build(f), v)
        for f, v in zip(features.split(20), values.split(20), strict=True)
    ]
    assert torch.equal(together, torch.cat(apart))


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
