"""A batch of images in one mean field, as on a GPU: the results of the CPU, builds and waits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dense_crf_problems import batch_layer, batch_problem
from torch.overrides import TorchFunctionMode

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


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[None]:
    calls: list[None] = []
    plain = getattr(module, name)

    def call(*args: Any) -> Any:
        calls.append(None)
        return plain(*args)

    monkeypatch.setattr(module, name, call)
    return calls


def test_a_batch_is_that_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, images = batch_problem(3, 3, 5)
    found = batch_layer(compatibility=1 - torch.eye(3))(logits, images)
    exact = batch_layer(compatibility=1 - torch.eye(3))
    monkeypatch.undo()  # float64 runs the eager lattice, one an image
    torch.testing.assert_close(found, exact(logits.double(), images).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_builds_waits_and_updates_do_not_grow_with_the_batch(
    monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    builds = counted(monkeypatch, lattices, "build_all")
    fields = counted(monkeypatch, updates, "mean_field")
    logits, images = batch_problem(batch, 4, 5)
    with Reads() as reads:
        batch_layer()(logits, images.float())
    assert (len(builds), len(fields)) == (1, 1)
    # The values of logits and images, and the sizes of both lattices.
    assert reads.names == ["tolist"] * 2
