"""The cases of DenseCRF's methods: they pass their gate, say their error, and cover the bars."""

from __future__ import annotations

import crf_methods
import pytest
import torch
from crf_methods import EXACT, Problem
from frame import Settings

SMALL = Problem(16, 20, 4, 20.0, 60.0, 3)


def test_every_method_of_one_case_passes_the_gate_and_has_an_error() -> None:
    prepared = crf_methods.prepare_all(SMALL)
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
    prepared = crf_methods.prepare(SMALL, method, beside_peer=True, device="cpu")
    outputs = {name: call() for name, call in prepared.candidates.items()}
    assert all(check.passed for check in prepared.gate(outputs))


def test_labels_that_are_not_the_exact_ones_do_not_pass() -> None:
    prepared = crf_methods.prepare(SMALL, "separable", beside_peer=False, device="cpu")
    wrong = prepared.candidates["separable"]().roll(1, 1)
    assert not all(check.passed for check in prepared.gate({"separable": wrong}))
    nan = {"separable": torch.full((1, 4, 16, 20), torch.nan)}
    assert not all(check.passed for check in prepared.gate(nan))


@pytest.mark.parametrize("method", ["permutohedral", "exact", "separable"])
def test_the_parts_of_a_method_run_and_the_iterations_are_those_of_the_whole(
    method: crf_methods.Method,
) -> None:
    for part in (crf_methods.set_up, crf_methods.iterations):
        prepared = crf_methods.prepare_part(SMALL, method, part, device="cpu")
        outputs = {name: call() for name, call in prepared.candidates.items()}
        assert all(check.passed for check in prepared.gate(outputs))
    whole = crf_methods.prepare(SMALL, method, False, device="cpu").candidates[method]()
    torch.testing.assert_close(outputs[method].flatten(), whole.flatten())


def test_a_sigma_that_takes_too_many_landmarks_is_left_out_and_the_reader_told() -> None:
    noise = crf_methods.Problem(48, 64, 4, 20.0, 0.5, 1)
    prepared = crf_methods.prepare_all(noise)
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
