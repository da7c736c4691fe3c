"""A convolution along one axis of a grid against the sum over all pairs of its places."""

import math

import pytest
import torch
from torch import Tensor

from kernels.meanfield import GridFilter
from kernels.separable import band, grid


def taps_of(sigma: float, length: int, dtype: torch.dtype = torch.float64) -> Tensor:
    count = int(min(length, 1 + band.reach(sigma, dtype)))
    return torch.arange(count).double().div(sigma).square().mul(-0.5).exp().to(dtype)


def all_pairs(values: Tensor, sigma: float) -> Tensor:
    places = torch.arange(values.shape[1]).double() / sigma
    return (places[:, None] - places).square().mul(-0.5).exp() @ values


@pytest.mark.parametrize("sigma", [0.1, 3.0, 1000.0])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 300])
@pytest.mark.parametrize("outer", [0, 1, 3])
def test_what_is_left_out_is_less_than_a_quarter_of_a_rounding_of_the_mass(
    sigma: float, length: int, outer: int
) -> None:
    values = torch.rand(outer, length, 2).double()
    found = band.convolve(values, taps_of(sigma, length, torch.float32).double())
    size = all_pairs(torch.ones_like(values), sigma)
    left_out = torch.finfo(torch.float32).eps / 4
    rounding = 2**-24 + 1e-12  # of the taps, and of the sums
    assert ((found - all_pairs(values, sigma)).abs() <= (left_out + rounding) * size).all()


@pytest.mark.parametrize("sigma", [0.3, 1.0, 5.0, 80.0])
def test_taps_of_float64_leave_out_a_quarter_of_its_rounding(sigma: float) -> None:
    mass = all_pairs(torch.ones(1, 2000, 1).double(), sigma)
    taps = taps_of(sigma, 2000)
    far = torch.arange(len(taps), 2000).double().div(sigma).square().mul(-0.5).exp().sum()
    assert 2 * far <= torch.finfo(torch.float64).eps / 4 * mass.max()
    assert far <= torch.finfo(torch.float64).eps / 4 * mass.min()


def test_at_sigma_3_a_pixel_takes_37_of_a_row_and_37_of_a_column() -> None:
    y, x = torch.meshgrid(torch.arange(375), torch.arange(500), indexing="ij")
    places = torch.stack([x, y], 2).reshape(1, -1, 2)
    smoothness = GridFilter.of(places / 3.0, 500)
    smoothness = smoothness.cut(*smoothness.counts().tolist())
    # A tenth of the products with all rows and columns, at most.
    each = [2 * len(taps) - 1 for taps in (smoothness.rows, smoothness.columns)]
    assert sum(each) <= (375 + 500) / 10
    assert each == [37, 37]


def test_a_banded_product_is_the_product_with_all_places() -> None:
    taps, values = taps_of(2.0, 500), torch.rand(3, 500, 4).double()
    assert 2 * (len(taps) - 1) + band.BLOCK < 500  # several blocks
    torch.testing.assert_close(band.convolve(values, taps), all_pairs(values, 2.0))


@pytest.mark.parametrize("length", [20, 200])
def test_gradients_are_those_of_finite_differences_twice(length: int) -> None:
    taps = taps_of(0.8, length).requires_grad_()
    values = torch.rand(1, length, 1).double().requires_grad_()
    assert torch.autograd.gradcheck(band.convolve, (values, taps), fast_mode=True)
    assert torch.autograd.gradgradcheck(band.convolve, (values, taps), fast_mode=True)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (6, 7), (90, 140)])
@pytest.mark.parametrize("images", [1, 2])
def test_a_grid_is_the_gaussian_of_its_positions(height: int, width: int, images: int) -> None:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([x.double() / 1.5, y.double() / 2.5], 2).reshape(1, -1, 2)
    values = torch.rand(images, height * width, 2).double()
    if height * width > 100:
        values[:, 100:] = 0  # few columns of the kernel are enough
    near = (places[0, :, None] - places[0, :100]).square().sum(2).mul(-0.5).exp()
    whole = GridFilter.of(places, width)
    for found in (whole(values), whole.cut(*whole.counts().tolist())(values)):
        torch.testing.assert_close(found, near @ values[:, :100])


def test_an_axis_keeps_the_nodes_that_count() -> None:
    axis = grid.Axis(0.0, 0.5, 100)
    taps = axis.gaussian(torch.empty(0))
    sigma = math.sqrt(1 - 0.25 / 3)
    whole = torch.arange(100).mul(0.5 / sigma).square().mul(-0.5).exp() / sigma
    torch.testing.assert_close(taps, whole[: len(taps)])
    assert whole[len(taps)] < band.negligible(torch.float32) * whole[0] <= taps[-1]
    assert len(grid.Axis(0.0, 0.5, 3).gaussian(torch.empty(0))) == 3
