"""Images of a batch that share lattices, as on a GPU, here on the CPU's implementations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import crf
from kernels import memory
from kernels.meanfield import build, filters, ops, small

together = pytest.mark.parametrize("together", [2, 3, 8])
any_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def problem(
    batch: int, height: int, width: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(height + 10 * width)
    logits = torch.randn(batch, 3, height, width, generator=generator, dtype=dtype)
    images = 255 * torch.rand(batch, 3, height, width, generator=generator)
    depth = torch.rand(batch, height * width, 2, generator=generator)
    return logits, images, {"depth": depth.to(dtype)}


def layer(**options: Any) -> crf.DenseCRF:
    given = {"bilateral": crf.Bilateral(4.0, 9.0, 60.0), "iterations": 3}
    given |= {"pairwise": [crf.Pairwise("depth", 0.5)]}
    return crf.DenseCRF(3, **given | options)


def one_by_one(call: Callable[..., Tensor], *batch: Any) -> Tensor:
    logits, images, features = batch
    return torch.cat([
        call(logits[b : b + 1], images[b : b + 1], {k: f[b : b + 1] for k, f in features.items()})
        for b in range(len(logits))
    ])  # fmt: skip


@pytest.fixture
def shared_lattices(monkeypatch, together):
    monkeypatch.setattr(build, "images_together", lambda features, batch, labels: together)


@together
@any_dtype
@pytest.mark.parametrize("call", ["forward", "refine_logits"])
@settings(deadline=None, max_examples=8)
@given(batch=st.integers(1, 5), height=st.integers(1, 6), width=st.integers(1, 7))
def test_a_batch_on_shared_lattices_is_its_images_one_by_one(
    together, dtype, call, batch, height, width
):
    with pytest.MonkeyPatch.context() as patch:
        given = problem(batch, height, width, dtype)
        compute = getattr(layer(), call)
        expected = one_by_one(compute, *given)
        patch.setattr(build, "images_together", lambda features, batch, labels: together)
        assert torch.equal(compute(*given), expected)


@together
@pytest.mark.usefixtures("shared_lattices")
@pytest.mark.parametrize("options", [
    {"normalization": "after"}, {"normalization": "none"}, {"gaussian": None},
    {"compatibility": torch.tensor([[0.0, 1, 2], [1, 0, 3], [2, 3, 0]])},
])  # fmt: skip
def test_every_kind_of_term_takes_part(together, options):
    given = problem(3, 3, 5)
    model = layer(**options)
    expected = one_by_one(model, *given)
    torch.testing.assert_close(model(*given), expected, rtol=1e-5, atol=1e-6)
    shared = {"depth": given[2]["depth"][:1]}  # of all images
    expanded = {"depth": given[2]["depth"][:1].expand(3, -1, -1)}
    assert torch.equal(model(*given[:2], shared), model(*given[:2], expanded))


@together
@pytest.mark.usefixtures("shared_lattices")
@any_dtype
def test_gradients_and_divergence_of_a_batch_are_those_of_its_images(together, dtype):
    logits, *rest = problem(4, 3, 3, dtype)
    model = layer(learnable=True, learn_sigmas=False)
    weight = torch.randn_like(logits)

    def gradients(call: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaf = logits.clone().requires_grad_()
        wanted = [leaf, model.learned.weights, model.learned.compatibility]
        return list(torch.autograd.grad((call(leaf) * weight).sum(), wanted))

    expected = gradients(lambda leaf: one_by_one(model, leaf, *rest))
    for found, wanted in zip(gradients(lambda leaf: model(leaf, *rest)), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    how = model._settings(logits, model._energies(logits, *rest)[1], marginals=True)
    numbers = vars(how).values()

    def operator(leaf: Tensor) -> Tensor:
        unary, points, compatibilities = model._energies(leaf, *rest)
        found = ops.mean_field_operator(unary, points, compatibilities, *numbers)
        return found.view(leaf.shape)

    for found, wanted in zip(gradients(operator), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        _, divergence = model(logits, *rest, return_kl=True)
        _, single = model(logits[2:3], rest[0][2:3], {"depth": rest[1]["depth"][2:3]}, True)
    torch.testing.assert_close(divergence[:, 2:3], single)


@pytest.mark.parametrize("gradient", [False, True])
def test_each_term_is_built_once_for_a_batch(monkeypatch, gradient):
    built: list[tuple[int, ...]] = []

    def counted(features: list[Tensor]) -> Any:
        built.extend(tuple(one.shape) for one in features)
        return plain(features)

    plain = filters.build_lattices
    monkeypatch.setattr(filters, "build_lattices", counted)
    monkeypatch.setattr(build, "images_together", lambda features, batch, labels: batch)
    logits, *rest = problem(5, 4, 6)
    layer()(logits.requires_grad_(gradient), *rest)
    assert built == [(1, 24, 2), (5, 24, 5), (5, 24, 2)]


def test_a_cpu_has_a_lattice_for_each_image_and_one_where_all_have_the_same_points(monkeypatch):
    built: list[tuple[int, ...]] = []

    def counted(features: Tensor, *others: Any) -> Any:
        built.append(tuple(features.shape))
        return plain(features, *others)

    plain = build.Term.on_cpu
    monkeypatch.setattr(build.Term, "on_cpu", counted)
    layer(pairwise=())(*problem(3, 4, 6)[:2])
    assert built == [(24, 2), *3 * [(24, 5)]]


# How many images share a lattice


def on_a_gpu(batch: int, count: int, dims: tuple[int, ...] = (2, 5)) -> list[Tensor]:
    """Features of another device than a CPU, without memory."""
    return [torch.empty(batch, count, d, device="meta") for d in dims]


def test_as_many_images_share_a_lattice_as_keep_a_gpu_busy():
    assert build.images_together(on_a_gpu(8, 375 * 500), 8, labels=21) == 8
    assert build.images_together(on_a_gpu(100, 375 * 500), 100, labels=21) == 22
    assert build.images_together(on_a_gpu(3, 5_000_000), 3, labels=21) == 1
    assert build.images_together(on_a_gpu(0, 100), 0, labels=21) == 1
    assert build.images_together([], 4, labels=21) == 1
    assert build.images_together([torch.empty(4, 9, 2)], 4, labels=21) == 1  # a CPU


def test_entries_of_images_that_share_a_lattice_fit_into_32_bits():
    many = on_a_gpu(8, 2**19, (1000,))
    for batch in (8, 4):
        size = build.images_together(many, batch, labels=2)
        assert 1 <= size * 2**19 * 1001 < 2**31
    assert size == 4


def test_images_share_a_lattice_as_far_as_memory_goes(monkeypatch):
    points = on_a_gpu(20, 100_000)
    free = 8 * 2**30
    monkeypatch.setattr(memory, "available", lambda device: free)
    sizes = [build.images_together(points, 20, labels) for labels in (21, 150, 1000, 100_000)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[2] >= 1
    assert sizes[3] == 1
    monkeypatch.setattr(memory, "ASK_FROM", 10**18)  # a small batch does not ask
    assert build.images_together(points, 20, 1000) == 20


def test_small_images_of_a_batch_stand_side_by_side_bit_for_bit(set_threads):
    set_threads(3)
    logits, images, features = problem(5, 9, 11)
    model = layer()
    with torch.no_grad():  # which the threads must know of, too
        found = model(logits.requires_grad_(), images, features)
    set_threads(1)
    assert torch.equal(found, one_by_one(model, logits.detach(), images, features))


def test_images_that_threads_have_to_themselves_take_the_small_way(set_threads, monkeypatch):
    """Their shared term too is in one part, or each would be filtered as a large one."""
    set_threads(2)
    done, of_small = [], small.mean_field
    monkeypatch.setattr(small, "mean_field", lambda *a: done.append(of_small(*a)) or done[-1])
    logits, images, features = problem(2, 60, 80)  # 4800 points: by themselves in two parts
    model = layer()
    with torch.no_grad():
        found = model(logits, images, features)
    assert done == [True] * 2
    set_threads(1)
    assert torch.equal(found, one_by_one(model, logits, images, features))
