"""DenseCRF on a GPU: parity with the CPU, the stated errors, gradients, compilers, memory."""

import copy
from typing import Any

import pytest
import torch
from gpu_measures import SIGMAS, any_sigma, waits_of
from torch import Tensor

import crf
from deeplab.model import deeplab_v2_small
from kernels.meanfield import build

pytestmark = pytest.mark.gpu

METHODS = ["permutohedral", "exact", "separable", "auto"]

any_method = pytest.mark.parametrize("method", METHODS)


def problem(
    batch: int = 1, labels: int = 21, height: int = 375, width: int = 500
) -> tuple[Tensor, Tensor]:
    """Noisy scores in blobs, and shaded images with edges and a little noise."""
    coarse = torch.randn(batch, labels, -(-height // 8), -(-width // 8))
    scores = torch.nn.functional.interpolate(2 * coarse, (height, width), mode="bilinear")
    scores += 0.5 * torch.randn_like(scores)
    y, x = torch.arange(height)[:, None] / 60, torch.arange(width) / 70
    phase = torch.arange(batch * 3).reshape(batch, 3, 1, 1)
    shade = 120 + 80 * torch.sin(x + phase) * torch.cos(y - phase) + 40 * ((x + y) % 2 > 1)
    return scores, (shade + 5 * torch.randn(shade.shape)).clamp(0, 255).to(torch.uint8)


def layer(labels: int, method: Any, sigmas: tuple[float, float], **options: Any) -> crf.DenseCRF:
    bilateral = crf.Bilateral(4.0, *sigmas)
    return crf.DenseCRF(labels, bilateral=bilateral, method=method, **options)


@any_sigma
def test_the_lattice_gives_the_marginals_of_the_cpu(sigmas: tuple[float, float]) -> None:
    model = layer(21, "permutohedral", sigmas)
    logits, images = problem()
    expected = model(logits, images)
    found = model(logits.cuda(), images.cuda()).cpu()
    assert ((found - expected).abs() <= 1e-3).double().mean() >= 0.999
    assert (found.argmax(1) == expected.argmax(1)).double().mean() >= 0.999


def test_exact_in_bf16_that_leaves_out_a_thousandth_has_the_labels_of_exact_in_full() -> None:
    logits, images = (t.cuda() for t in problem())
    expected = layer(21, "exact", SIGMAS[0])(logits, images)
    found = layer(21, "exact", SIGMAS[0], precision="bf16", eps=1e-3)(logits, images)
    assert (found.argmax(1) == expected.argmax(1)).double().mean() >= 0.999


@pytest.mark.parametrize(
    ("precision", "rounding"), [("ieee", 1e-6), ("tf32", 2**-11), ("bf16", 2**-9)]
)
def test_exact_is_mean_field_in_float64_within_the_rounding_of_its_products(
    precision: Any, rounding: float
) -> None:
    """Both factors of a product are rounded; sums of weight 4 and 3 move a marginal by as much."""
    logits, images = (t.cuda() for t in problem(1, 5, 60, 72))
    for iterations in (1, 2, 3):
        exact = layer(5, "exact", (12.0, 40.0), iterations=iterations)
        found = layer(
            5, "exact", (12.0, 40.0), iterations=iterations, precision=precision, eps=1e-7
        )
        difference = found(logits, images).double() - exact(logits.double(), images)
        assert difference.abs().max() <= max(1e-5, iterations * 7 * 2 * rounding)


@pytest.mark.parametrize("sigmas", [SIGMAS[0], (40.0, 10.0)])
def test_separable_is_no_further_from_exact_than_the_lattice(sigmas: tuple[float, float]) -> None:
    logits, images = (t.cuda() for t in problem())
    exact, separable, lattice = (
        layer(21, method, sigmas)(logits, images)
        for method in ("exact", "separable", "permutohedral")
    )
    assert (separable - exact).abs().mean() <= (lattice - exact).abs().mean()


@any_method
def test_two_runs_give_the_same_bits(method: Any) -> None:
    logits, images = (t.cuda() for t in problem(2, 5, 90, 100))
    model = layer(5, method, SIGMAS[0])
    assert torch.equal(model(logits, images), model(logits, images))


@any_method
def test_a_batch_is_its_images_one_by_one(method: Any) -> None:
    logits, images = (t.cuda() for t in problem(3, 5, 60, 70))
    model = layer(5, method, SIGMAS[0])
    found = model(logits, images)
    for b in range(3):
        torch.testing.assert_close(found[b], model(logits[b][None], images[b][None])[0])


@any_sigma
@pytest.mark.parametrize("size", [(375, 500), (90, 101)])  # N % 4 is 0, and 2
def test_eight_images_in_one_mean_field_have_the_bits_of_each_and_wait_as_one(
    sigmas: tuple[float, float], size: tuple[int, int]
) -> None:
    logits, images = (t.cuda() for t in problem(8, 21, *size))
    model = layer(21, "permutohedral", sigmas)
    found = model(logits, images)
    for b in range(8):
        assert torch.equal(found[b : b + 1], model(logits[b : b + 1], images[b : b + 1]))
    # The check of the logits, and the lattices of both terms.
    together, alone = (waits_of(lambda n=n: model(logits[:n], images[:n])) for n in (8, 1))
    assert together == alone == 2


def test_a_matrix_of_compatibilities_costs_no_wait() -> None:
    logits, images = (t.cuda() for t in problem(1, 5, 60, 70))
    model = layer(5, "permutohedral", SIGMAS[0], compatibility=1 - torch.eye(5)).cuda()
    model(logits, images)  # compiled
    assert waits_of(lambda: model(logits, images)) == 2
    with pytest.raises(ValueError, match=r"layer\.to\('cuda:0'\)"):
        model.cpu()(logits, images)


def test_a_batch_in_groups_has_the_same_bits_and_less_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits, images = (t.cuda() for t in problem(8, 21, 180, 200))
    model = layer(21, "permutohedral", SIGMAS[1])
    peaks, found = [], []
    for most in (build.MOST_POINTS, 3 * 180 * 200):
        monkeypatch.setattr(build, "MOST_POINTS", most)
        torch.cuda.reset_peak_memory_stats()
        found.append(model(logits, images))
        peaks.append(torch.cuda.max_memory_allocated())
    assert torch.equal(*found)
    assert peaks[1] < peaks[0]


def test_exact_with_a_gradient_to_images_waits_no_more_for_more_iterations() -> None:
    logits, images = (t.cuda() for t in problem(2, 5, 40, 40))
    images = images.float().requires_grad_()
    waits = []
    for iterations in (1, 8):
        model = layer(5, "exact", SIGMAS[0], iterations=iterations)
        model(logits, images)  # compiled
        waits.append(waits_of(lambda model=model: model(logits, images)))
    assert waits[0] == waits[1]


@any_method
def test_gradients_are_those_of_the_cpu(method: Any) -> None:
    logits, images = problem(2, 4, 20, 24)
    model = layer(
        4, method, (12.0, 40.0), iterations=3, learnable=True, learn_sigmas=method == "exact"
    )
    on_gpu = copy.deepcopy(model).cuda()
    grads = []
    for one, device in ((model, "cpu"), (on_gpu, "cuda")):
        given = logits.to(device).requires_grad_()
        one(given, images.to(device)).square().sum().backward()
        learned = [p.grad for p in one.parameters() if p.requires_grad]
        grads.append([given.grad.cpu(), *(grad.cpu() for grad in learned)])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4 * float(a.abs().max()))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@any_method
def test_a_network_that_ends_in_a_crf_compiles_whole(method: Any, mode: str) -> None:
    model = deeplab_v2_small(4, crf=layer(4, method, SIGMAS[0], iterations=2)).cuda().eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, mode=mode)
    with torch.no_grad():
        for _ in range(4):  # warm-up, capture, replays
            _, images = problem(1, 4, 65, 65)
            images = images.cuda().float()
            x = model.preprocess(images)
            expected = model(x, image=images)
            torch.testing.assert_close(compiled(x, image=images), expected, rtol=1e-3, atol=1e-3)


def test_a_cityscapes_image_takes_less_than_four_gigabytes() -> None:
    logits, images = (t.cuda() for t in problem(1, 19, 1024, 2048))
    model = layer(19, "permutohedral", SIGMAS[1])
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.no_grad():
        model(logits, images)
    assert torch.cuda.max_memory_allocated() - before < 4e9


def test_a_crf_trains_on_the_gpu() -> None:
    logits, images = (t.cuda() for t in problem(2, 4, 33, 33))
    truth = logits.argmax(1)
    model = layer(
        4, "permutohedral", SIGMAS[0], iterations=2, learnable=True, learn_sigmas=False
    ).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    losses = []
    for _ in range(10):
        loss = torch.nn.functional.cross_entropy(model.refine_logits(logits, images), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
