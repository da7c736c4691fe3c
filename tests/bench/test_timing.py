from __future__ import annotations

import gc
import time

import pytest
import timing
import torch


def seconds_given(durations: dict[str, float], log: list[str]):
    """Candidates that only log their name, and a timer that reads each one's duration."""

    def candidate(name: str):
        def call() -> str:
            log.append(name)
            return name

        return call

    return {name: candidate(name) for name in durations}, lambda call: durations[call()]


def test_every_round_runs_all_candidates_and_turns_their_order_around() -> None:
    log: list[str] = []
    candidates, timer = seconds_given({"a": 1.0, "b": 2.0}, log)
    timing.interleave(candidates, timer, timing.Budget(0, least_rounds=3, most_rounds=9))
    warm_up, measured = log[:4], log[4:]
    assert warm_up == ["a", "b", "a", "b"]
    assert measured == ["a", "b", "b", "a", "a", "b"]


@pytest.mark.parametrize(("seconds", "rounds"), [(0.5, 2), (7.4, 7), (99, 10)])
def test_rounds_fill_the_budget_within_their_bounds(seconds: float, rounds: int) -> None:
    candidates, timer = seconds_given({"a": 0.25, "b": 0.75}, [])
    budget = timing.Budget(seconds, least_rounds=2, most_rounds=10)
    samples = timing.interleave(candidates, timer, budget)
    assert samples == {"a": [0.25] * rounds, "b": [0.75] * rounds}


def test_garbage_collection_is_off_while_timing_and_on_again_after_a_failure() -> None:
    states = []

    def fails_on_its_third_call() -> None:
        states.append(gc.isenabled())
        if len(states) == 3:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        timing.interleave(
            {"a": fails_on_its_third_call}, timing.time_on_host, timing.Budget(0, 5, 5)
        )
    assert states == [True, True, False]
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("percent", "value"), [(0, 1.0), (20, 1.8), (50, 3.0), (80, 4.2), (100, 5.0)]
)
def test_percentile_is_linear_between_neighbours(percent: float, value: float) -> None:
    assert timing.percentile([5.0, 1.0, 4.0, 2.0, 3.0], percent) == pytest.approx(value)
    assert timing.percentile([7.0], percent) == 7.0


def test_ratio_of_pairs_is_unmoved_by_noise_that_hits_both_of_a_pair() -> None:
    ours = [1.0, 10.0, 1.0, 10.0]
    theirs = [3.0, 30.0, 3.0, 30.0]
    assert timing.ratio_of_pairs(theirs, ours) == 3.0


def test_time_on_host_is_the_wall_clock() -> None:
    assert 0.02 <= timing.time_on_host(lambda: time.sleep(0.02)) < 2


@pytest.mark.gpu
def test_time_on_device_waits_for_the_device() -> None:
    matrix = torch.ones(4096, 4096, device="cuda")
    one = timing.time_on_device(lambda: matrix @ matrix)
    many = timing.time_on_device(lambda: [matrix @ matrix for _ in range(100)])
    assert many > 10 * one


@pytest.mark.gpu
def test_time_queued_leaves_out_the_launches_and_time_until_done_has_them_in() -> None:
    small = torch.ones(1, device="cuda")
    calls = 100  # few enough to be enqueued while the device spins

    def launches() -> None:
        for _ in range(calls):
            small.add_(1)

    launches()
    on_device, until_done = timing.time_queued(launches), timing.time_until_done(launches)
    assert 0 < on_device < until_done
