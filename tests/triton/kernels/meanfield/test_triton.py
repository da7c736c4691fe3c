"""The fused Triton mean field on a GPU and in the interpreter against plain PyTorch in float64."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from mean_field_problems import (
    assert_agrees,
    compatibility,
    lattice_of,
    mean_field,
    normal,
    on,
    term,
    uniform,
    walked,
)
from torch import Tensor

import kernels
from kernels.permutohedral import cpu as lattice_cpu
from kernels.permutohedral import reference as lattice_eager

pytest.importorskip("triton", reason="triton is not installed")
from kernels.permutohedral import triton as lattice_triton

Compute = Callable[..., Tensor]


@pytest.fixture
def agrees(device: torch.device) -> Compute:
    """`assert_agrees` on the device, of what is made anywhere; the result on a CPU."""
    return partial(_on_device, partial(assert_agrees, "triton"), device)


@pytest.fixture
def infer(device: torch.device) -> Compute:
    """`kernels.mean_field` on the device, of what is made anywhere; the result on a CPU."""
    return partial(_on_device, partial(mean_field, "triton"), device)


def _on_device(
    compute: Compute,
    device: torch.device,
    unary: Tensor,
    terms: list[kernels.Term],
    iterations: int,
    start: Tensor | None = None,
    **options: Any,
) -> Tensor:
    start = None if start is None else start.to(device)
    terms = [on(device, one) for one in terms]
    return compute(unary.to(device), terms, iterations, start, **options).cpu()


@pytest.mark.parametrize(
    ("kind", "scaled"),
    [
        *itertools.product(["attractive", "diagonal", "matrix"], ["both", "neither"]),
        ("repulsive", "before"),
        ("attractive", "after"),
        ("potts", "both"),
    ],
)
def test_every_compatibility_and_normalisation(agrees: Compute, kind: str, scaled: str) -> None:
    count, labels = 40, 5
    before, after = uniform(count, seed=7) + 0.2, uniform(count, seed=8) + 0.2
    of_first = {
        "both": (before, after),
        "before": (before, None),
        "after": (None, after),
        "neither": (None, None),
    }[scaled]
    terms = [
        term(walked(count, 1), compatibility(kind, labels), *of_first),
        term(walked(count, 3), compatibility("attractive", labels), before, before),
    ]
    agrees(normal(count, labels), terms, 2)


@pytest.mark.parametrize("labels", [1, 2, 21, 256])
def test_any_number_of_labels(agrees: Compute, labels: int) -> None:
    kind = "matrix" if labels == 21 else "attractive"
    one = term(walked(30, 2), compatibility(kind, labels))
    marginals = agrees(normal(30, labels), [one], 2)
    torch.testing.assert_close(marginals.sum(1), torch.ones(30))


@pytest.mark.parametrize("iterations", [0, 1, 5])
@pytest.mark.parametrize("given_start", [False, True])
def test_any_number_of_iterations_from_any_start(
    agrees: Compute, iterations: int, given_start: bool
) -> None:
    start = torch.softmax(3 * normal(40, 4, seed=9), 1) if given_start else None
    one = term(walked(40, 2), compatibility("matrix", 4))
    agrees(normal(40, 4), [one], iterations, start)


@pytest.mark.parametrize("given_start", [False, True])
def test_order_says_which_pixel_a_lattice_point_is(
    agrees: Compute, infer: Compute, device: torch.device, given_start: bool
) -> None:
    count = 50
    features, unary = normal(count, 2).cumsum(0) * 0.3, normal(6, count, seed=4).T
    start = torch.softmax(normal(count, 6, seed=5), 1) if given_start else None
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    scaled = torch.full((6,), -2.0), uniform(count, seed=7) + 0.2, uniform(count, seed=8) + 0.2
    natural = term(lattice_triton.build(features.to(device)), *scaled)
    visited = term(lattice_triton.build(features[order].to(device)), *scaled, order)
    expected = infer(unary, [natural], 3, start)
    result = agrees(unary, [visited], 3, start)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_arguments_of_any_strides_are_read_right(device: torch.device) -> None:
    count, labels = 30, 3
    order = torch.randperm(2 * count, generator=torch.Generator().manual_seed(1)).argsort()
    order = order[order < count].repeat_interleave(2).to(device)[::2]
    scale = (uniform(2 * count, seed=5) + 0.2).to(device)[::2]
    both = normal(count, 2 * labels).to(device)[:, ::2]
    built = lattice_of(on(device, term(walked(count, 2), torch.ones(labels))))
    wide = -uniform(2 * labels).to(device)[::2]
    one = term(built, wide, scale, scale[:1].expand(count), order)
    start = torch.softmax(normal(labels, count), 0).to(device).T
    dense = term(
        built, wide.contiguous(), scale.contiguous(), scale[:1].expand(count).contiguous(), order
    )
    found = mean_field("triton", both, [one], 2, start)
    expected = mean_field("reference", both, [dense], 2, start)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_transposed_unary_gives_a_transposed_result(agrees: Compute) -> None:
    one = term(walked(40, 2), torch.full((7,), -2.0))
    assert agrees(normal(7, 40).T, [one], 2).T.is_contiguous()


def test_lattices_of_any_build_and_dimension_work_together(
    agrees: Compute, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(lattice_cpu, "MIN_PART", 8)
    builds = (
        lattice_cpu.build,
        lambda features: lattice_triton.build(features.to(device)),
        lattice_eager.build,
    )
    terms = [
        term(walked(50, dims, build), torch.full((3,), -1.0))
        for dims, build in zip((3, 1, 4), builds, strict=True)
    ]
    torch.set_num_threads(threads)
    assert len(lattice_of(terms[0]).ghosts)
    agrees(normal(50, 3), terms, 2)


def test_all_points_on_one_simplex(agrees: Compute, device: torch.device) -> None:
    terms = [
        term(lattice_triton.build(features.to(device)), torch.full((4,), -0.01))
        for features in (torch.zeros(150, 2), 1e-4 * normal(150, 1))
    ]
    assert all((lattice_of(one).sums[2] >= 0).any() for one in terms)
    agrees(normal(150, 4), terms, 2)


def test_points_that_carry_no_values_take_part_in_the_blur_alone(
    infer: Compute, device: torch.device
) -> None:
    features = torch.cat([normal(30, 2), torch.zeros(2, 2)])

    def without_last(built: kernels.Lattice) -> kernels.Term:
        first = {name: getattr(built, name)[:30] for name in ("corners", "weights")}
        parts = built.parts - torch.tensor([[0, 0, 0], [2, 0, 0]], device=built.parts.device)
        return term(dataclasses.replace(built, parts=parts, **first), torch.full((3,), -2.0))

    unary = normal(30, 3)
    found = infer(unary, [without_last(lattice_triton.build(features.to(device)))], 3)
    expected = mean_field("reference", unary, [without_last(lattice_eager.build(features))], 3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_several_images_in_one_call_do_not_mix(infer: Compute, device: torch.device) -> None:
    features, unary = normal(40, 2).to(device), normal(40, 3, seed=2)
    weight = torch.full((3,), -2.0)
    terms = [term(lattice_triton.build(features, 2), weight)]
    halves = [
        infer(u, [term(lattice_triton.build(f.contiguous()), weight)], 2)
        for u, f in zip(unary.split(20), features.split(20), strict=True)
    ]
    assert torch.equal(infer(unary, terms, 2), torch.cat(halves))


@pytest.mark.parametrize("kind", ["attractive", "potts", "matrix"])
def test_logits_are_those_of_plain_pytorch(agrees: Compute, kind: str) -> None:
    terms = [term(walked(30, 2), compatibility(kind, 5)), term(walked(30, 1), torch.ones(5))]
    for iterations in (0, 1, 2):
        agrees(normal(30, 5), terms, iterations, marginals=False)


def test_no_terms_and_no_points(infer: Compute, device: torch.device) -> None:
    unary = normal(20, 9)
    torch.testing.assert_close(infer(unary, [], 5), torch.softmax(-unary, 1))
    none = torch.empty(0, 2, device=device)
    empty = term(lattice_triton.build(none), torch.full((3,), -1.0))
    assert infer(torch.empty(0, 3), [empty], 2).shape == (0, 3)


def test_a_forbidden_label_stays_forbidden(infer: Compute) -> None:
    unary = normal(30, 4)
    unary[:, 2] = math.inf
    for kind in ("attractive", "matrix"):
        result = infer(unary, [term(walked(30, 2), compatibility(kind, 4))], 3)
        assert (result[:, 2] == 0).all()
        torch.testing.assert_close(result.sum(1), torch.ones(30))
