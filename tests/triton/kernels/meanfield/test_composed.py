"""The update between filters of any kind, on a GPU and in the interpreter, against float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from mean_field_problems import EPS, compatibility, normal, uniform
from torch import Tensor

import kernels
from kernels.meanfield import Filter, GridFilter, PairFilter, SeparableFilter, TileFilter
from kernels.meanfield.filters import LatticeFilter

pytest.importorskip("triton", reason="triton is not installed")
from kernels.meanfield.triton import composed

HEIGHT, WIDTH = 7, 9
COUNT = HEIGHT * WIDTH


@pytest.fixture(autouse=True)
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composed, "TILE", 2**7)  # several programs, the last one not full


def grid(sigma: float, dtype: torch.dtype, device: torch.device) -> GridFilter:
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    features = torch.stack([x, y], 2).reshape(1, -1, 2).float() / sigma
    return GridFilter.of(features.to(device, dtype), WIDTH)


def filter_of(kind: str, images: int, dtype: torch.dtype, device: torch.device) -> Filter:
    features = normal(images, COUNT, 4).to(device, dtype)
    if kind == "tiles":
        return TileFilter.over(features, "ieee", 0.0)
    if kind == "separable":
        return SeparableFilter.over(features, 2, 0.1, "ieee")
    if kind == "lattices":
        return LatticeFilter.over(features, together=1)
    return PairFilter(features, "ieee")


def terms_of(
    kinds: list[str], images: int, labels: int, kind: str, scaled: str, wide: bool, device: Any
) -> list[kernels.Term]:
    dtype = torch.float64 if wide else torch.float32
    terms = []
    for k, name in enumerate(kinds):
        if name.startswith("grid"):
            filter = grid(float(name[5:]), dtype, device)
        else:
            filter = filter_of(name, images, dtype, device)
        # One scale for all images, or one for each.
        scales = [(uniform(images if k else 1, COUNT, 1, seed=s) + 0.2) / 4 for s in (7, 8)]
        before, after = (
            s.to(device, dtype) if scaled in ("both", side) else None
            for s, side in zip(scales, ("before", "after"), strict=True)
        )
        weights = compatibility(kind, labels).to(device, dtype)
        terms.append(kernels.Term(filter, weights, before, after))
    return terms


def assert_agrees(
    device: torch.device,
    kinds: list[str],
    *,
    images: int = 1,
    labels: int = 5,
    kind: str = "attractive",
    scaled: str = "both",
    iterations: int = 2,
    start: bool = False,
    marginals: bool = True,
) -> Tensor:
    """Error at most twice that of plain PyTorch in float32, both against float64."""
    unary = normal(images, labels, COUNT, seed=4).transpose(1, 2).to(device)
    given = torch.softmax(3 * normal(images, COUNT, labels, seed=9), 2).to(device)
    single, exact = (
        terms_of(kinds, images, labels, kind, scaled, wide, device) for wide in (False, True)
    )

    def run(impl: str, terms: list[kernels.Term], dtype: torch.dtype) -> Tensor:
        first = given.to(dtype) if start else None
        return kernels.mean_field(
            unary.to(dtype), terms, iterations, start=first, marginals=marginals, impl=impl
        )

    found = run("triton", single, torch.float32)
    plain = run("reference", single, torch.float32)
    truth = run("reference", exact, torch.float64)
    size = 1.0 if marginals else truth.abs().max().clamp_min(1)
    budget = 2 * (plain - truth).abs().max() + 16 * EPS * max(1, iterations) * size
    assert (found - truth).abs().max() <= budget
    assert found.stride() == unary.stride()
    return found


@pytest.mark.parametrize("kind", ["attractive", "diagonal", "matrix"])
@pytest.mark.parametrize("scaled", ["both", "before", "after", "neither"])
def test_every_compatibility_and_normalisation(
    device: torch.device, kind: str, scaled: str
) -> None:
    assert_agrees(device, ["grid 1.5", "pairs"], kind=kind, scaled=scaled)


@pytest.mark.parametrize("other", ["tiles", "separable", "lattices"])
def test_every_filter_in_a_batch(device: torch.device, other: str) -> None:
    assert_agrees(device, ["grid 0.7", other], images=2)


@pytest.mark.parametrize("kinds", [["pairs"], ["pairs", "grid 0.1"], ["grid 2", "grid 30"]])
def test_grids_anywhere_among_the_terms(device: torch.device, kinds: list[str]) -> None:
    assert_agrees(device, kinds, images=2)


@pytest.mark.parametrize("labels", [1, 2, 21, 150])
def test_any_number_of_labels(device: torch.device, labels: int) -> None:
    found = assert_agrees(device, ["grid 1.5", "pairs"], labels=labels)
    torch.testing.assert_close(found.sum(2), torch.ones_like(found[..., 0]))


@pytest.mark.parametrize("iterations", [0, 1, 4])
@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("marginals", [False, True])
def test_any_number_of_iterations_from_any_start(
    device: torch.device, iterations: int, start: bool, marginals: bool
) -> None:
    if iterations == 0 and start and not marginals:
        pytest.skip("refused")
    options = {"iterations": iterations, "start": start, "marginals": marginals}
    assert_agrees(device, ["grid 1.5", "pairs"], **options)


def test_a_forbidden_label_stays_forbidden(device: torch.device) -> None:
    unary = normal(1, COUNT, 4)
    unary[..., 2] = math.inf
    terms = terms_of(["grid 1.5", "pairs"], 1, 4, "matrix", "both", False, device)
    found = kernels.mean_field(unary.to(device), terms, 3, impl="triton").cpu()
    assert (found[..., 2] == 0).all()
    torch.testing.assert_close(found.sum(2), torch.ones(1, COUNT))


def test_a_gradient_is_refused(device: torch.device) -> None:
    terms = terms_of(["grid 1.5"], 1, 4, "matrix", "both", False, device)
    unary = normal(1, COUNT, 4).to(device).requires_grad_()
    with pytest.raises(ValueError, match="no gradients; use impl='reference'"):
        kernels.mean_field(unary, terms, 3, impl="triton")


def test_no_image_is_no_error(device: torch.device) -> None:
    terms = terms_of(["grid 1.5"], 1, 4, "matrix", "neither", False, device)
    assert kernels.mean_field(torch.empty(0, COUNT, 4).to(device), terms, 2, impl="triton").shape
