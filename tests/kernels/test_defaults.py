"""Results do not depend on the dtype and device that torch is told to make new tensors with."""

import pytest
import torch

import kernels
from kernels.meanfield import LatticeFilter


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_a_lattice_filters_alike(impl, other_default):
    features, values = torch.randn(40, 3), torch.randn(40, 5)
    expected = kernels.apply_lattice(kernels.build_lattice(features, impl=impl), values, impl=impl)
    other_default()
    lattice = kernels.build_lattice(features, impl=impl)
    assert torch.equal(kernels.apply_lattice(lattice, values, impl=impl), expected)


@pytest.mark.parametrize("eps", [0.0, 1e-2])
def test_tiles_filter_alike(eps, other_default):
    features, values = 4 * torch.randn(400, 3), torch.randn(400, 5)
    expected = kernels.apply_tiles(kernels.build_tiles(features, eps=eps), values)
    other_default()
    assert torch.equal(
        kernels.apply_tiles(kernels.build_tiles(features, eps=eps), values), expected
    )


@pytest.mark.parametrize("method", ["permutohedral", "exact"])
def test_a_batch_is_filtered_alike(method, other_default):
    values, features = torch.randn(2, 40, 5), torch.randn(2, 40, 3)
    expected = kernels.gaussian_filter(values, features, method=method)
    other_default()
    assert torch.equal(kernels.gaussian_filter(values, features, method=method), expected)


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_mean_field_gives_the_same(impl, other_default):
    filter = LatticeFilter([kernels.build_lattice(torch.randn(40, 3))])
    unary, scale = torch.randn(1, 40, 4), torch.rand(1, 40, 1)
    terms = [
        kernels.Term(filter, torch.full((4,), -2.0), scale, scale),
        kernels.Term(filter, 1 - torch.eye(4)),
    ]
    expected = kernels.mean_field(unary, terms, 3, impl=impl)
    other_default()
    assert torch.equal(kernels.mean_field(unary, terms, 3, impl=impl), expected)


def test_atrous_convolution_gives_the_same(other_default):
    input, weight = torch.randn(1, 3, 9, 9), torch.randn(2, 4, 3, 3, 3)
    expected = kernels.multi_rate_atrous_conv2d(input, weight, rates=(1, 2))
    other_default()
    result = kernels.multi_rate_atrous_conv2d(input, weight, rates=(1, 2))
    assert torch.equal(result, expected)
