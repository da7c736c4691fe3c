"""Problems of one image for kernels.mean_field, and the error that an implementation may have."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lattice_problems import moved
from torch import Tensor

import kernels
from kernels import dispatch
from kernels.meanfield import LatticeFilter
from kernels.permutohedral import reference

EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def mean_field_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that suit the interpreter, where it runs the kernels: the lattice's, and their own."""
    if not dispatch.interpreting():
        return
    from kernels.meanfield import triton  # once configured
    from kernels.meanfield.triton import stack

    request.getfixturevalue("large_lattice_tiles")
    monkeypatch.setattr(triton, "TILE", 2**12)
    monkeypatch.setattr(stack, "BLOCK", 1024)


@pytest.fixture(autouse=True)
def as_on_a_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter, the GPU's path: Triton for "auto", images of a batch together."""
    if not dispatch.interpreting():
        return
    from kernels.meanfield import build

    request.getfixturevalue("mean_field_tiles")
    triton = dispatch.Implementation(
        "triton", "Triton's interpreter", device="cpu", dtypes=(torch.float32,), triton=True
    )
    for operation in ("permutohedral", "meanfield"):
        monkeypatch.setitem(dispatch.OPERATIONS, operation, (triton,))
    monkeypatch.setattr(build, "images_together", lambda features, batch, labels: max(1, batch))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def walked(
    count: int, dims: int, build: Callable[[Tensor], kernels.Lattice] = reference.build
) -> kernels.Lattice:
    """The lattice of points of which some lie near each other, as pixels do."""
    return build((normal(count, dims, seed=dims).cumsum(0) * 0.3).contiguous())


def term(
    lattice: kernels.Lattice,
    compatibility: Tensor,
    before: Tensor | None = None,
    after: Tensor | None = None,
    order: Tensor | None = None,
) -> kernels.Term:
    """A term over one lattice; before and after are `[N]`, of each point."""
    scaled = {id(t): None if t is None else t[None, :, None] for t in (before, after)}
    filter = LatticeFilter([lattice], order)
    return kernels.Term(filter, compatibility, scaled[id(before)], scaled[id(after)])


def lattice_of(term: kernels.Term) -> kernels.Lattice:
    (lattice,) = term.filter.lattices
    return lattice


def on(device: torch.device, term: kernels.Term) -> kernels.Term:
    """The term with its tensors on a device."""
    order = None if term.filter.order is None else term.filter.order.to(device)
    filter = LatticeFilter([moved(lattice_of(term), device)], order)
    parts = term.compatibility, term.before, term.after
    return kernels.Term(filter, *(None if t is None else t.to(device) for t in parts))


def doubled(term: kernels.Term) -> kernels.Term:
    """The term in float64."""
    lattice = lattice_of(term)
    wide = dataclasses.replace(lattice, weights=lattice.weights.double())
    filter = dataclasses.replace(term.filter, lattices=[wide])
    parts = term.compatibility, term.before, term.after
    return kernels.Term(filter, *(None if t is None else t.double() for t in parts))


def mean_field(
    impl: str,
    unary: Tensor,
    terms: list[kernels.Term],
    iterations: int,
    start: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """`kernels.mean_field` of one image `[N, C]`."""
    start = None if start is None else start[None]
    return kernels.mean_field(unary[None], terms, iterations, start=start, impl=impl, **options)[0]


def assert_agrees(
    impl: str,
    unary: Tensor,
    terms: list[kernels.Term],
    iterations: int,
    start: Tensor | None = None,
    marginals: bool = True,
) -> Tensor:
    """Error at most twice that of plain PyTorch in float32, both against float64."""
    ours = mean_field(impl, unary, terms, iterations, start, marginals=marginals)
    single = mean_field("reference", unary, terms, iterations, start, marginals=marginals)
    wide = None if start is None else start.double()
    wide_terms = [doubled(t) for t in terms]
    exact = mean_field(
        "reference", unary.double(), wide_terms, iterations, wide, marginals=marginals
    )
    size = 1.0 if marginals else exact.abs().max().clamp_min(1)
    budget = 2 * (single - exact).abs().max() + 16 * EPS * max(1, iterations) * size
    assert (ours - exact).abs().max() <= budget
    assert ours.stride() == unary.stride()
    return ours


def compatibility(kind: str, labels: int) -> Tensor:
    return {
        "attractive": torch.full((labels,), -3.0),
        "repulsive": torch.full((labels,), 0.5),
        "diagonal": -1.5 * uniform(labels, seed=2),
        "potts": 2.0 * (1 - torch.eye(labels)),
        "matrix": normal(labels, labels, seed=3).abs() * 0.5,
    }[kind]
