"""One lattice of several images: each is filtered as on its own, bit for bit."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import kernels
from kernels.permutohedral import batch, cpu

any_impl = pytest.mark.parametrize("impl", ["cpu", "reference"])


@pytest.fixture(autouse=True)
def _several_parts(monkeypatch):
    """Lattices of the CPU have two parts, and so ghosts."""
    monkeypatch.setattr(cpu, "MIN_PART", 8)


def features_of(images: int, count: int, dims: int, spread: float = 0.5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(images, count, dims, generator=generator).cumsum(1)


def alone(features: Tensor, values: Tensor, impl: str, **options: Any) -> Tensor:
    """The values `[B * N, C]`, each image filtered on a lattice of its own."""
    own = (kernels.build_lattice(f, impl=impl) for f in features)
    pairs = zip(own, values.unflatten(0, features.shape[:2]), strict=True)
    return torch.cat([kernels.apply_lattice(one, v, impl=impl, **options) for one, v in pairs])


@any_impl
@settings(deadline=None, max_examples=25)
@given(
    images=st.integers(1, 4),
    count=st.integers(0, 40),
    dims=st.integers(1, 6),
    spread=st.sampled_from([0.0, 0.1, 3.0]),
    reverse=st.booleans(),
)
def test_images_of_a_lattice_are_filtered_as_alone(impl, images, count, dims, spread, reverse):
    features = features_of(images, count, dims, spread)
    values = torch.randn(images * count, 3)
    lattice = kernels.build_lattice(features, impl=impl)
    own = [kernels.build_lattice(f, impl=impl) for f in features]
    assert lattice.num_points == images * count
    assert lattice.num_vertices == sum(one.num_vertices for one in own)
    found = kernels.apply_lattice(lattice, values, reverse=reverse, impl=impl)
    assert torch.equal(found, alone(features, values, impl, reverse=reverse))


@any_impl
@pytest.mark.parametrize("images", [1, 2, 5])
def test_a_repeated_lattice_is_that_of_images_with_the_same_points(impl, images):
    features = features_of(1, 30, 4)
    one = kernels.build_lattice(features[0], impl=impl)
    lattice = kernels.repeat_lattice(one, images)
    expected = kernels.build_lattice(features.expand(images, -1, -1), impl=impl)
    for name in ("corners", "weights", "neighbours", "ghosts", "parts", "chains"):
        found, wanted = getattr(lattice, name), getattr(expected, name)
        assert (found is None and wanted is None) or torch.equal(found, wanted), name


def test_joined_lattices_need_not_be_alike():
    """Of different sizes, with and without ghosts; chains only where all have them."""
    pieces = [features_of(1, count, 3, seed=count)[0] for count in (40, 3, 0, 17)]
    values = torch.randn(60, 2)
    for impls, has_chains in ((["cpu"] * 4, True), (["cpu", "reference"] * 2, False)):
        built = [kernels.build_lattice(f, impl=i) for f, i in zip(pieces, impls, strict=True)]
        lattice = batch.joined(built)
        assert (lattice.chains is not None) == has_chains
        shares = zip(built, values.split([len(f) for f in pieces]), strict=True)
        filtered = [kernels.apply_lattice(one, v, impl="reference") for one, v in shares]
        expected = torch.cat(filtered)
        for impl in ("cpu", "reference"):
            found = kernels.apply_lattice(lattice, values, impl=impl)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_gradients_stay_within_their_image():
    features, values = features_of(2, 20, 3), torch.randn(40, 2, requires_grad=True)
    lattice = kernels.build_lattice(features)
    kernels.apply_lattice(lattice, values)[:20].sum().backward()
    assert values.grad is not None
    assert values.grad[:20].abs().max() > 0
    assert not values.grad[20:].any()


@any_impl
def test_no_images_have_a_lattice_without_points(impl):
    lattice = kernels.build_lattice(torch.empty(0, 5, 3), impl=impl)
    assert lattice.num_points == lattice.num_rows == 0


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"features must have shape \[B, N, D\]"):
        kernels.build_lattice(torch.empty(2, 5, 0))
    with pytest.raises(ValueError, match=r"features must have shape \[N, D\]"):
        kernels.build_lattice(torch.empty(2, 5, 3, 1))
    with pytest.raises(ValueError, match="hold NaN or Inf"):
        kernels.build_lattice(torch.tensor([[[0.0], [1.0]], [[float("nan")], [0.0]]]))
    with pytest.raises(ValueError, match="400000000 points in 5 dimensions"):
        kernels.build_lattice(torch.empty(1, 1, 5).expand(200, 2_000_000, 5))
    one = kernels.build_lattice(torch.rand(10, 5))
    with pytest.raises(ValueError, match="images must be at least 1, not 0"):
        kernels.repeat_lattice(one, 0)
    with pytest.raises(ValueError, match="in 32 bits"):
        kernels.repeat_lattice(one, 2**30)
