from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install triton")

import tune_atrous
from binaries import Binary
from tune_atrous import STOPPED, TIME_UP, Stopped, candidates, chosen, merged
from tune_problems import ARITHMETIC, PROBLEMS, Run, TuneProblem

from kernels.atrous.triton.configs import ConvConfig

H200 = 227 * 1024
ONE, TWO = TuneProblem("conv", 1, 5, 16, 32), TuneProblem("weight_grad", 1, 5, 16, 32)
CONFIG, OTHER = ConvConfig(64, 64, 32, 4, 3), ConvConfig(128, 64, 32, 4, 3)


def binary(spills: int = 0, shared: int = 1024) -> Binary:
    return Binary(64, shared, spills, 4, 3, 2, 50, 4, 200)


class Processes:
    """Stands in for the processes that compile."""

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(
        self, function: object, problem: TuneProblem, kind: str, config: ConvConfig, *_: object
    ):
        job: Future[Any] = Future()
        job.set_result((binary(), float(config.block_m)))
        return job

    def shutdown(self, **_: object) -> None:
        pass


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[TuneProblem, list[ConvConfig]]]:
    """Nothing is compiled or launched: what would be timed is listed here."""
    seen: list[tuple[TuneProblem, list[ConvConfig]]] = []

    def tune_one(problem: TuneProblem, kind: str, jobs: Any, room: int) -> dict[str, Any]:
        seen.append((problem, [config for config, _ in jobs]))
        return {"entry": tune_atrous.entry(problem, kind, CONFIG, 1e-5), "timed": []}

    monkeypatch.setattr(tune_atrous, "pool", Processes)
    monkeypatch.setattr(tune_atrous, "tune_one", tune_one)
    monkeypatch.setattr(tune_atrous, "candidates", lambda kind, room: [CONFIG, OTHER])
    return seen


def tune(found: dict[str, Any], written: list[str], most_seconds: float = 1e9) -> int:
    problems = [("half", ONE), ("half", TWO)]
    return tune_atrous.tune(
        problems, H200, "sm_90", found, lambda: written.append(json.dumps(found)), most_seconds
    )


def empty() -> dict[str, Any]:
    return {"finished": {}, "faulty": [], "stopped": None}


def test_every_problem_is_tuned_and_written_at_once(gpu: list[Any]) -> None:
    written: list[str] = []
    assert tune(found := empty(), written) == 0
    assert [len(json.loads(state)["finished"]) for state in written] == [1, 2]
    assert [problem for problem, _ in gpu] == [ONE, TWO]
    assert set(found["finished"]) == {f"half {ONE}", f"half {TWO}"}


def test_a_cuda_error_ends_the_run_and_what_was_found_before_is_written_and_marked(
    gpu: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tune_atrous.tune_one

    def fails(problem: TuneProblem, *rest: Any) -> Any:
        if problem == TWO:
            raise Stopped(OTHER, "AcceleratorError: an illegal memory access was encountered")
        return whole(problem, *rest)

    monkeypatch.setattr(tune_atrous, "tune_one", fails)
    written: list[str] = []
    assert tune(found := empty(), written) == STOPPED
    last = json.loads(written[-1])
    assert set(last["finished"]) == {f"half {ONE}"}
    assert "illegal memory access" in last["stopped"]
    assert len(last["faulty"]) == 1

    monkeypatch.setattr(tune_atrous, "tune_one", whole)
    assert tune_atrous.tune([("half", TWO)], H200, "sm_90", found, lambda: None, 1e9) == 0
    assert gpu[-1] == (TWO, [CONFIG]), "the candidate that ended the run is not tried again"


def test_when_the_time_is_up_no_further_problem_starts(gpu: list[Any]) -> None:
    assert tune(found := empty(), [], most_seconds=-1) == TIME_UP
    assert not found["finished"]
    assert not gpu


def test_what_spills_or_does_not_fit_is_not_timed_and_of_the_rest_the_12_predicted_fastest() -> (
    None
):
    listed = [(ConvConfig(64, 64, i, 4, 3), binary(), 100.0 - i) for i in range(20)]
    listed += [(CONFIG, binary(spills=8), 0.0), (OTHER, binary(shared=H200 + 1), 0.0)]
    assert [config.block_k for config in chosen(listed, H200)] == list(range(19, 7, -1))


@pytest.mark.parametrize("kind", ARITHMETIC)
@pytest.mark.parametrize("room", [64 * 1024, 99 * 1024, H200])
def test_candidates_fit_the_shared_memory(kind: str, room: int) -> None:
    listed = list(candidates(kind, room))
    assert listed
    assert len(set(listed)) == len(listed)
    size = 2 if kind == "half" else 4
    for c in listed:
        assert c.stages * c.block_k * (c.block_m + c.block_n) * size <= room


def test_a_whole_run_takes_less_than_eight_minutes_by_count() -> None:
    """The figures of the module's docstring, 16 cores, nothing overlapping."""
    compiles = sum(len(PROBLEMS) * len(list(candidates(kind, H200))) for kind in ARITHMETIC)
    timings = len(PROBLEMS) * len(ARITHMETIC) * tune_atrous.TIMED
    assert 1200 < compiles < 1280
    assert compiles * 2.5 / 16 + timings * 0.3 < 8 * 60


def test_a_kernel_that_was_tuned_loses_its_old_entries_and_the_others_keep_theirs() -> None:
    old = [{"kernel": k, "arithmetic": "half", "pixels": 1} for k in ("conv", "weight_grad")]
    new = [{"kernel": "conv", "arithmetic": "half", "pixels": 2}]
    assert merged(old, new) == [new[0], old[1]]


def test_values_that_a_run_leaves_unwritten_or_that_are_wrong_count_as_an_error() -> None:
    exact, out = torch.ones(4, dtype=torch.float64), torch.zeros(4)
    right = Run(lambda: out.fill_(1), lambda: exact, out)
    half = Run(lambda: out[:2].fill_(1).new_tensor(0) + out, lambda: exact, out)
    wrong = Run(lambda: out.fill_(1.5), lambda: exact, out)
    assert tune_atrous.difference(right, exact) == 0
    assert tune_atrous.difference(half, exact) == float("inf")
    assert tune_atrous.difference(wrong, exact) == 0.5


def test_the_table_is_what_the_library_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernels.atrous.triton import configs

    monkeypatch.setattr(configs, "family", lambda device: "sm_90")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    entry = tune_atrous.entry(ONE, "half", CONFIG, 2e-5)
    content = json.loads(tune_atrous.table("A GPU", [entry, entry]))
    assert content["target"] == "sm_90"
    assert configs.nearest(content["configs"], "conv", "half", 25, 32, 16) == CONFIG
