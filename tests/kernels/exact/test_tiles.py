"""Tiles: how points are sorted, which pairs are kept, what a filter over them loses at most."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact_problems import LargestTensor, Problem, problem
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import kernels
from kernels import dispatch
from kernels.exact import tiled, tiles

FLOAT32_EPS = torch.finfo(torch.float32).eps
Sizes = Callable[..., None]


@pytest.fixture
def tile_of(monkeypatch: pytest.MonkeyPatch) -> Sizes:
    """Set how many points a tile has, and how many pairs of tiles are computed at once."""

    def set_to(points: int, pairs: int = 64) -> None:
        monkeypatch.setattr(tiles, "TILE", points)
        monkeypatch.setattr(tiled, "BLOCK_BYTES", pairs * points**2 * 4)

    return set_to


def kept_pairs(built: kernels.Tiles) -> Tensor:
    """Which pairs of points are kept, bool `[N, N]` in the order of the features."""
    count = built.num_points
    if built.order is None or built.kept is None:
        return torch.ones(count, count, dtype=torch.bool)
    total = tiles.tiles_of(count)
    keep = torch.zeros(total, total, dtype=torch.bool)
    for row, (number, columns) in enumerate(zip(*tiles.lists(built.kept, total), strict=True)):
        keep[row, columns[:number].long()] = True
    tile = torch.empty(count, dtype=torch.int64)
    tile[built.order] = torch.arange(count) // tiles.TILE
    return keep[tile][:, tile]


# How points are sorted


@pytest.mark.parametrize("count", [1, 3, 4, 5, 16, 37, 64, 101])
@pytest.mark.parametrize("dims", [1, 2, 6])
def test_the_order_is_a_permutation_whatever_the_number(
    tile_of: Sizes, count: int, dims: int
) -> None:
    tile_of(4)
    order = tiles.sort(problem(count, dims).features)
    assert torch.equal(order.sort().values, torch.arange(count))


@pytest.mark.parametrize("clusters", [1, 2, 7, 13])
def test_clusters_as_large_as_a_tile_become_tiles(tile_of: Sizes, clusters: int) -> None:
    tile_of(8)
    which = torch.arange(8).repeat_interleave(clusters) * 0 + torch.arange(clusters).repeat(8)
    which = which[torch.randperm(len(which))]
    features = torch.stack([100.0 * which, torch.rand(len(which))], 1)
    built = kernels.build_tiles(features, eps=1e-3)
    assert built.order is not None
    assert all(len(tile.unique()) == 1 for tile in which[built.order].view(clusters, 8))
    assert built.share == 1 / clusters


def test_equal_and_extreme_points_are_sorted_too(tile_of: Sizes) -> None:
    tile_of(4)
    everywhere = torch.arange(19)
    for features in (
        torch.zeros(19, 2),
        torch.full((19, 3), 1e30),
        torch.randn(19, 2).sign() * 3e38,
        (torch.randn(19, 1).sign() * 1e308).double().mul(1.7),
    ):
        assert torch.equal(tiles.sort(features).sort().values, everywhere)


def test_points_are_placed_in_order_and_scaled(tile_of: Sizes) -> None:
    tile_of(4)
    features = torch.randn(2, 6, 3)
    order = torch.stack([torch.randperm(6) for _ in range(2)])
    points = tiles.place(features, order)
    for image in range(2):
        placed = tiles.SCALE * features[image, order[image]].double()
        placed = placed - (placed.amin(0) + placed.amax(0)) / 2
        torch.testing.assert_close(points[image, :, :6].T, placed.float(), rtol=FLOAT32_EPS, atol=0)
        assert torch.equal(points[image, :, 6:], points[image, :, 5:6].expand(3, 2))


# What is kept, and what is lost


@given(
    count=st.integers(1, 70),
    dims=st.integers(1, 4),
    spread=st.floats(0.1, 12),
    digits=st.floats(1, 7),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_row_loses_more_than_its_bound(
    dtype: torch.dtype, count: int, dims: int, spread: float, digits: float, seed: int
) -> None:
    torch.manual_seed(seed)
    eps, p = 10.0**-digits, problem(count, dims, spread=spread, dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE", 4)
        built = kernels.build_tiles(p.features, eps=eps)
        kept = kept_pairs(built)
        filtered = kernels.apply_tiles(built, p.values)
    lost = p.kernel.masked_fill(kept, 0).sum(1) / p.mass
    assert torch.equal(kept, kept.T)
    assert lost.max() <= built.bound <= eps
    rounding = 1e-5 if dtype == torch.float32 else 1e-13
    assert p.error(filtered) <= eps + rounding
    torch.testing.assert_close(built.mass.double(), p.mass, rtol=rounding, atol=0)
    exact = (p.kernel * kept) @ p.values.double()
    assert ((filtered.double() - exact).abs().amax(1) / p.mass).max() <= rounding * 10


@pytest.mark.parametrize("eps", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7])
def test_less_is_kept_where_more_may_be_lost(tile_of: Sizes, eps: float) -> None:
    tile_of(8)
    p = problem(400, 2, spread=4.0)
    loose, tight = (kernels.build_tiles(p.features, eps=e) for e in (eps, eps / 10))
    assert loose.share <= tight.share < 1
    assert 0 < tight.bound <= eps / 10


def test_small_masses_that_add_up_are_not_dropped(tile_of: Sizes) -> None:
    """One point amid many that are each worth less than eps, and together most of its mass."""
    tile_of(4)
    crowd = torch.randn(800, 8, dtype=torch.float64)
    crowd = 3.2 * crowd / crowd.norm(dim=1, keepdim=True)
    p = Problem(torch.ones(801, 1), torch.cat([torch.zeros(1, 8), crowd]).float())
    assert p.kernel[0, 1:].max() < 1e-2
    assert p.kernel[0, 1:].sum() > 0.8 * p.mass[0]
    filtered = kernels.apply_tiles(kernels.build_tiles(p.features, eps=1e-2), p.values)
    assert p.error(filtered) <= 1e-2


def test_the_bound_counts_how_placing_rounds_the_points(tile_of: Sizes) -> None:
    """Two tiles that are a point each, and one so far that the others' distance is rounded."""
    tile_of(4)
    for gap in torch.linspace(2, 4, 20):
        features = torch.tensor([0.0, gap, 1e5]).repeat_interleave(4)[:, None]
        built = kernels.build_tiles(features, eps=0.5)
        weight = torch.exp(-gap.double().square() / 2)
        assert weight / (1 + weight) <= built.bound <= 2 * weight
    assert kernels.build_tiles(1e4 * features, eps=0.5).share == 1


def test_the_longest_lists_come_first(tile_of: Sizes) -> None:
    tile_of(4)
    built = kernels.build_tiles(problem(90, 2, spread=8.0).features, eps=1e-3)
    assert built.kept is not None
    *counts, _ = tiles.lists(built.kept, 23)[0].tolist()  # the last tile is not full
    assert len(set(counts)) > 1
    assert counts == sorted(counts, reverse=True)


def test_columns_are_in_order_and_complete(tile_of: Sizes) -> None:
    tile_of(4)
    built = kernels.build_tiles(problem(90, 2, spread=8.0).features, eps=1e-3)
    assert built.kept is not None
    counts, columns = tiles.lists(built.kept, 23)
    everywhere = torch.arange(23, dtype=torch.int32)
    assert torch.equal(columns.sort(1).values, everywhere.expand(23, 23))
    for count, row in zip(counts, columns, strict=True):
        assert torch.equal(row[:count].sort().values, row[:count])


def test_without_eps_every_pair_is_kept_and_nothing_lost() -> None:
    p = problem(300)
    built = kernels.build_tiles(p.features)
    assert built.kept is None
    assert built.share == 1
    assert built.bound == 0
    assert p.error(kernels.apply_tiles(built, p.values)) <= 1e-6
    torch.testing.assert_close(built.mass.double(), p.mass, rtol=1e-6, atol=0)


def test_pruning_by_chunks_of_the_table_changes_nothing(
    tile_of: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile_of(4)
    features = problem(90, 2, spread=8.0).features
    whole = kernels.build_tiles(features, eps=1e-3)
    monkeypatch.setattr(tiles, "CHUNK_BYTES", 1000)
    parts = kernels.build_tiles(features, eps=1e-3)
    assert whole.kept is not None
    assert parts.kept is not None
    assert torch.equal(whole.kept, parts.kept)
    assert whole.bound == parts.bound


def test_more_points_than_the_tables_have_room_for_are_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiles, "sort", None)
    features = torch.zeros(1, 1).expand(5_000_000, 1)
    with pytest.raises(ValueError, match=r"22\.7 GiB for 5000000 points, where 4 GiB .*eps=0"):
        tiles.build(features, 1e-3, tiled.masses)


# The filter over tiles


@pytest.mark.parametrize("shape", [(1, 1, 1), (37, 5, 3), (64, 2, 21), (130, 1, 40)])
@pytest.mark.parametrize("eps", [0.0, 1e-9, 1e-2])
def test_gradients_are_those_of_the_pairs_kept(
    tile_of: Sizes, shape: tuple[int, int, int], eps: float
) -> None:
    tile_of(8, pairs=3)
    p = problem(*shape, dtype=torch.float64)
    kept = kept_pairs(kernels.build_tiles(p.features, eps=eps))
    leaves = [p.values[None].requires_grad_(), p.features[None].requires_grad_()]
    filtered = kernels.gaussian_filter(*leaves, method="exact", eps=eps)
    grad = torch.randn_like(filtered)
    squares = (leaves[1][0, :, None] - leaves[1][0]).square().sum(-1)
    expected = (torch.exp(-squares / 2) * kept) @ leaves[0]
    torch.testing.assert_close(filtered, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(filtered, leaves, grad),
        torch.autograd.grad(expected, leaves, grad),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_derivatives_pass_gradcheck(tile_of: Sizes) -> None:
    tile_of(4)
    p = problem(11, 2, 2, dtype=torch.float64)
    built = kernels.build_tiles(p.features, eps=1e-2)
    leaf = p.values.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: kernels.apply_tiles(built, v), leaf)
    assert torch.autograd.gradgradcheck(lambda v: kernels.apply_tiles(built, v), leaf)
    leaves = leaf[None].detach().requires_grad_(), p.features[None].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v, f: kernels.gaussian_filter(v, f, method="exact", eps=1e-12), leaves
    )


def test_tiles_filter_any_number_of_channels_and_strides() -> None:
    p = problem(300, channels=4)
    built = kernels.build_tiles(p.features, eps=1e-7)
    every = kernels.apply_tiles(built, p.values)
    for c in range(4):
        one = kernels.apply_tiles(built, p.values[:, c : c + 1])
        torch.testing.assert_close(one, every[:, c : c + 1], rtol=1e-5, atol=1e-6)
    assert torch.equal(kernels.apply_tiles(built, p.values.T.contiguous().T), every)


def test_a_batch_gives_what_its_images_give_one_by_one(tile_of: Sizes) -> None:
    tile_of(8)
    p = problem(100, 3, 4)
    values, features = p.values.view(2, 50, 4), p.features.view(2, 50, 3)
    both = kernels.gaussian_filter(values, features, method="exact", eps=1e-3)
    for b in range(2):
        one = kernels.gaussian_filter(values[b][None], features[b][None], method="exact", eps=1e-3)
        assert torch.equal(both[b], one[0])
        built = kernels.build_tiles(features[b], eps=1e-3)
        assert torch.equal(both[b], kernels.apply_tiles(built, values[b]))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (1, 1)])
def test_empty_batches_and_single_points_are_filtered(shape: tuple[int, int]) -> None:
    values, features = torch.randn(*shape, 3), torch.randn(*shape, 4).requires_grad_()
    filtered = kernels.gaussian_filter(values, features, method="exact", eps=1e-3)
    assert filtered.shape == values.shape
    filtered.sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_autocast_does_not_lower_the_precision() -> None:
    p = problem(300)
    leaves = [p.values[None].requires_grad_(), p.features[None].requires_grad_()]

    def run() -> tuple[Tensor, ...]:
        filtered = kernels.gaussian_filter(*leaves, method="exact", eps=1e-3)
        return filtered, *torch.autograd.grad(filtered.square().sum(), leaves)

    expected = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_memory_stays_within_blocks_forward_and_backward(tile_of: Sizes) -> None:
    tile_of(16, pairs=8)
    p = problem(1000, 2, 3, dtype=torch.float64)
    with LargestTensor() as largest:
        pairs = tiles.Pairs(*tiles.build(p.features, 1e-3, tiled.masses)[:3])
        tiled.apply(p.values, pairs, "ieee", torch.empty_like(p.values))
        gradient = torch.empty_like(pairs.points)
        tiled.feature_gradient(p.values, p.values, pairs, "ieee", gradient)
    assert largest.bytes <= 63 * 63 * 8  # of the table over tiles; all pairs of points: 8 MB


# What is chosen, and what is refused


def test_auto_takes_triton_for_float32_on_cuda_and_plain_pytorch_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # which serves those who ask for it
    for device, dtype, expected in (
        ("cuda", torch.float32, "triton"),
        ("cuda", torch.float64, "reference"),
        ("cpu", torch.float32, "reference"),
    ):
        choice = dispatch.choose("exact", device=torch.device(device), dtype=dtype)
        assert choice.impl == expected


@pytest.mark.parametrize("eps", [-1e-3, 1, float("nan"), "1e-3", None, True])
def test_an_eps_that_is_no_share_is_refused(eps: Any) -> None:
    p = problem(10)
    with pytest.raises(ValueError, match=r"eps must be a number in \[0, 1\)"):
        kernels.build_tiles(p.features, eps=eps)
    with pytest.raises(ValueError, match=r"eps must be a number in \[0, 1\)"):
        kernels.gaussian_filter(p.values[None], p.features[None], method="exact", eps=eps)


def test_options_that_cannot_be_honoured_are_refused() -> None:
    p = problem(10)
    pair = p.values[None], p.features[None]
    built = kernels.build_tiles(p.features, eps=1e-3)
    with pytest.raises(ValueError, match=r"'ieee' with impl='reference'.*not 'tf32'"):
        kernels.gaussian_filter(*pair, method="exact", precision="tf32")
    with pytest.raises(ValueError, match=r"'ieee' with impl='reference'.*not 'bf16'"):
        kernels.apply_tiles(built, p.values, precision="bf16", impl="reference")
    with pytest.raises(ValueError, match=r"precision must be one of \['ieee', 'tf32', 'bf16'\]"):
        kernels.apply_tiles(built, p.values, precision="fp8")  # type: ignore[arg-type]
    for option in ({"eps": 1e-3}, {"precision": "tf32"}):
        with pytest.raises(ValueError, match="is an option of"):
            kernels.gaussian_filter(*pair, **option)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'triton' runs on cuda only"):
        kernels.build_tiles(p.features, impl="triton")


def test_features_that_tiles_cannot_take_are_refused() -> None:
    features = problem(10).features
    with pytest.raises(ValueError, match="N at least 1"):
        kernels.build_tiles(features[:0])
    with pytest.raises(ValueError, match=r"features must have shape \[N, D\]"):
        kernels.build_tiles(features[None])
    with pytest.raises(TypeError, match="features must be float32 or float64"):
        kernels.build_tiles(features.half())
    with pytest.raises(ValueError, match="gradients to the values only"):
        kernels.build_tiles(features.clone().requires_grad_())
    features[3, 2] = torch.inf
    with pytest.raises(ValueError, match="features must be finite"):
        kernels.build_tiles(features, eps=1e-3)


def test_values_that_do_not_fit_the_tiles_are_refused() -> None:
    built = kernels.build_tiles(problem(10).features)
    with pytest.raises(ValueError, match=r"shape \[10, C\], one row for each point of the tiles"):
        kernels.apply_tiles(built, torch.zeros(9, 3))
    with pytest.raises(ValueError, match=r"dtype and device of tiles\.points"):
        kernels.apply_tiles(built, torch.zeros(10, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"values must have shape \[N, C\]"):
        kernels.apply_tiles(built, torch.zeros(1, 10, 3))
