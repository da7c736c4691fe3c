"""The filters of a mean field: order of points, pydensecrf's lattice, normalisation by the mass."""

import dataclasses
import itertools

import pytest
import torch

from kernels import apply_lattice, build_lattice
from kernels.meanfield import build, filters
from kernels.meanfield.filters import in_order, out_of_order, pixel_order, reference_lattice
from kernels.meanfield.term import normalizers

SIZES = [(1, 1), (1, 7), (5, 1), (4, 6), (33, 17), (40, 48)]


# Values of other points than the lattice's


@pytest.mark.parametrize("shape", [(1, 62, 2), (1, 64, 2), (2, 63, 2), (1, 0, 2)])
def test_values_that_are_not_of_the_lattices_points_are_refused(shape: tuple[int, ...]) -> None:
    filter = filters.LatticeFilter.over(torch.randn(1, 63, 3), 1)
    filter(torch.zeros(1, 63, 2))
    with pytest.raises(ValueError, match="values"):
        filter(torch.zeros(shape))
    with pytest.raises(ValueError, match="values"):
        filter(torch.zeros(1, 63, 2, dtype=torch.float64))


def test_a_lattice_whose_parts_are_of_more_points_is_refused() -> None:
    (lattice,) = filters.LatticeFilter.over(torch.randn(1, 63, 3), 1).lattices
    parts = lattice.parts.clone()
    parts[-1, 0] += 8
    filter = filters.LatticeFilter([dataclasses.replace(lattice, parts=parts)])
    with pytest.raises(ValueError, match=r"lattice\.parts"):
        filter(torch.zeros(1, 63, 2))


# Order of pixels


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("tile", [1, 3, 16, 100])
def test_pixel_order_visits_tile_after_tile(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int, tile: int
) -> None:
    monkeypatch.setattr(filters, "SIDE", tile)
    expected = [
        y * width + x
        for top, left in itertools.product(range(0, height, tile), range(0, width, tile))
        for y in range(top, min(top + tile, height))
        for x in range(left, min(left + tile, width))
    ]
    order = pixel_order(height, width)
    assert order.dtype == torch.int64
    assert order.tolist() == expected


@pytest.mark.parametrize("recorded", [False, True])
def test_out_of_order_undoes_in_order(recorded: bool) -> None:
    values = torch.randn(2, 9, 3).requires_grad_(recorded)
    order = torch.randperm(9)
    ordered = in_order(values, order)
    assert torch.equal(ordered, values[:, order])
    assert ordered.requires_grad == recorded
    assert torch.equal(out_of_order(ordered, order), values)


# The lattice of pydensecrf


@pytest.mark.parametrize("count", [4, 5, 6, 7])
def test_reference_lattice_has_the_vertices_of_the_origin_unless_blocks_are_full(
    count: int,
) -> None:
    features = 50 + torch.rand(count, 5)
    lattice, plain = reference_lattice(features), build_lattice(features)
    at_origin = 0 if count % 4 == 0 else 6
    assert lattice.num_vertices == plain.num_vertices + at_origin
    assert lattice.num_points == count
    assert lattice.parts[-1, 0] == count
    values = torch.rand(count, 3)  # far from the origin, the vertices there change nothing
    torch.testing.assert_close(apply_lattice(lattice, values), apply_lattice(plain, values))


@pytest.mark.parametrize("count", [4, 5, 7])
def test_the_reference_lattice_of_a_batch_filters_as_that_of_each_image(count: int) -> None:
    features, values = torch.randn(3, count, 4), torch.randn(3, count, 2)
    lattice = reference_lattice(features)
    assert lattice.num_points == 3 * count
    found = apply_lattice(lattice, values.flatten(0, 1)).unflatten(0, (3, count))
    for b in range(3):
        alone = reference_lattice(features[b])
        assert torch.equal(found[b], apply_lattice(alone, values[b]))


# What the host must know of filters


def test_numbers_of_several_tensors_come_as_they_are_and_with_their_shapes() -> None:
    tensors = [torch.tensor([3, 2**40]), torch.randn(2, 2, 5), torch.randn(1, 2, 3).double()]
    for found, tensor in zip(build._known(tensors), tensors, strict=True):
        assert found.shape == tensor.shape
        assert found.tolist() == tensor.tolist()


# Normalisation


def test_normalizers_scale_by_the_mass_on_the_side_asked_for() -> None:
    mass = torch.tensor([4.0, 0.25, 1e-30])
    before, after = normalizers(mass, "symmetric")
    assert before is after
    torch.testing.assert_close(before, torch.tensor([0.5, 2.0, 1e10]))
    before, after = normalizers(mass, "before")
    assert after is None
    torch.testing.assert_close(before, torch.tensor([0.25, 4.0, 1e20]))
    before, after = normalizers(mass, "after")
    assert before is None
    torch.testing.assert_close(after, torch.tensor([0.25, 4.0, 1e20]))
    assert normalizers(mass, "none") == (None, None)
