from __future__ import annotations

import importlib.util
from pathlib import Path

import child
import compare_crf
import numpy as np
import photograph
import pytest
from compare_crf import OURS, PEER, Problem
from frame import Settings

SMALL = Problem(height=24, width=31, labels=4, sigma_xy=20, sigma_rgb=13, iterations=3)
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
    short = Problem(**{**vars(SMALL), "iterations": SMALL.iterations - 1})
    outputs = {name: call() for name, call in prepared.candidates.items()}
    outputs[OURS] = compare_crf.prepare(short, compare_crf.whole).candidates[OURS]()
    assert not all(check.passed for check in prepared.gate(outputs))


def test_the_formulas_are_given_the_sizes_of_the_lattices() -> None:
    prepared = compare_crf.prepare(SMALL, compare_crf.whole)
    assert prepared.cost is not None
    sizes = prepared.cost.operations.sizes
    assert sizes["N"] == 24 * 31
    assert [sizes["V2"], sizes["V5"]] == prepared.facts["vertices"]
    assert 0 < sizes["V2"] < sizes["V5"] <= 6 * sizes["N"]
    at_least = 4 * SMALL.labels * sizes["N"] * SMALL.iterations  # the unary, every iteration
    assert prepared.cost.bytes.value > at_least
    assert prepared.cost.operations.value > 0


def test_the_first_call_is_timed_with_an_empty_compile_cache_and_the_second_with_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caches = []

    def call(function: str, arguments: dict[str, int], environment: dict[str, str]) -> float:
        assert function == "compare_crf:first_call"
        cache = Path(environment["NUMBA_CACHE_DIR"])
        caches.append((cache, [path.name for path in cache.iterdir()]))
        (cache / "compiled").touch()
        return compare_crf.first_call(**arguments)

    monkeypatch.setattr(child, "call", call)
    (probe,) = compare_crf.probes(Settings(device="cpu", threads=1, quick=False))
    figures = probe.measure()
    (first, empty), (second, filled) = caches
    assert first == second
    assert (empty, filled) == ([], ["compiled"])
    assert list(figures) == ["nothing compiled yet", "from the disk cache"]
    assert all(seconds > 0 for seconds in figures.values())
    assert list(probe.bars) == ["nothing compiled yet"]


def test_the_case_names_tell_the_cases_apart() -> None:
    for quick in (True, False):
        names = [case.name for case in compare_crf.cases(Settings("cpu", 1, quick))]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(("height", "width"), [(30, 40), (375, 500)])
def test_a_photograph_has_the_size_that_was_asked_for(height: int, width: int) -> None:
    image, source = photograph.photograph(height, width)
    assert image.shape == (height, width, 3)
    assert image.dtype == np.uint8
    assert image.std() > 10, source


def test_a_generated_scene_stands_in_where_no_photograph_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(photograph, "PHOTOGRAPHS", ())
    image, source = photograph.photograph(30, 40)
    assert image.shape == (30, 40, 3)
    assert source == "generated scene 10000000"


def test_unary_energies_are_those_of_probabilities_that_leave_something_to_infer() -> None:
    energies = photograph.unary_energies(5, 50, 70)
    assert energies.shape == (5, 3500)
    assert energies.dtype == np.float32
    assert energies.flags.c_contiguous
    assert np.allclose(np.exp(-energies).sum(axis=0), 1, atol=1e-5)
    winners = np.bincount(energies.argmin(axis=0), minlength=5) / 3500
    assert winners.max() < 0.6, "no label covers most of the picture"
    np.testing.assert_array_equal(energies, photograph.unary_energies(5, 50, 70))
