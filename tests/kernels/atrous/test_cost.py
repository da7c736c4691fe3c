"""The cost model: which algorithm it takes for the problems that the two are made for."""

import dataclasses

import pytest

from kernels.atrous.cost import (
    ConvProblem,
    estimates,
    largest_map,
    live_share,
    weight_gradient_impl,
)
from kernels.atrous.triton.layout import PARTIAL_SUMS, WORKSPACE

V2_HEAD = ConvProblem(1, 2048, 65, 65, (6, 12, 18, 24), 21, 3, "sum", 2, "half")
VGG_ASPP = ConvProblem(4, 512, 41, 41, (6, 12, 18, 24), 1024, 3, "concat", 2, "half")
V3_BRANCHES = ConvProblem(4, 2048, 65, 65, (12, 24, 36), 256, 3, "concat", 2, "half")
BACKBONE = ConvProblem(4, 512, 65, 65, (4,), 512, 3, "sum", 2, "half")


def best(problem):
    expected = estimates(problem)
    return min(expected, key=expected.get)


@pytest.mark.parametrize("arithmetic", ["half", "tf32"])
@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize(
    ("problem", "algorithm"),
    [
        (V2_HEAD, "triton:shift"),
        (dataclasses.replace(V2_HEAD, height=41, width=41), "triton:shift"),
        (VGG_ASPP, "triton:implicit"),
        (V3_BRANCHES, "triton:implicit"),
        (BACKBONE, "triton:implicit"),
    ],
    ids=["v2 head 65", "v2 head 41", "VGG ASPP", "v3 branches", "backbone"],
)
def test_few_outputs_are_shifted_and_many_are_implicit(problem, algorithm, batch, arithmetic):
    size = 2 if arithmetic == "half" else 4
    changed = dataclasses.replace(problem, batch=batch, arithmetic=arithmetic, element_size=size)
    assert best(changed) == algorithm


def test_a_centre_tap_alone_is_live_where_the_rate_exceeds_the_map():
    assert live_share(V2_HEAD, 65) == pytest.approx(1 / 9)


def test_rows_of_taps_outside_the_map_cost_nothing():
    shares = [live_share(VGG_ASPP, rate) for rate in (6, 12, 18, 24)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(1 - 2 / 3 * (6 - 128 / 41) / 41)


@pytest.mark.parametrize("fuse", ["sum", "concat"])
def test_a_weight_gradient_of_more_than_its_partial_sums_may_take_is_implicit(fuse):
    assert weight_gradient_impl("triton:shift", (4, 21, 2048, 3, 3), fuse) == "triton:shift"
    assert weight_gradient_impl("triton:shift", (4, 1024, 512, 3, 3), fuse) == "triton:implicit"
    assert weight_gradient_impl("triton:implicit", (4, 21, 2048, 3, 3), fuse) == "triton:implicit"


def test_the_slices_of_a_cityscapes_map_fit_and_those_of_its_image_do_not():
    head = dataclasses.replace(V2_HEAD, height=129, width=257, outputs=19)
    assert "triton:shift" in estimates(head)
    assert largest_map(head) == WORKSPACE // (4 * 640)  # 33 taps x 19, padded
    assert "triton:shift" not in estimates(dataclasses.replace(head, height=1024, width=2048))


def test_offsets_into_what_a_call_holds_fit_32_bits():
    assert max(WORKSPACE, PARTIAL_SUMS) <= 2**31
