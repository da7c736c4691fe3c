"""The lattice's kernels compile without spills, and where points are placed without contraction."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from binaries import compile_for
from targets import SHARED_MEMORY, assert_fits, assert_serves_any_size, lattice, meta

from kernels.permutohedral import triton
from kernels.permutohedral.triton import building

COUNT = 187_500
NUMBERING = {"begin_kernel", "number_kernel", "count_kernel", "cut_kernel"}
PLACING = {"pack_kernel", "place_kernel", "search_kernel", *NUMBERING}
FILTERING = {"fold_kernel", "splat_kernel", "sum_kernel", "blur_kernel", "slice_kernel"}
# One rounding for a product and a sum, by the assembler too: products and sums say how they round.
CONTRACTED = {
    "sm_80": r"\b(?:fma|mad)\.\w*\.?f32|\b(?:mul|add|sub)\.f32",
    "sm_90": r"\b(?:fma|mad)\.\w*\.?f32|\b(?:mul|add|sub)\.f32",
    "gfx942": r"v_(?:pk_)?(?:fma|fmac|mad|mac)(?:ak|mk)?_f32",
}

any_target = pytest.mark.parametrize("target", SHARED_MEMORY)


def place(dims: int, count: int = COUNT) -> None:
    """All launches of a build, which by itself would wait for a device that is not there."""
    placed = building._placed(meta(count, dims), 1, meta(10, dtype=torch.float64))
    building._finished(placed, [224_000.0, 100.0, *[30.0] * dims])


@any_target
@pytest.mark.parametrize("dims", [1, 2, 5, 8])
def test_placing_spills_nothing_and_rounds_each_operation(binaries, target, dims):
    found = binaries(target, lambda: place(dims), PLACING)
    assert {binary.kernel for binary in found} == PLACING
    for binary in found:
        assert_fits(binary, target)
    (placing,) = [binary for binary in found if binary.kernel == "place_kernel"]
    assert not re.search(CONTRACTED[target], placing.assembly)


@any_target
def test_the_search_for_contractions_would_find_one(launches, target):
    (launch,) = [each for each in launches(lambda: place(2)) if each.name == "place_kernel"]
    fusing = replace(launch, kwargs={**launch.kwargs, "enable_fp_fusion": True})
    assembly = compile_for(fusing, target).asm["amdgcn" if target == "gfx942" else "ptx"]
    assert re.search(CONTRACTED[target], assembly)


@any_target
@pytest.mark.parametrize("channels", [1, 3, 21, 256])
def test_filtering_spills_nothing(binaries, target, channels):
    found = binaries(target, lambda: triton.filter(lattice(5), meta(COUNT, channels)), FILTERING)
    assert {binary.kernel for binary in found} == FILTERING
    for binary in found:
        assert_fits(binary, target)


def test_rows_are_read_in_vectors_of_four(binaries):
    found = binaries("sm_90", lambda: triton.filter(lattice(5), meta(COUNT, 24)), FILTERING)
    for binary in found:
        if binary.kernel != "fold_kernel":
            assert "global.v4" in binary.assembly, binary.kernel


def test_sizes_are_no_reason_to_compile_anew(launches):
    def every():
        place(2)
        triton.filter(lattice(2), meta(COUNT, 21))

    found = launches(every)
    assert {launch.name for launch in found} == PLACING | FILTERING
    assert_serves_any_size(found)
