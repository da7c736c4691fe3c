"""The cases of DenseCRF's methods: they pass their gate, say their error, and cover the bars."""

import crf_methods
import pytest
import torch
from crf_methods import EXACT
from crf_problem import CRFProblem
from frame import Settings

SMALL = CRFProblem(16, 20, 4, 20.0, 60.0, 3)
ALL = ("permutohedral", "separable", EXACT)


def test_every_method_of_one_case_passes_the_gate_and_has_an_error() -> None:
    prepared = crf_methods.prepare(SMALL, ALL, "cpu", True)
    assert set(prepared.ours) == set(ALL)
    outputs = {name: call() for name, call in prepared.candidates.items()}
    checks = prepared.gate(outputs)
    assert all(check.passed for check in checks), checks
    assert prepared.quality is not None
    qualities = prepared.quality(outputs)
    assert qualities.keys() == outputs.keys()
    assert qualities[EXACT].same_label == 1
    assert qualities[EXACT].mean_error == 0
    assert 0 < qualities["separable"].mean_error < qualities["permutohedral"].mean_error


@pytest.mark.parametrize("method", ["permutohedral", "exact", "separable"])
def test_one_method_beside_the_peer_passes_the_gate(method: crf_methods.Method) -> None:
    prepared = crf_methods.prepare(SMALL, [method], "cpu", True)
    outputs = {name: call() for name, call in prepared.candidates.items()}
    assert all(check.passed for check in prepared.gate(outputs))


def test_labels_that_are_not_the_exact_ones_do_not_pass() -> None:
    prepared = crf_methods.prepare(SMALL, ["separable"], "cpu", False)
    wrong = prepared.candidates["separable"]().roll(1, 1)
    assert not all(check.passed for check in prepared.gate({"separable": wrong}))
    nan = {"separable": torch.full((1, 4, 16, 20), torch.nan)}
    assert not all(check.passed for check in prepared.gate(nan))


def test_a_sigma_that_takes_too_many_landmarks_is_left_out_and_the_reader_told() -> None:
    noise = CRFProblem(48, 64, 4, 20.0, 0.5, 1)
    prepared = crf_methods.prepare(noise, ALL, "cpu", False)
    assert "separable" not in prepared.candidates
    assert "separable is left out at 20/0.5" in prepared.notes[0]


def test_one_filter_is_held_against_the_oracle() -> None:
    prepared = crf_methods.prepare_filter(500, device="cpu")
    (check,) = prepared.gate({"kernels": prepared.candidates["kernels"]()})
    assert check.passed
    (check,) = prepared.gate({"kernels": prepared.candidates["kernels"]() * 1.1})
    assert not check.passed


def test_every_bar_belongs_to_a_case_and_comes_first() -> None:
    cases = crf_methods.gpu_cases(Settings("cuda", 1, quick=False))
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    assert crf_methods.MOST_SECONDS.keys() | crf_methods.TIMES_AS_FAST.keys() <= set(names)
    asked = [case.bar is not None or case.most_seconds is not None for case in cases]
    assert asked == sorted(asked, reverse=True)


def test_every_method_has_a_case_of_one_update_beside_its_whole() -> None:
    cases = {c.name: c.prepare for c in crf_methods.gpu_cases(Settings("cuda", 1, quick=True))}
    for method in ("permutohedral", "exact", "separable"):
        (one,), (ten,) = (
            [case.args for name, case in cases.items() if name == f"375x500 80/13 {method}{part}"]
            for part in (" one update", "")
        )
        assert (one[0].iterations, ten[0].iterations) == (1, 10)
        assert one[1:3] == ten[1:3] == ([method], "cuda")
