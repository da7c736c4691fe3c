import importlib.util

import compare_crf
import crf_problem
import numpy as np
import pytest
from compare_crf import OURS, PEER, CRFProblem
from frame import Settings

SMALL = CRFProblem(height=24, width=31, labels=4, sigma_xy=20, sigma_rgb=13, iterations=3)
needs_peer = pytest.mark.skipif(
    importlib.util.find_spec("pydensecrf") is None,
    reason="pydensecrf2 is not installed (pip install '.[reference]')",
)


@needs_peer
@pytest.mark.parametrize("part", [compare_crf.whole, compare_crf.set_up, compare_crf.iterations])
def test_ours_agrees_with_the_peer_in_whole_and_in_parts(part: compare_crf.Part) -> None:
    prepared = compare_crf.prepare(SMALL, part)
    assert list(prepared.candidates) == [OURS, PEER]
    checks = prepared.gate({name: call() for name, call in prepared.candidates.items()})
    assert all(check.passed for check in checks), checks


@pytest.mark.parametrize("part", [compare_crf.whole, compare_crf.set_up, compare_crf.iterations])
def test_without_the_peer_ours_is_held_against_the_oracle_and_the_reader_told(
    part: compare_crf.Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pydensecrf" else found(name)
    )
    prepared = compare_crf.prepare(SMALL, part)
    assert list(prepared.candidates) == [OURS]
    assert "pydensecrf2 is not installed" in prepared.notes[0]
    checks = prepared.gate({OURS: prepared.candidates[OURS]()})
    assert all(check.passed for check in checks), checks


def test_one_iteration_less_does_not_pass_the_gate() -> None:
    prepared = compare_crf.prepare(SMALL, compare_crf.whole)
    short = CRFProblem(**{**vars(SMALL), "iterations": SMALL.iterations - 1})
    outputs = {name: call() for name, call in prepared.candidates.items()}
    outputs[OURS] = compare_crf.prepare(short, compare_crf.whole).candidates[OURS]()
    assert not all(check.passed for check in prepared.gate(outputs))


def test_the_cost_is_given_the_sizes_of_the_lattices() -> None:
    prepared = compare_crf.prepare(SMALL, compare_crf.whole)
    assert prepared.cost is not None
    sizes = prepared.cost.sizes
    assert sizes["points"] == 24 * 31
    assert [sizes["V2"], sizes["V5"]] == prepared.facts["vertices"]
    assert 0 < sizes["V2"] < sizes["V5"] <= 6 * sizes["points"]


def test_the_cost_of_one_point_and_one_vertex_is_counted_by_hand() -> None:
    cost = compare_crf.cost(CRFProblem(1, 1, 1, 1, 1, iterations=1), 1, 1)
    unary, corners, norms, marginal = 4, 8 * 9, 8, 4
    spatial, bilateral = 4 * (2 + 2 * 3) + 8 * 3, 4 * (2 + 2 * 6) + 8 * 6
    assert cost.bytes == unary + corners + norms + spatial + bilateral + marginal
    assert cost.operations == 4 * 9 + 3 * (3 + 6) + 8


def test_a_core_for_a_core_is_there_whatever_the_threads_of_the_run() -> None:
    for threads in (1, 2):
        listed = compare_crf.cases(Settings("cpu", threads, quick=False))
        alone = [case for case in listed if case.threads == 1 and case.bar is not None]
        assert {case.clock for case in alone} == {"cpu"}
        assert len(alone) == 9, "three sigmas, three numbers of labels"
        together = [case for case in listed if case.name.endswith("all cores")]
        assert len(together) == (0 if threads == 1 else 9)


def test_the_case_names_tell_the_cases_apart() -> None:
    for quick in (True, False):
        names = [case.name for case in compare_crf.cases(Settings("cpu", 1, quick))]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(("height", "width"), [(30, 40), (375, 500)])
def test_a_photograph_has_the_size_that_was_asked_for(height: int, width: int) -> None:
    image, source = crf_problem.photograph(height, width)
    assert image.shape == (height, width, 3)
    assert image.dtype == np.uint8
    assert image.std() > 10, source


def test_a_generated_scene_stands_in_where_no_photograph_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(crf_problem, "PHOTOGRAPHS", ())
    image, source = crf_problem.photograph(30, 40)
    assert image.shape == (30, 40, 3)
    assert source == "generated scene 10000000"


def test_unary_energies_are_those_of_probabilities_that_leave_something_to_infer() -> None:
    energies = crf_problem.unary_energies(5, 50, 70)
    assert energies.shape == (5, 3500)
    assert energies.dtype == np.float32
    assert energies.flags.c_contiguous
    assert np.allclose(np.exp(-energies).sum(axis=0), 1, atol=1e-5)
    winners = np.bincount(energies.argmin(axis=0), minlength=5) / 3500
    assert winners.max() < 0.6, "no label covers most of the picture"
    np.testing.assert_array_equal(energies, crf_problem.unary_energies(5, 50, 70))
