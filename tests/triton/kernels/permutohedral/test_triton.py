"""The Triton lattice on a GPU and in the interpreter: eager's vertices, filters within budget.

Points and values are made on a CPU, where the eager lattice stands for the truth.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import pytest
import torch
from lattice_problems import assert_equal_lattices, moved, normal, walk
from torch import Tensor

import kernels
from kernels import dispatch
from kernels.permutohedral import cpu, reference
from kernels.permutohedral.lattice import Lattice

pytest.importorskip("triton", reason="triton is not installed")
from kernels.permutohedral import triton
from kernels.permutohedral.triton import building, segments

EPS = torch.finfo(torch.float32).eps
if dispatch.interpreting():
    COUNT, DIMS, SPREADS = 70, (1, 2, 3, 5, 8), (0.1, 20.0)
else:  # 9 dimensions of 300 need more than one word
    COUNT, DIMS, SPREADS = 2000, tuple(range(1, 10)), (0.0, 1e-3, 0.1, 1.0, 20.0, 300.0)


@dataclass(frozen=True)
class Lattices:
    """The kernels on a device, for points and values from anywhere; results are on a CPU."""

    device: torch.device

    def build(self, features: Tensor, images: int = 1) -> Lattice:
        return triton.build(features.to(self.device), images)

    def filter(self, lattice: Lattice, values: Tensor, reverse: bool = False) -> Tensor:
        on_device = moved(lattice, self.device)
        return triton.filter(on_device, values.to(self.device), reverse).cpu()


@pytest.fixture
def lattices(device: torch.device) -> Lattices:
    return Lattices(device)


def assert_within_budget(
    lattices: Lattices, features: Tensor, values: Tensor, reverse: bool
) -> None:
    """Error at most twice that of the eager filter, both against float64 on the same lattice."""
    theirs = reference.build(features)
    exact = dataclasses.replace(theirs, weights=theirs.weights.double())
    truth = reference.filter(exact, values.double(), reverse)
    mass = reference.filter(exact, values.abs().double(), reverse).max()
    single = (reference.filter(theirs, values, reverse) - truth).abs().max()
    error = (lattices.filter(lattices.build(features), values, reverse) - truth).abs().max()
    assert error <= 2 * single + 4 * EPS * mass


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("spread", SPREADS)
def test_rows_weights_and_neighbours_are_bit_for_bit_those_of_eager(
    lattices: Lattices, dims: int, spread: float
) -> None:
    features = walk(COUNT, dims, spread / math.sqrt(dims))
    assert_equal_lattices(lattices.build(features), reference.build(features))


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
def test_points_on_the_borders_of_simplices_are_placed_as_eager_does(
    lattices: Lattices, features: Tensor
) -> None:
    assert_equal_lattices(lattices.build(features), reference.build(features))


@pytest.mark.parametrize("images", [1, 2])
def test_keys_beyond_62_bits_are_told_apart(lattices: Lattices, images: int) -> None:
    generator = torch.Generator().manual_seed(0)
    features = 2000 * torch.rand(30, 9, generator=generator)
    features = torch.cat([features, features + 0.01])  # shared simplices, far-apart points
    report = torch.empty(2 + 9, dtype=torch.float64, device=lattices.device)
    building.pack(features.to(lattices.device), report)
    extents = [int(extent) for extent in report[2:].tolist()]
    assert math.prod(extents) > 2**63
    assert len(building._word_strides(extents, images)) > 1
    points = features.reshape(2, 30, 9).transpose(0, 1).reshape(60, 9) if images > 1 else features
    lattice = lattices.build(points, images)
    if images == 1:
        assert_equal_lattices(lattice, reference.build(features))
    else:
        rows = [reference.build(half).num_rows for half in points.split(30)]
        assert lattice.num_rows == sum(rows)
    assert (lattice.neighbours < lattice.num_rows).any()


def test_the_lattice_says_what_every_row_sums(lattices: Lattices) -> None:
    features = walk(100, 3, 1.0)
    lattice = lattices.build(features)
    own = segments.completed(moved(reference.build(features), lattices.device))
    for name in ("entries", "pieces", "sums"):
        assert torch.equal(getattr(lattice, name), getattr(own, name)), name
    assert lattice.entries is not None
    rows = lattice.corners.flatten()[lattice.entries.long()]
    assert torch.equal(rows, rows.sort().values)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, before we refuse
@pytest.mark.parametrize(
    ("bad", "says"),
    [(math.nan, "finite"), (math.inf, "finite"), (-math.inf, "finite"), (1e7, "too large")],
)
def test_features_that_no_lattice_holds_are_refused(
    device: torch.device, bad: float, says: str
) -> None:
    features = walk(10, 3, 1.0)
    features[4, 1] = bad
    on_device, values = features.to(device), normal(1, 10, 2).to(device)
    for call in (
        lambda: kernels.build_lattice(on_device, impl="triton"),
        lambda: kernels.gaussian_filter(values, on_device[None], impl="triton"),
    ):
        with pytest.raises(ValueError, match=says) as ours:
            call()
        with pytest.raises(ValueError, match=says) as theirs:
            kernels.build_lattice(features, impl="reference")
        assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 21, 70])
def test_any_number_of_channels_is_filtered_within_budget(
    lattices: Lattices, channels: int, reverse: bool
) -> None:
    features = walk(80, 2, 2.0)
    assert_within_budget(lattices, features, normal(80, channels), reverse)


def test_the_filter_in_reverse_is_the_adjoint(lattices: Lattices) -> None:
    lattice = lattices.build(walk(80, 4, 1.0))
    u, v = normal(80, 1, seed=3), normal(80, 1, seed=4)
    forward = (u.double() * lattices.filter(lattice, v)).sum()
    backward = (lattices.filter(lattice, u, reverse=True) * v.double()).sum()
    # Each side rounds 2 (D+1) products and D+1 blurs of the terms of |u| F |v|.
    bound = (u.abs() * lattices.filter(lattice, v.abs())).sum()
    assert abs(forward - backward) <= 2 * 15 * EPS * bound


def test_gradients_are_the_adjoint_any_number_of_times(lattices: Lattices) -> None:
    features, values = walk(50, 3, 1.0), normal(50, 3)
    lattice, theirs = lattices.build(features), reference.build(features)
    for reverse in (False, True):
        found, expected = [], []
        for built, impl, grads in ((lattice, "triton", found), (theirs, "reference", expected)):
            leaf = values.to(built.weights.device, copy=True).requires_grad_()
            output = kernels.apply_lattice(built, leaf, reverse=reverse, impl=impl)
            (first,) = torch.autograd.grad(output.pow(3).sum(), leaf, create_graph=True)
            grads += [output, first, *torch.autograd.grad(first.sum(), leaf)]
        for ours, other in zip(found, expected, strict=True):
            atol = 1e-4 * other.abs().max().item()
            torch.testing.assert_close(ours.cpu(), other, rtol=1e-4, atol=atol)


def test_the_batched_filter_has_the_gradient_of_each_image(device: torch.device) -> None:
    features, values = walk(45, 2, 1.0).view(3, 15, 2).to(device), normal(3, 15, 2).to(device)
    leaves = [values.clone().requires_grad_() for _ in range(2)]
    for leaf, impl in zip(leaves, ("triton", "reference"), strict=True):
        kernels.gaussian_filter(leaf, features, impl=impl).square().sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-5, atol=1e-5)


def test_large_batches_are_filtered_in_groups(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, values = walk(15, 2, 1.0).view(3, 5, 2).to(device), normal(3, 5, 2).to(device)
    expected = triton.filter_batch(values, features)
    for most in (1, 12):
        monkeypatch.setattr(triton, "MOST_POINTS", most)
        assert torch.equal(triton.filter_batch(values, features), expected)


@pytest.mark.parametrize("origin", ["reference", "cpu in parts", "without the last points"])
def test_lattices_of_other_builds_are_filtered_on(
    lattices: Lattices, monkeypatch: pytest.MonkeyPatch, origin: str
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
        built, theirs = lattices.build(more), reference.build(more)
        lattice = dataclasses.replace(built, corners=built.corners[:90], weights=built.weights[:90])
        expected = reference.filter(theirs, torch.cat([values, values.new_zeros(3, 3)]))[:90]
    found = lattices.filter(lattice, values)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_values_of_any_strides_are_read_right(lattices: Lattices, layout: str) -> None:
    lattice = lattices.build(walk(30, 2, 1.0))
    values = {
        "transposed": normal(4, 30).to(lattices.device).T,
        "strided": normal(60, 8).to(lattices.device)[::2, ::2],
        "expanded": normal(30, 1).to(lattices.device).expand(30, 4),
    }[layout]
    assert torch.equal(
        lattices.filter(lattice, values), lattices.filter(lattice, values.contiguous())
    )


def test_no_points_a_single_point_and_no_images_are_possible(lattices: Lattices) -> None:
    for count in (0, 1):
        features, values = torch.zeros(count, 5), torch.ones(count, 2)
        lattice = lattices.build(features)
        assert_equal_lattices(lattice, reference.build(features))
        expected = reference.filter(reference.build(features), values)
        torch.testing.assert_close(lattices.filter(lattice, values), expected)
    empty = torch.ones(0, 3, 2, device=lattices.device)
    assert kernels.gaussian_filter(empty, empty, impl="triton").shape == (0, 3, 2)


def test_repeated_runs_give_the_same_bits(lattices: Lattices) -> None:
    features, values = walk(60, 4, 1.0), normal(60, 5)
    first = lattices.filter(lattices.build(features), values)
    for _ in range(2):
        assert torch.equal(lattices.filter(lattices.build(features), values), first)


@pytest.mark.parametrize("spread", [0.0, 0.5])  # all points on a simplex, or on many
@pytest.mark.parametrize("fillers", [0, 1])
def test_a_repeated_lattice_has_the_sums_of_one_built_of_all_its_images(
    lattices: Lattices, spread: float, fillers: int
) -> None:
    features, values = walk(30, 3, spread), normal(90, 4)
    filled = torch.cat([features, features.new_zeros(fillers, 3)])
    one = lattices.build(filled)
    one = dataclasses.replace(one, corners=one.corners[:30], weights=one.weights[:30])
    repeated = kernels.repeat_lattice(one, 3)
    for reverse in (False, True):
        alone = [lattices.filter(one, v, reverse) for v in values.split(30)]
        assert torch.equal(lattices.filter(repeated, values, reverse), torch.cat(alone))
    if not fillers:
        on_device = features.to(lattices.device)
        built = kernels.build_lattice(on_device.expand(3, -1, -1), impl="triton")
        for name in ("corners", "weights", "neighbours", "ghosts", "entries"):
            assert torch.equal(getattr(repeated, name), getattr(built, name)), name


def test_lattices_built_together_are_those_built_alone(device: torch.device) -> None:
    features = [walk(40, 2, 0.5), torch.zeros(0, 4), walk(30, 5, 1.0).view(3, 10, 5)]
    on_device = [one.to(device) for one in features]
    together = kernels.permutohedral.build_lattices(on_device, impl="triton")
    for ours, one in zip(together, on_device, strict=True):
        alone = kernels.build_lattice(one, impl="triton")
        for field in dataclasses.fields(alone):
            expected, found = getattr(alone, field.name), getattr(ours, field.name)
            assert found is expected is None or torch.equal(found, expected), field.name
    assert together[2].parts.tolist() == [[0, 0, 0], [30, together[2].num_rows, 0]]


def test_images_of_a_batch_do_not_mix(device: torch.device) -> None:
    features, values = walk(40, 2, 0.5).view(2, 20, 2).to(device), normal(40, 3).to(device)
    lattice = kernels.build_lattice(features, impl="triton")
    together = kernels.apply_lattice(lattice, values, impl="triton").view(2, 20, 3)
    filtered = kernels.gaussian_filter(values.view(2, 20, 3), features, impl="triton")
    for b, image in enumerate(values.view(2, 20, 3)):
        own = kernels.build_lattice(features[b], impl="triton")
        alone = kernels.apply_lattice(own, image, impl="triton")
        assert torch.equal(together[b], alone)
        assert torch.equal(filtered[b], alone)
    none = torch.empty(0, 4, 2, device=device)
    assert kernels.build_lattice(none, impl="triton").num_points == 0
