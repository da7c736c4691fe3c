"""The kernels without a product spill nothing: gather, spread, pack and collect."""

from __future__ import annotations

import pytest
import torch

from kernels.atrous.triton import configs

KERNELS = ("gather_kernel", "spread_kernel", "pack_kernel", "collect_kernel")
CALLS = {
    "sum": {"dtype": torch.bfloat16, "fuse": "sum", "outputs": 21},
    "concat": {"dtype": torch.float16, "fuse": "concat", "outputs": 150},
    "float32": {"dtype": torch.float32, "fuse": "sum", "outputs": 21, "batch": 1, "size": 65},
}


@pytest.fixture(autouse=True)
def _any_configuration(monkeypatch):
    """These kernels have none, but products are launched beside them."""
    monkeypatch.setattr(configs, "select", lambda *problem: configs.ConvConfig(64, 64, 32, 4, 3))


@pytest.fixture
def shift(call):
    """Forward, or the gradient to the weights, of one of `CALLS` by multiply-then-shift."""
    return lambda name, gradient: call(**CALLS[name], algorithm="triton:shift", gradient=gradient)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("gradient", [None, "weight"], ids=["forward", "backward"])
def test_kernels_without_a_product_do_not_spill(binaries, shift, target, name, gradient):
    found = binaries(target, lambda: shift(name, gradient), KERNELS)
    assert found
    for binary in found:
        assert not binary.spills, binary
        assert not binary.multiplies


def test_the_calls_launch_each_of_the_kernels(launches, shift):
    def every():
        for name in CALLS:
            shift(name, None)
            shift(name, "weight")

    found = launches(every)
    assert {launch.name for launch in found} >= set(KERNELS)


@pytest.mark.parametrize("batch", [1, 16])
def test_a_head_takes_three_launches(launches, call, batch):
    head = {"fuse": "sum", "inputs": 2048, "outputs": 21, "size": 65, "batch": batch}
    found = launches(lambda: call(torch.bfloat16, "triton:shift", **head))
    names = [launch.name for launch in found]
    assert names == ["pack_kernel", "conv_kernel", "gather_kernel"]
