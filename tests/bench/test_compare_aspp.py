from __future__ import annotations

import compare_aspp
import pytest
import torch
from compare_aspp import RATES, Head, live_pairs
from frame import Settings


def small(fuse: str, backward: bool) -> Head:
    return Head(channels=5, outputs=3, side=20, fuse=fuse, backward=backward)


@pytest.mark.parametrize("side", [1, 7, 20, 41])
def test_live_pairs_are_the_taps_that_a_convolution_of_ones_finds_within_the_map(
    side: int,
) -> None:
    ones, taps = torch.ones(1, 1, side, side), torch.ones(1, 1, 3, 3)
    maps = [torch.nn.functional.conv2d(ones, taps, padding=rate, dilation=rate) for rate in RATES]
    counted = int(sum(map_.sum() for map_ in maps))
    assert live_pairs(side, "concat") == counted
    assert live_pairs(side, "sum") == counted - (len(RATES) - 1) * side**2


@pytest.mark.parametrize("fuse", ["sum", "concat"])
@pytest.mark.parametrize("backward", [False, True])
def test_ours_passes_the_gate_and_a_wrong_rate_does_not(
    fuse: str, backward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = small(fuse, backward)
    prepared = compare_aspp.prepare(head, "cpu")
    outputs = {name: call() for name, call in prepared.candidates.items()}
    checks = prepared.gate(outputs)
    assert [check.passed for check in checks] == [True] * (4 if backward else 1)

    monkeypatch.setattr(compare_aspp, "RATES", (6, 12, 17, 24))
    wrong = compare_aspp.prepare(head, "cpu").candidates[compare_aspp.OURS]()
    monkeypatch.undo()
    assert not all(check.passed for check in prepared.gate({**outputs, compare_aspp.OURS: wrong}))


def test_the_backward_needs_three_times_the_operations_and_more_bytes() -> None:
    forward = compare_aspp.prepare(small("sum", False), "cpu").cost
    both = compare_aspp.prepare(small("sum", True), "cpu").cost
    assert forward is not None
    assert both is not None
    assert both.operations.value == 3 * forward.operations.value
    assert both.bytes.value > 2 * forward.bytes.value


@pytest.mark.parametrize("fuse", ["sum", "concat"])
def test_bytes_count_every_tensor_of_the_forward_once(fuse: str) -> None:
    head = small(fuse, False)
    cost = compare_aspp.prepare(head, "cpu").cost
    *operands, output = compare_aspp.tensors(head, "cpu")
    assert cost is not None
    assert cost.bytes.value == sum(tensor.nbytes for tensor in (*operands, output))


def test_the_case_names_tell_the_cases_apart() -> None:
    for quick in (True, False):
        names = [case.name for case in compare_aspp.cases(Settings("cpu", 1, quick))]
        assert len(set(names)) == len(names)
