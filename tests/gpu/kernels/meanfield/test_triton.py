"""The Triton mean field on a GPU: parity with the CPU and pydensecrf, waits, graphs, memory."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import crf
import kernels

pytest.importorskip("triton", reason="triton is not installed")
from kernels.meanfield import triton

pytestmark = pytest.mark.gpu

GOLDEN = Path(__file__).parents[3] / "golden"
SIGMAS = [(80.0, 13.0), (49.0, 5.0), (67.0, 3.0)]
NAMES = {0: "none", 1: "before", 2: "after", 3: "symmetric"}  # of pydensecrf's enumeration


def picture(height: int, width: int) -> Tensor:
    """`[H, W, 3]`, shaded with edges and a little noise, under a flat sky."""
    y, x = torch.arange(height)[:, None] / 60, torch.arange(width) / 70
    shade = 120 + 80 * torch.sin(x) * torch.cos(y) + 40 * ((x + y) % 2 > 1)
    colours = shade[..., None] * torch.tensor([1.0, 0.8, 0.6]) + 5 * torch.randn(height, width, 3)
    colours[: height // 4] = torch.tensor([120.0, 160.0, 230.0])
    return colours.clamp(0, 255).round()


def problem(
    height: int, width: int, labels: int, sigmas: tuple[float, float], device: str
) -> tuple[Tensor, list[kernels.Term]]:
    """Noisy energies `[N, C]`, and a smoothness and an appearance term normalised by their mass."""
    torch.manual_seed(0)
    coarse = torch.randn(1, labels, -(-height // 8), -(-width // 8))
    unary = torch.nn.functional.interpolate(2 * coarse, (height, width), mode="bilinear")[0]
    unary = (unary + 0.5 * torch.randn_like(unary)).flatten(1)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([x, y], 2).reshape(-1, 2).float()
    colours = picture(height, width).reshape(-1, 3)
    terms = []
    for weight, features in (
        (3.0, place / 3.0),
        (4.0, torch.cat([place / sigmas[0], colours / sigmas[1]], 1)),
    ):
        lattice = kernels.build_lattice(features.to(device).contiguous())
        mass = kernels.apply_lattice(lattice, torch.ones(len(features), 1, device=device))[:, 0]
        root = mass.double().rsqrt().float()
        penalty = torch.full((labels,), -weight, device=device)
        terms.append(kernels.Term(lattice, penalty, root, root))
    return unary.to(device).T, terms


@pytest.mark.parametrize("sigmas", SIGMAS, ids=lambda s: f"{s[0]:g}/{s[1]:g}")
def test_marginals_are_those_of_the_cpu(sigmas: tuple[float, float]) -> None:
    expected, found = (
        kernels.mean_field(*problem(375, 500, 21, sigmas, device), 10).cpu()
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
def test_errors_stay_within_twice_those_of_eager(labels: int) -> None:
    unary, terms = problem(40, 50, labels, SIGMAS[0], "cuda")
    found = kernels.mean_field(unary, terms, 3)
    single = kernels.mean_field(unary, terms, 3, impl="reference")
    wide = [
        kernels.Term(
            kernels.Lattice(
                term.lattice.corners,
                term.lattice.weights.double(),
                term.lattice.neighbours,
                term.lattice.ghosts,
                term.lattice.parts,
            ),
            *(t.double() for t in (term.penalty, term.before, term.after)),
        )
        for term in terms
    ]
    exact = kernels.mean_field(unary.double(), wide, 3)
    budget = 2 * (single - exact).abs().max() + 48 * torch.finfo(torch.float32).eps
    assert (found - exact).abs().max() <= budget


def test_a_matrix_of_penalties_is_that_of_eager() -> None:
    unary, terms = problem(40, 50, 21, SIGMAS[0], "cuda")
    matrix = 2 * torch.rand(21, 21, device="cuda")
    terms[1] = kernels.Term(terms[1].lattice, matrix, terms[1].before, terms[1].after)
    found, expected = (
        kernels.mean_field(unary, terms, 5, impl=impl) for impl in ("triton", "reference")
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_two_runs_give_the_same_bits() -> None:
    unary, terms = problem(375, 500, 21, SIGMAS[1], "cuda")
    first = kernels.mean_field(unary, terms, 10)
    for _ in range(3):
        assert torch.equal(kernels.mean_field(unary, terms, 10), first)


def test_an_order_of_points_changes_nothing_but_rounding() -> None:
    unary, terms = problem(40, 50, 5, SIGMAS[0], "cuda")
    expected = kernels.mean_field(unary, terms, 3)
    order = torch.randperm(len(unary), device="cuda")
    moved = []
    for term in terms:
        lattice = term.lattice
        again = kernels.Lattice(
            lattice.corners[order],
            lattice.weights[order],
            lattice.neighbours,
            lattice.ghosts,
            lattice.parts,
        )
        moved.append(kernels.Term(again, term.penalty, term.before[order], term.after[order]))
    found = kernels.mean_field(unary, moved, 3, order=order)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", ["twice", "outside"])
def test_an_order_that_is_no_permutation_is_refused(wrong: str) -> None:
    unary, terms = problem(10, 12, 3, SIGMAS[0], "cuda")
    order = torch.arange(120, device="cuda")
    order[7] = 8 if wrong == "twice" else 10**12
    with pytest.raises(ValueError, match=r"order must hold each of 0 \.\.\. 119 once"):
        kernels.mean_field(unary, terms, 1, order=order)


def test_the_host_waits_once_for_the_check_of_values() -> None:
    unary, terms = problem(40, 50, 21, SIGMAS[0], "cuda")
    order = torch.arange(len(unary), device="cuda")
    kernels.mean_field(unary, terms, 2, order=order)  # compiled
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            kernels.mean_field(unary, terms, 2, order=order)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchroniz" in str(warning.message) for warning in found) == 1


def test_a_cuda_graph_holds_all_iterations() -> None:
    unary, terms = problem(60, 70, 21, SIGMAS[0], "cuda")
    unary = unary.contiguous()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        triton.mean_field(unary, terms, 3)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = triton.mean_field(unary, terms, 3)
    for _ in range(2):
        unary.normal_()
        graph.replay()
        assert torch.equal(captured, triton.mean_field(unary, terms, 3))


def test_a_cityscapes_image_takes_less_than_four_gigabytes() -> None:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    unary, terms = problem(1024, 2048, 19, SIGMAS[1], "cuda")
    kernels.mean_field(unary, terms, 2)
    assert torch.cuda.max_memory_allocated() - before < 4e9
