"""The kernels of the separable filter compile to what their targets have.

Compiled is every kernel for images in every precision, for volumes and lines in some, as it is
launched for a photograph of 375 x 500 pixels with 21 labels.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from targets import SHARED_MEMORY, assert_fits, meta

from kernels.separable import triton as separable_triton
from kernels.separable.factors import Separable
from kernels.separable.landmarks import Landmarks

MULTIPLIES = {  # what matrix instructions take; those of AMD also take float32 as it is
    "bf16": {"sm_80": {"bf16"}, "sm_90": {"bf16"}, "gfx942": {"bf16"}},
    "tf32": {"sm_80": {"tf32"}, "sm_90": {"tf32"}, "gfx942": {"xf32"}},
    "ieee": {"sm_80": set(), "sm_90": set(), "gfx942": {"f32"}},
}
KERNELS = {"splat_kernel", "combine_kernel", "convolve_kernel", "product_kernel", "slice_kernel"}
# float32 as it is, whatever PyTorch's switch says and whatever the filter's precision.
ALWAYS = {
    "combine_kernel": {"sm_80": set(), "sm_90": set(), "gfx942": set()},
    "convolve_kernel": {"sm_80": set(), "sm_90": set(), "gfx942": set()},
    "product_kernel": MULTIPLIES["ieee"],
}
COUNT, CHANNELS = 187500, 21


def separable(spatial: int, landmarks: int, colours: int) -> Separable:
    shape = (15, 12, 9)[:spatial]
    nodes = 1
    for axis in shape:
        nodes *= axis
    return Separable(
        meta(landmarks, colours),
        meta(landmarks, landmarks),
        tuple(meta(m) for m in shape),
        shape,
        meta(COUNT, dtype=torch.int64),
        meta(COUNT, colours),
        meta(COUNT, spatial),
        meta(COUNT),
        meta(308, 3, dtype=torch.int32),
        meta(nodes + 1, dtype=torch.int32),
        0.1,
    )


@pytest.mark.parametrize("target", SHARED_MEMORY)
@pytest.mark.parametrize(
    ("precision", "spatial", "colours"),
    [
        ("bf16", 2, 3),
        ("tf32", 2, 3),
        ("ieee", 2, 3),
        ("bf16", 3, 1),
        ("tf32", 3, 1),
        ("ieee", 1, 0),
    ],
)
def test_a_filter_compiles_to_what_its_target_has(binaries, target, precision, spatial, colours):
    landmarks = 256 if colours else 1
    values = meta(COUNT, CHANNELS)
    factored = separable(spatial, landmarks, colours)
    run = partial(separable_triton.filter, factored, values, precision)
    found = binaries(target, run, KERNELS)
    assert {binary.kernel for binary in found} == KERNELS
    for binary in found:
        assert_fits(binary, target)
        expected = ALWAYS.get(binary.kernel, MULTIPLIES[precision])
        assert binary.multiplies == expected[target], binary


@pytest.mark.parametrize("target", SHARED_MEMORY)
@pytest.mark.parametrize("colours", [3, 1])
@pytest.mark.parametrize("landmarks", [272, 37])
def test_own_weights_compile_to_what_their_target_has(
    binaries, monkeypatch, target, colours, landmarks
):
    on_amd = target.startswith("gfx")
    monkeypatch.setattr(separable_triton, "OWN_PRECISION", "ieee" if on_amd else "tf32x3")
    chosen = Landmarks(
        meta(landmarks, colours),
        meta(landmarks, landmarks, dtype=torch.float64),
        0.1,
    )
    points = meta(COUNT, colours)
    run = partial(separable_triton.own_weights, points, chosen)
    (binary,) = binaries(target, run, {"own_kernel"})
    assert_fits(binary, target)
    assert binary.multiplies == {"f32" if on_amd else "tf32"}, binary
