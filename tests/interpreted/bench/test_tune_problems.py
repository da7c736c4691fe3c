"""Tuning, up to the clock: a launch computes its truth, and what does not is not timed."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
import torch
import tune_atrous
from binaries import Binary
from triton.runtime.errors import OutOfResources
from tune_problems import PROBLEMS, Run, TuneProblem, budget, launch

from kernels.atrous.triton.configs import ConvConfig

SMALL = [
    TuneProblem("conv", 2, 5, 32, 48),
    TuneProblem("conv", 2, 5, 48, 32, to_input=True),
    TuneProblem("conv", 1, 6, 16, 32, (1, 2, 7), 3),
    TuneProblem("conv", 2, 6, 32, 16, (1, 3), 3, to_input=True),
    TuneProblem("weight_grad", 2, 5, 32, 48),
    TuneProblem("weight_grad", 2, 6, 32, 16, (1, 3), 3),
]


def form(problem: TuneProblem) -> tuple[object, ...]:
    return problem.kernel, problem.size, len(problem.rates) > 1, problem.to_input


@pytest.mark.parametrize("problem", SMALL, ids=str)
def test_a_launch_computes_its_truth(problem: TuneProblem) -> None:
    run = launch(problem, "ieee", "cpu")
    found = tune_atrous.difference(run, run.truth())
    assert found <= budget(problem, "ieee", torch.float32)


def test_the_small_problems_have_every_form_of_the_tuned_ones() -> None:
    assert {form(problem) for problem in PROBLEMS} == {form(problem) for problem in SMALL}


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ConvConfig, Future[Any]]]:
    """Three candidates, as compiled, of which the first is predicted to be fastest."""
    monkeypatch.setattr(
        tune_atrous, "launch", lambda problem, kind, _: launch(problem, kind, "cpu")
    )
    listed = []
    for i, rows in enumerate((16, 32, 64)):
        job: Future[Any] = Future()
        job.set_result((Binary(64, 1024, 0, 4, 1, 2, 50, 4, 200), float(i)))
        listed.append((ConvConfig(rows, 32, 32, 4, 1), job))
    return listed


def tune(jobs: Any) -> Any:
    return tune_atrous.tune_one(SMALL[0], "ieee", jobs, 2**20)


def test_the_fastest_becomes_the_entry_and_all_times_are_kept(
    jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter((3e-5, 1e-5, 2e-5))
    monkeypatch.setattr(tune_atrous, "seconds", lambda run: next(times))
    found = tune(jobs)
    assert (found["entry"]["block_m"], found["entry"]["microseconds"]) == (32, 10.0)
    assert [(t["block_m"], t["microseconds"]) for t in found["timed"]] == [
        (16, 30.0), (32, 10.0), (64, 20.0),
    ]  # fmt: skip


def test_a_wrong_result_is_not_timed(
    jobs: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def off(problem: TuneProblem, kind: str, _: str) -> Run:
        run = launch(problem, kind, "cpu")
        return run._replace(truth=lambda: run.truth() * (1 + 1e-5))

    monkeypatch.setattr(tune_atrous, "launch", off)
    monkeypatch.setattr(tune_atrous, "seconds", lambda run: pytest.fail("timed"))
    assert tune(jobs) is None
    assert capsys.readouterr().out.count("WRONG") == 3


def test_a_candidate_without_room_is_refused_and_any_other_error_stops(
    jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clock(run: Run) -> float:
        raise errors.pop(0)

    monkeypatch.setattr(tune_atrous, "seconds", clock)
    errors: list[Exception] = [OutOfResources(2, 1, "shared memory"), RuntimeError("CUDA error")]
    with pytest.raises(tune_atrous.Stopped, match="CUDA error"):
        tune(jobs)
    assert not errors
