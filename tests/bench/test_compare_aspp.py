from dataclasses import replace
from typing import Any

import compare_aspp
import machine
import pytest
import switches
import torch
from atrous_heads import Head
from compare_aspp import BARS, BATCHES, DTYPES, FLOOR_BARS, GPU_HEADS, OURS, PEER
from frame import Settings

GPU, GPU_QUICK = Settings("cuda", 1, quick=False), Settings("cuda", 1, quick=True)
NORMALISED = Head(5, 3, 20, "concat", rates=(12, 24, 36), normalised=True)


def small(fuse: str, backward: bool, dtype: torch.dtype = torch.float32) -> Head:
    return Head(channels=5, outputs=3, side=20, fuse=fuse, backward=backward, dtype=dtype)


def outputs_of(prepared: Any) -> dict[str, Any]:
    return {name: call() for name, call in prepared.candidates.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fuse", ["sum", "concat"])
@pytest.mark.parametrize("backward", [False, True])
def test_ours_passes_the_gate_and_a_wrong_rate_does_not(fuse, backward, dtype):
    head = small(fuse, backward, dtype)
    prepared = compare_aspp.prepare(head, "cpu")
    outputs = outputs_of(prepared)
    checks = prepared.gate(outputs)
    assert [check.passed for check in checks] == [True] * (4 if backward else 1)

    wrong = compare_aspp.prepare(replace(head, rates=(6, 12, 17, 24)), "cpu").candidates[OURS]()
    assert not all(check.passed for check in prepared.gate({**outputs, OURS: wrong}))


def test_a_normalised_head_passes_the_gate_and_one_without_its_scale_does_not():
    prepared = compare_aspp.prepare(NORMALISED, "cpu")
    outputs = outputs_of(prepared)
    assert all(check.passed for check in prepared.gate(outputs))
    plain = compare_aspp.prepare(replace(NORMALISED, normalised=False), "cpu").candidates[OURS]()
    assert not all(check.passed for check in prepared.gate({**outputs, OURS: plain}))


def test_an_output_of_another_shape_or_with_a_nan_fails_the_gate_whosever_it_is():
    prepared = compare_aspp.prepare(small("sum", False), "cpu")
    outputs = outputs_of(prepared)
    for wrong in (outputs[OURS][:, :1], outputs[OURS].clone().fill_(float("nan"))):
        for name in (OURS, compare_aspp.COMPILED):
            assert not all(check.passed for check in prepared.gate({**outputs, name: wrong}))


def test_where_nothing_can_be_compiled_the_others_are_compared_and_the_reader_told(monkeypatch):
    def broken(head: Head, given: Any) -> torch.Tensor:
        raise RuntimeError("no C++ compiler\nlook here")

    monkeypatch.setattr(compare_aspp, "compiled", lambda mode: broken)
    prepared = compare_aspp.prepare(small("sum", True), "cpu", with_compiled=True)
    assert list(prepared.candidates) == [OURS, PEER]
    (note,) = prepared.notes
    assert "NOT COMPILED" in note
    assert note.endswith("RuntimeError: no C++ compiler")


@pytest.mark.parametrize(
    ("dtype", "device", "eps"),
    [
        (torch.float32, "cpu", 2.0**-23),
        (torch.float32, "cuda", 2.0**-10),
        (torch.bfloat16, "cuda", 2.0**-7),
    ],
)
def test_a_rounding_is_that_of_the_arithmetic_which_the_switches_allow(dtype, device, eps):
    with switches.tuned():
        assert compare_aspp._eps(dtype, device) == eps


@pytest.mark.parametrize("settings", [Settings("cpu", 1, True), Settings("cpu", 1, False), GPU])
def test_the_case_names_tell_the_cases_apart(settings):
    names = [case.name for case in compare_aspp.cases(settings)]
    assert len(set(names)) == len(names)


def test_on_a_gpu_every_head_runs_in_every_dtype_and_batch_those_with_a_bar_first():
    cases = compare_aspp.cases(GPU)
    assert len(cases) == len(GPU_HEADS) * len(DTYPES) * len(BATCHES) * 2
    barred = {case.name: case.bar for case in cases[: 2 * len(BARS)]}
    forward = {name: bars[0] for name, bars in BARS.items()}
    backward = {f"{name} + backward": bars[1] for name, bars in BARS.items()}
    assert barred == forward | backward
    assert {case.name: case.floor_bar for case in cases if case.floor_bar} == FLOOR_BARS
    for case in cases:
        head, device, with_compiled = case.prepare.args
        assert case.name.endswith("+ backward") is head.backward
        assert f"batch {head.batch}" in case.name
        assert ("bf16" in case.name) is (head.dtype == torch.bfloat16)
        assert head.normalised is (case.name.startswith("v3") and not head.backward)
        assert device == "cuda"
        assert with_compiled is (case.name in barred), "every peer runs where a bar is set"


def test_quick_on_a_gpu_is_a_handful_and_judges_only_where_all_peers_are():
    cases = compare_aspp.cases(GPU_QUICK)
    assert {case.name for case in cases} == set(compare_aspp.QUICK)
    for case in cases:
        assert (case.bar is not None) is case.prepare.args[2]


def test_operations_are_held_against_the_peak_of_their_dtype():
    assert compare_aspp._peak(small("sum", False, torch.bfloat16)) == machine.BF16_PEAK
    assert compare_aspp._peak(small("sum", False, torch.float32)) == machine.TF32_PEAK


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backward", [False, True])
def test_on_a_gpu_every_peer_passes_the_gate(dtype, backward):
    head = Head(64, 21, 33, "sum", batch=2, dtype=dtype, backward=backward)
    prepared = compare_aspp.prepare(head, "cuda")
    assert prepared.facts["cudnn.allow_tf32"] is True
    with prepared.around():
        checks = prepared.gate(outputs_of(prepared))
    assert all(check.passed for check in checks), checks
