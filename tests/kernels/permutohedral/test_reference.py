"""The eager lattice against the same lattice written point by point, and its properties."""

import dataclasses
import math
from collections import defaultdict

import pytest
import torch
from exact_problems import all_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.permutohedral import reference
from kernels.permutohedral.lattice import Lattice

pytestmark = pytest.mark.processors

EPS = torch.finfo(torch.float32).eps


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def matrix(lattice: Lattice, reverse: bool = False) -> Tensor:
    """The filter as a matrix `[N, N]`."""
    identity = torch.eye(lattice.num_points, dtype=lattice.weights.dtype)
    return reference.filter(lattice, identity, reverse)


# The reference: one point at a time, vertices in a dictionary by all their D+1 coordinates


def simplex(point: list[float]) -> list[tuple[tuple[int, ...], float]]:
    """Vertices and barycentric weights of the simplex around a point (Adams et al., section 3)."""
    dims = len(point)
    scales = [math.sqrt(2 / 3) * (dims + 1) / math.sqrt((d + 1) * (d + 2)) for d in range(dims)]
    scaled = [x * s for x, s in zip(point, scales, strict=True)]
    elevated = [sum(scaled[i:]) - (i * scaled[i - 1] if i else 0.0) for i in range(dims + 1)]
    origin = [round(e / (dims + 1)) * (dims + 1) for e in elevated]

    def by_offset() -> list[int]:
        return sorted(range(dims + 1), key=lambda i: (origin[i] - elevated[i], i))

    excess = sum(origin) // (dims + 1)
    moved = by_offset()[dims + 1 - excess :] if excess > 0 else by_offset()[: max(0, -excess)]
    for i in moved:
        origin[i] -= int(math.copysign(dims + 1, excess))
    assert sum(origin) == 0

    order = by_offset()
    offset = [elevated[i] - origin[i] for i in order]
    vertices = []
    for k in range(dims + 1):  # the k coordinates of smallest offset have been stepped over
        key = list(origin)
        for position, i in enumerate(order):
            key[i] += k - (dims + 1) * (position > dims - k)
        next_offset = offset[dims - k + 1] if k else offset[0] - (dims + 1)
        vertices.append((tuple(key), (offset[dims - k] - next_offset) / (dims + 1)))
    return vertices


def step(key: tuple[int, ...], direction: int, sign: int) -> tuple[int, ...]:
    return tuple(x + sign - sign * len(key) * (i == direction) for i, x in enumerate(key))


def by_dictionary(features: Tensor, values: Tensor, reverse: bool) -> Tensor:
    dims = features.shape[1]
    simplices = [simplex(point) for point in features.tolist()]
    rows: dict[tuple[int, ...], Tensor] = defaultdict(lambda: torch.zeros_like(values[0]))
    for vertices, value in zip(simplices, values, strict=True):
        for key, weight in vertices:
            rows[key] = rows[key] + weight * value
    for j in reversed(range(dims + 1)) if reverse else range(dims + 1):
        rows = {
            key: row + 0.5 * sum(rows[n] for n in (step(key, j, 1), step(key, j, -1)) if n in rows)
            for key, row in rows.items()
        }
    filtered = [sum(weight * rows[key] for key, weight in vertices) for vertices in simplices]
    return torch.stack(filtered) / (1 + 2**-dims)


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 25),
    dims=st.integers(1, 7),
    spread=st.sampled_from([0.01, 0.5, 2.0, 1e3]),
    reverse=st.booleans(),
    seed=st.integers(0, 999),
)
def test_filter_equals_the_lattice_written_point_by_point(count, dims, spread, reverse, seed):
    features, values = spread * normal(count, dims, seed=seed), normal(count, 3, seed=seed + 1)
    filtered = reference.filter(reference.build(features), values, reverse)
    expected = by_dictionary(features, values, reverse)
    torch.testing.assert_close(filtered, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("features", [torch.zeros(3, 4), torch.arange(6.0).reshape(6, 1)])
def test_points_on_vertices_and_coinciding_points_equal_the_reference(features):
    features, values = features.double(), normal(len(features), 2)
    filtered = reference.filter(reference.build(features), values)
    torch.testing.assert_close(filtered, by_dictionary(features, values, False))


# Building


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dims", [1, 2, 5, 8])
def test_weights_are_barycentric(dims, dtype):
    lattice = reference.build((20 * normal(500, dims)).to(dtype))
    eps = torch.finfo(dtype).eps * 100  # of coordinates of that size
    assert lattice.weights.min() >= -eps
    ones = torch.ones(500, dtype=dtype)
    torch.testing.assert_close(lattice.weights.sum(1), ones, rtol=0, atol=eps)


@pytest.mark.parametrize("dims", [1, 3, 5])
def test_neighbours_are_mutual_and_corners_follow_one_another(dims):
    lattice = reference.build(normal(200, dims))
    rows = torch.arange(lattice.num_rows + 1)
    for before, after in torch.nn.functional.pad(lattice.neighbours, (0, 1)).long():
        linked = after[:-1] < lattice.num_rows
        assert (before[after[:-1][linked]] == rows[:-1][linked]).all()
        assert (before[:-1] < lattice.num_rows).sum() == linked.sum()
    # Corner k of a simplex has remainder k: corner k + 1 is one step from it in some direction.
    after = lattice.neighbours[:, 1].long()
    first, second = lattice.corners[:, :-1].long(), lattice.corners[:, 1:].long()
    assert (after[:, first] == second).sum(0).eq(1).all()


def test_float32_and_float64_lattices_agree_within_rounding():
    features, values = normal(300, 5).float(), normal(300, 4)
    single = reference.filter(reference.build(features), values.float())
    double = reference.filter(reference.build(features.double()), values)
    mass = reference.filter(reference.build(features.double()), values.abs()).max()
    # Six corners to and from, six blurs, coordinates of up to about 20 before the fraction.
    assert (single - double).abs().max() <= 20 * 6 * EPS * mass


def test_a_float32_lattice_uses_the_same_vertices_for_equal_features_every_time():
    features = normal(100, 5).float()
    first, second = reference.build(features), reference.build(features.clone())
    for field in dataclasses.fields(Lattice):
        one, other = getattr(first, field.name), getattr(second, field.name)
        assert one is other is None or torch.equal(one, other)


def test_the_order_of_points_does_not_matter():
    features, values = normal(60, 3), normal(60, 2)
    order = torch.randperm(60)
    shuffled = reference.filter(reference.build(features[order]), values[order])
    torch.testing.assert_close(shuffled, reference.filter(reference.build(features), values)[order])


def test_no_points_and_no_channels_are_possible():
    lattice = reference.build(torch.empty(0, 4))
    assert lattice.num_rows == lattice.num_vertices == lattice.num_points == 0
    assert reference.filter(lattice, torch.empty(0, 3)).shape == (0, 3)
    assert reference.filter(reference.build(torch.zeros(2, 1)), torch.empty(2, 0)).shape == (2, 0)


# Filtering


def test_reverse_is_the_transpose_and_not_the_filter_itself():
    lattice = reference.build(normal(80, 3))
    torch.testing.assert_close(matrix(lattice, reverse=True), matrix(lattice).T)
    assert (matrix(lattice, reverse=True) - matrix(lattice)).abs().max() > 1e-4


def test_points_far_apart_do_not_mix():
    features = torch.cat([normal(10, 5), normal(10, 5) + 100])
    mixed = matrix(reference.build(features))
    assert mixed[:10, 10:].abs().max() == mixed[10:, :10].abs().max() == 0
    torch.testing.assert_close(mixed[:10, :10], matrix(reference.build(features[:10])))


@pytest.mark.parametrize(("dims", "most"), [(1, 0.03), (2, 0.03), (3, 0.05)])
def test_on_dense_points_the_normalised_filter_is_near_the_exact_one(dims, most):
    axis = torch.linspace(0, 8, {1: 400, 2: 40, 3: 14}[dims], dtype=torch.float64)
    features = torch.cartesian_prod(*[axis] * dims).reshape(-1, dims)
    values = torch.cat([features.sin(), torch.ones_like(features[:, :1])], dim=1)
    approximate = reference.filter(reference.build(features), values)
    exact = all_pairs(values, features)
    error = approximate[:, :-1] / approximate[:, -1:] - exact[:, :-1] / exact[:, -1:]
    assert error.square().mean().sqrt() < most


def test_ghosts_share_the_rows_of_their_owners():
    plain = reference.build(normal(40, 2))
    rows, split = plain.num_rows, 25
    early = plain.corners[:split].unique()
    late = plain.corners[split:].unique()
    owners = late[torch.isin(late, early)]  # vertices of both parts get a second row
    assert len(owners) > 0
    twin = torch.arange(rows, dtype=torch.int32)
    twin[owners.long()] = rows + torch.arange(len(owners), dtype=torch.int32)
    corners = plain.corners.clone()
    corners[split:] = twin[corners[split:].long()]
    total = rows + len(owners)
    neighbours = torch.full((3, 2, total), total, dtype=torch.int32)
    neighbours[:, :, :rows] = torch.where(plain.neighbours == rows, total, plain.neighbours)
    ghosts = torch.stack([twin[owners.long()], owners], dim=1)
    parts = torch.tensor([[0, 0, 0], [split, rows, 0], [40, total, len(owners)]])
    shared = Lattice(corners, plain.weights, neighbours, ghosts, parts)
    values = normal(40, 3)
    assert shared.num_vertices == plain.num_vertices
    assert torch.equal(reference.filter(shared, values), reference.filter(plain, values))


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_of_both_orders_are_right(reverse):
    lattice = reference.build(normal(12, 3))
    values = normal(12, 2).requires_grad_()

    def squared(v: Tensor) -> Tensor:
        return reference.filter(lattice, v, reverse).square()

    assert torch.autograd.gradcheck(squared, values)
    assert torch.autograd.gradgradcheck(squared, values)


def test_values_of_any_strides_are_filtered_alike():
    lattice, values = reference.build(normal(30, 3)), normal(30, 4)
    expected = reference.filter(lattice, values)
    assert torch.equal(reference.filter(lattice, values.T.contiguous().T), expected)
    one = reference.filter(lattice, values[:, :1].expand(30, 4))
    assert torch.equal(one, expected[:, :1].expand(30, 4))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gpu_gives_what_the_cpu_gives(dtype):
    features, values = normal(500, 5).to(dtype), normal(500, 3).to(dtype)
    expected = reference.filter(reference.build(features), values)
    lattice = reference.build(features.cuda())
    torch.testing.assert_close(reference.filter(lattice, values.cuda()).cpu(), expected)
