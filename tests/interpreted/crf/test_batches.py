"""A batch of images in one mean field, as on a GPU: the images' own results, builds and waits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import crf
from kernels.meanfield import build
from kernels.meanfield import triton as updates
from kernels.permutohedral import triton as lattices

READS = {"tolist", "item", "__bool__", "__int__", "__float__", "__index__", "nonzero"}


class Reads(TorchFunctionMode):
    """Counts what makes the host wait for a GPU: values that Python or a shape depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in READS:
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def problem(batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(width)
    logits = torch.randn(batch, 3, height, width, generator=generator)
    images = 255 * torch.rand(batch, 3, height, width, generator=generator)
    return logits, images.to(torch.uint8)


def layer(**options: Any) -> crf.DenseCRF:
    given = {"bilateral": crf.Bilateral(4.0, 9.0, 60.0), "iterations": 2}
    return crf.DenseCRF(3, **given | options)


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[None]:
    calls: list[None] = []
    plain = getattr(module, name)

    def call(*args: Any) -> Any:
        calls.append(None)
        return plain(*args)

    monkeypatch.setattr(module, name, call)
    return calls


@pytest.mark.parametrize(("height", "width"), [(4, 5), (3, 5), (1, 1)])  # N % 4: 0, 3, 1
@pytest.mark.parametrize("call", ["forward", "refine_logits"])
def test_a_batch_is_its_images_one_by_one_bit_for_bit(call: str, height: int, width: int) -> None:
    logits, images = problem(3, height, width)
    compute = getattr(layer(), call)
    found = compute(logits, images)
    for b in range(3):
        assert torch.equal(found[b : b + 1], compute(logits[b : b + 1], images[b : b + 1]))


def test_groups_of_a_batch_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, images = problem(3, 3, 5)
    expected = layer()(logits, images)
    monkeypatch.setattr(build, "images_together", lambda features, batch, labels: 2)
    assert torch.equal(layer()(logits, images), expected)


def test_a_batch_is_that_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, images = problem(3, 3, 5)
    found = layer(compatibility=1 - torch.eye(3))(logits, images)
    exact = layer(compatibility=1 - torch.eye(3))
    monkeypatch.undo()  # float64 runs the eager lattice, one an image
    torch.testing.assert_close(found, exact(logits.double(), images).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_builds_waits_and_updates_do_not_grow_with_the_batch(
    monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    builds = counted(monkeypatch, lattices, "build")
    fields = counted(monkeypatch, updates, "mean_field")
    logits, images = problem(batch, 4, 5)
    with Reads() as reads:
        layer()(logits, images.float())
    assert (len(builds), len(fields)) == (2, 1)
    # The values of logits and images, and the size of each lattice. On a GPU mean field reads once
    # more, whether its energies are finite: on a CPU it asks NumPy.
    assert reads.names == ["tolist"] * 3


def test_gradients_of_a_batch_are_those_of_its_images() -> None:
    logits, images = problem(2, 3, 3)
    model = layer(learnable=True, learn_sigmas=False, normalization="after")

    def gradients(*slices: slice) -> list[Tensor]:
        leaf = logits.clone().requires_grad_()
        found = torch.cat([model(leaf[one], images[one]) for one in slices])
        wanted = [leaf, model.learned.weights, model.learned.compatibility]
        return list(torch.autograd.grad(found.square().sum(), wanted))

    both, apart = gradients(slice(0, 2)), gradients(slice(0, 1), slice(1, 2))
    for found, expected in zip(both, apart, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
