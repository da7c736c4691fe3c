"""A batch of images in one mean field, on a GPU and as there: the bits of each image's own."""

from __future__ import annotations

import pytest
import torch
from dense_crf_problems import batch_layer, batch_problem
from torch import Tensor

from kernels.meanfield import build

pytest.importorskip("triton", reason="triton is not installed")


@pytest.mark.parametrize(("height", "width"), [(4, 5), (3, 5), (1, 1)])  # N % 4: 0, 3, 1
@pytest.mark.parametrize("call", ["forward", "refine_logits"])
def test_a_batch_is_its_images_one_by_one_bit_for_bit(
    device: torch.device, call: str, height: int, width: int
) -> None:
    logits, images = (t.to(device) for t in batch_problem(3, height, width))
    compute = getattr(batch_layer(), call)
    found = compute(logits, images)
    for b in range(3):
        assert torch.equal(found[b : b + 1], compute(logits[b : b + 1], images[b : b + 1]))


def test_groups_of_a_batch_give_the_same_bits(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, images = (t.to(device) for t in batch_problem(3, 3, 5))
    expected = batch_layer()(logits, images)
    monkeypatch.setattr(build, "images_together", lambda features, batch, labels: 2)
    assert torch.equal(batch_layer()(logits, images), expected)


def test_gradients_of_a_batch_are_those_of_its_images(device: torch.device) -> None:
    logits, images = (t.to(device) for t in batch_problem(2, 3, 3))
    model = batch_layer(learnable=True, learn_sigmas=False, normalization="after").to(device)

    def gradients(*slices: slice) -> list[Tensor]:
        leaf = logits.clone().requires_grad_()
        found = torch.cat([model(leaf[one], images[one]) for one in slices])
        wanted = [leaf, model.learned.weights, model.learned.compatibility]
        return list(torch.autograd.grad(found.square().sum(), wanted))

    both, apart = gradients(slice(0, 2)), gradients(slice(0, 1), slice(1, 2))
    for found, expected in zip(both, apart, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
