"""The exact filter's kernels compile to what each target has: registers, memory, instructions.

At the size of a VOC image, whose points are no multiple of a tile, with positions and colours
(D = 5), and with so many features that the loop over them stays one (9).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from binaries import inner_loop, listing, nvidia_code
from targets import SHARED_MEMORY, assert_fits, meta

from kernels.exact import tiles, triton

MULTIPLIED = {
    "sm_80": {"bf16": {"bf16"}, "tf32": {"tf32"}, "ieee": set()},
    "sm_90": {"bf16": {"bf16"}, "tf32": {"tf32"}, "ieee": set()},
    "gfx942": {"bf16": {"bf16"}, "tf32": {"xf32"}, "ieee": {"f32"}},  # AMD's also take float32
}
POINTS = 375 * 500
MODES = {  # channels, dimensions, whether pairs are skipped
    "pruned": (21, 5, True),
    "every pair": (2, 5, False),
    "many channels": (150, 5, True),
    "many dimensions": (21, 9, True),
}


def call(kernel: str, mode: str, precision: str) -> Callable[[], object]:
    """Launch a kernel on tensors without memory."""
    channels, dims, pruned = MODES[mode]
    total = tiles.tiles_of(POINTS)
    points, values = meta(dims, total * tiles.TILE), meta(POINTS, channels)
    order = meta(POINTS, dtype=torch.int64) if pruned else None
    kept = meta(total * (total + 1), dtype=torch.int32) if pruned else None
    tail = tiles.Pairs(points, order, kept), precision
    if kernel == "filter_kernel":
        return lambda: triton.apply(values, *tail, meta(POINTS, channels))
    if kernel == "gradient_kernel":
        return lambda: triton.feature_gradient(values, values, *tail, torch.empty_like(points))
    return lambda: triton.masses(points, meta(total, total), POINTS, 1e-9)


def opcodes(binary: Any) -> Counter[str]:
    """How often each opcode, without its modifiers, stands in the innermost loop on Hopper."""
    code = nvidia_code(listing(binary.compiled, "sm_90", "-sass"))
    first, last = inner_loop(code)
    return Counter(re.split(r"[\s.]", line)[0] for line in code.lines[first : last + 1])


@pytest.mark.parametrize("target", SHARED_MEMORY)
@pytest.mark.parametrize("kernel", ["filter_kernel", "gradient_kernel"])
@pytest.mark.parametrize("precision", ["bf16", "tf32", "ieee"])
@pytest.mark.parametrize("mode", MODES)
def test_a_product_compiles_to_what_its_target_has(binaries, target, kernel, precision, mode):
    (binary,) = binaries(target, call(kernel, mode, precision), {kernel})
    assert_fits(binary, target)
    assert binary.multiplies == MULTIPLIED[target][precision]


@pytest.mark.parametrize("target", SHARED_MEMORY)
@pytest.mark.parametrize("mode", ["pruned", "many dimensions"])
def test_the_masses_compile_to_what_their_target_has(binaries, target, mode):
    (binary,) = binaries(target, call("mass_kernel", mode, "ieee"), {"mass_kernel"})
    assert_fits(binary, target)


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_a_pair_of_the_filter_takes_few_instructions_on_hopper(binaries, precision):
    (binary,) = binaries("sm_90", call("filter_kernel", "pruned", precision), {"filter_kernel"})
    inner = opcodes(binary)
    assert inner["MUFU"] == 64  # an exponential is a pair
    assert inner.total() <= 860
    assert inner["SHFL"] == 0


def test_a_pair_of_the_masses_takes_few_instructions_on_hopper_and_waits_for_none(binaries):
    (binary,) = binaries("sm_90", call("mass_kernel", "pruned", "ieee"), {"mass_kernel"})
    inner = opcodes(binary)
    assert inner["MUFU"] == 8  # an exponential is a pair
    assert inner.total() <= 135
    assert inner["SHFL"] == inner["BAR"] == 0


def test_the_modes_reach_every_branch(launches):
    found = [
        launch.kwargs for mode in MODES for launch in launches(call("filter_kernel", mode, "tf32"))
    ]
    assert {kwargs["D"] <= triton.UNROLLED.value for kwargs in found} == {True, False}
    assert {kwargs["BLOCK_C"] for kwargs in found} == {16, 32, 64}
    assert {kwargs["PRECISION"] for kwargs in found} == {"tf32"}
