"""The Triton mean field on a GPU: parity with the CPU and pydensecrf, waits, graphs, memory."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gpu_measures import SIGMAS, any_sigma, colours, waits_of
from mean_field_problems import assert_agrees, mean_field, term
from torch import Tensor

import crf
import kernels

pytest.importorskip("triton", reason="triton is not installed")
pytestmark = pytest.mark.gpu

GOLDEN = Path(__file__).parents[3] / "golden"
NAMES = {0: "none", 1: "before", 2: "after", 3: "symmetric"}  # of pydensecrf's enumeration


def problem(
    height: int,
    width: int,
    labels: int,
    sigmas: tuple[float, float],
    device: str,
    order: Tensor | None = None,
) -> tuple[Tensor, list[kernels.Term]]:
    """Noisy energies `[N, C]`, and a smoothness and an appearance term normalised by their mass."""
    torch.manual_seed(0)
    coarse = torch.randn(1, labels, -(-height // 8), -(-width // 8))
    unary = torch.nn.functional.interpolate(2 * coarse, (height, width), mode="bilinear")[0]
    unary = (unary + 0.5 * torch.randn_like(unary)).flatten(1)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([x, y], 2).reshape(-1, 2).float()
    shades = colours(height, width).reshape(-1, 3)
    terms = []
    for weight, features in (
        (3.0, place / 3.0),
        (4.0, torch.cat([place / sigmas[0], shades / sigmas[1]], 1)),
    ):
        features = features.to(device) if order is None else features.to(device)[order]
        lattice = kernels.build_lattice(features.contiguous())
        mass = kernels.apply_lattice(lattice, torch.ones(len(features), 1, device=device))[:, 0]
        root = mass.double().rsqrt().float()
        compatibility = torch.full((labels,), -weight, device=device)
        terms.append(term(lattice, compatibility, root, root, order))
    return unary.to(device).T, terms


@any_sigma
def test_marginals_are_those_of_the_cpu(sigmas: tuple[float, float]) -> None:
    expected, found = (
        mean_field("auto", *problem(375, 500, 21, sigmas, device), 10).cpu()
        for device in ("cpu", "cuda")
    )
    assert ((found - expected).abs() <= 1e-3).double().mean() >= 0.999
    assert (found.argmax(1) == expected.argmax(1)).double().mean() >= 0.999


@pytest.mark.parametrize("name", ["potts", "unnormalised"])
def test_marginals_are_those_that_pydensecrf_gave(name: str) -> None:
    record = np.load(GOLDEN / f"pydensecrf_{name}.npz")
    (_, (width, height, labels)), _, (_, smooth), (_, near) = json.loads(str(record["calls"]))
    layer = crf.DenseCRF(
        labels,
        gaussian=crf.Gaussian(smooth["compat"], smooth["sxy"]),
        bilateral=crf.Bilateral(near["compat"], near["sxy"], near["srgb"]),
        normalization=NAMES[near.get("normalization", 3)],
    )
    logits = -torch.from_numpy(record["u"]).view(1, labels, height, width)
    image = torch.from_numpy(record["image"]).permute(2, 0, 1)[None]
    found = layer(logits.cuda(), image.cuda()).cpu().reshape(labels, -1)
    expected = torch.from_numpy(record["marginals"])
    assert ((found - expected).abs() <= 2e-3).double().mean() >= 0.999
    assert (found.argmax(0) == expected.argmax(0)).double().mean() >= 0.999


@pytest.mark.parametrize("labels", [1, 21, 150, 256])
def test_errors_stay_within_twice_those_of_plain_pytorch(labels: int) -> None:
    assert_agrees("triton", *problem(40, 50, labels, SIGMAS[0], "cuda"), 3)


def test_a_matrix_of_compatibilities_is_that_of_plain_pytorch() -> None:
    unary, terms = problem(40, 50, 21, SIGMAS[0], "cuda")
    matrix = 2 * torch.rand(21, 21, device="cuda")
    terms[1] = dataclasses.replace(terms[1], compatibility=matrix)
    found, expected = (mean_field(impl, unary, terms, 5) for impl in ("triton", "reference"))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_two_runs_give_the_same_bits() -> None:
    unary, terms = problem(375, 500, 21, SIGMAS[1], "cuda")
    first = mean_field("auto", unary, terms, 10)
    for _ in range(3):
        assert torch.equal(mean_field("auto", unary, terms, 10), first)


@pytest.mark.parametrize("wrong", ["twice", "outside"])
def test_an_order_that_is_no_permutation_is_refused(wrong: str) -> None:
    order = torch.arange(120, device="cuda")
    unary, terms = problem(10, 12, 3, SIGMAS[0], "cuda", order)
    order[7] = 8 if wrong == "twice" else 10**12
    with pytest.raises(ValueError, match=r"must hold each of 0 \.\.\. 119 once"):
        mean_field("triton", unary, terms, 1)


def test_the_host_waits_once_for_the_check_of_values() -> None:
    unary, terms = problem(40, 50, 21, SIGMAS[0], "cuda", torch.arange(2000, device="cuda"))
    mean_field("triton", unary, terms, 2)  # compiled
    assert waits_of(lambda: mean_field("triton", unary, terms, 2)) == 1


@pytest.mark.parametrize("matrix", [False, True])
def test_a_cuda_graph_holds_all_iterations(matrix: bool) -> None:
    unary, terms = problem(60, 70, 21, SIGMAS[0], "cuda", torch.randperm(4200, device="cuda"))
    if matrix:
        terms[1] = dataclasses.replace(terms[1], compatibility=torch.rand(21, 21, device="cuda"))
    unary = unary.contiguous()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        mean_field("triton", unary, terms, 3)  # compiled, and the arguments checked
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = mean_field("triton", unary, terms, 3)
    for _ in range(2):
        unary.normal_()
        graph.replay()
        assert torch.equal(captured, mean_field("triton", unary, terms, 3))


def test_a_cityscapes_image_takes_less_than_four_gigabytes() -> None:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    unary, terms = problem(1024, 2048, 19, SIGMAS[1], "cuda")
    mean_field("auto", unary, terms, 2)
    assert torch.cuda.max_memory_allocated() - before < 4e9
