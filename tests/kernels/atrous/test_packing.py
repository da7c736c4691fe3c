"""Packed weights: what they hold, and what `pack` refuses."""

import pytest
import torch

import kernels
from kernels.atrous import PackedWeight, pack, packing


def test_rows_hold_each_tap_once_and_the_sum_of_the_centres(problem):
    weight = problem(integers=True).weight.detach()  # [2, 4, 3, 3, 3]
    rows = packing.rows_of(weight, sum_rates=True)
    assert rows.shape == (80, 16)
    assert torch.equal(rows[:4, :3], weight[:, :, :, 1, 1].sum(0))
    assert torch.equal(rows[4:8, :3], weight[0, :, :, 0, 0])
    assert torch.equal(rows[4 + 8 * 4 : 4 + 9 * 4, :3], weight[1, :, :, 0, 0])
    assert torch.equal(rows[64:68, :3], weight[1, :, :, 2, 2])
    assert rows[68:].eq(0).all()
    assert rows[:, 3:].eq(0).all()


def test_rows_of_a_concatenation_keep_every_centre(problem):
    weight = problem(integers=True).weight.detach()
    rows = packing.rows_of(weight, sum_rates=False)
    assert torch.equal(rows[4 * 4 : 4 * 5, :3], weight[0, :, :, 1, 1])
    assert torch.equal(rows[13 * 4 : 14 * 4, :3], weight[1, :, :, 1, 1])


def test_centres_are_added_up_in_float32():
    weight = torch.tensor([1.0, 2**-8, 2**-8]).to(torch.bfloat16).view(3, 1, 1, 1, 1)
    assert packing.rows_of(weight, sum_rates=True)[0, 0] == 1 + 2**-7  # one rounding of the sum
    assert weight[0, 0, 0, 0, 0] + weight[1, 0, 0, 0, 0] == 1  # where each step would round


@pytest.mark.parametrize("fuse", ["sum", "concat"])
@pytest.mark.parametrize("impl", ["reference", "op", "auto"])
def test_a_packed_weight_gives_what_the_weight_gives(problem, fuse, impl):
    p = problem(fuse=fuse, integers=True)
    packed = pack(p.weight, fuse=fuse)
    found = kernels.multi_rate_atrous_conv2d(**{**vars(p), "weight": packed}, impl=impl)
    assert torch.equal(found, kernels.multi_rate_atrous_conv2d(**vars(p), impl=impl))


def test_a_packed_weight_is_a_snapshot_without_gradient(problem):
    p = problem()
    packed = pack(p.weight)
    assert isinstance(packed, PackedWeight)
    before = packed.weight.clone()
    p.weight.data.add_(1)
    assert torch.equal(packed.weight, before)
    assert not packed.weight.requires_grad
    assert not packed.rows.requires_grad


def test_a_weight_packed_for_the_other_fusion_is_refused(problem):
    p = problem()
    with pytest.raises(ValueError, match="packed for fuse='concat', not fuse='sum'"):
        kernels.multi_rate_atrous_conv2d(p.input, pack(p.weight, fuse="concat"), rates=p.rates)


@pytest.mark.parametrize(
    ("weight", "fuse", "error", "message"),
    [
        ("w", "sum", TypeError, r"weight must be a torch\.Tensor, not str"),
        (torch.zeros(4, 3, 3, 3), "sum", ValueError, r"\[R, Cout, Cin, k, k\].*\[4, 3, 3, 3\]"),
        (torch.zeros(2, 4, 3, 3, 1), "sum", ValueError, r"not \[2, 4, 3, 3, 1\]"),
        (torch.zeros(2, 4, 3, 3, 3), "max", ValueError, "fuse must be 'sum' or 'concat'"),
    ],
)
def test_bad_arguments_are_named(weight, fuse, error, message):
    with pytest.raises(error, match=message):
        pack(weight, fuse=fuse)
