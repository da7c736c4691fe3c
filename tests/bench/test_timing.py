import time

import pytest
import timing
import torch
from timing import Budget, EventClock, time_in_turn


class MadeUpTime:
    """A clock that stands still but for candidates that say how long they take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def candidate(self, name: str, *seconds: float):
        durations = list(seconds)

        def call() -> None:
            self.log.append(name)
            self.now += durations.pop(0) if len(durations) > 1 else durations[0]

        return call

    def clock(self):
        return lambda: self.now


def test_every_round_runs_all_candidates_and_turns_their_order_around() -> None:
    made = MadeUpTime()
    candidates = {"a": made.candidate("a", 1.0), "b": made.candidate("b", 2.0)}
    found = time_in_turn(candidates, Budget(rounds=3, seconds=0.5), made.clock)
    assert "".join(made.log) == "ab" + "ab" + "ba" + "ab", "each once before, then a call a round"
    assert timing.samples(found["a"]) == [1.0] * 3
    assert timing.samples(found["b"]) == [2.0] * 3


def test_a_round_lasts_at_least_as_long_as_the_budget_says() -> None:
    made = MadeUpTime()
    found = time_in_turn({"a": made.candidate("a", 0.25)}, Budget(2, seconds=0.6), made.clock)
    assert [measurement.times for measurement in found["a"]] == [[0.25] * 3] * 2


def test_short_calls_are_timed_many_in_a_block_and_told_by_the_call() -> None:
    made = MadeUpTime()
    found = time_in_turn({"a": made.candidate("a", 1e-6)}, Budget(1, seconds=0.01), made.clock)
    (measurement,) = found["a"]
    assert measurement.number_per_run >= 10
    assert timing.samples(found["a"]) == pytest.approx([1e-6] * len(measurement.times))


def test_a_ratio_is_unmoved_by_noise_that_hits_both_of_a_round() -> None:
    made = MadeUpTime()
    slowed = [1.0, 1.0, 10.0, 1.0, 10.0]
    candidates = {
        "ours": made.candidate("ours", *slowed),
        "theirs": made.candidate("theirs", *[3 * s for s in slowed]),
    }
    found = time_in_turn(candidates, Budget(4, seconds=0.1), made.clock)
    assert timing.samples(found["ours"]) == [1.0, 10.0, 1.0, 10.0]
    assert timing.ratios(found["theirs"], found["ours"]) == pytest.approx([3.0] * 4)


def test_percentiles_are_linear_between_neighbours() -> None:
    found = timing.percentiles([5.0, 1.0, 4.0, 2.0, 3.0])
    assert found == pytest.approx({"p20": 1.8, "p50": 3.0, "p80": 4.2})


def test_the_cpu_clock_does_not_count_what_the_wall_clock_waits_for() -> None:
    def waits() -> None:
        time.sleep(0.02)

    def seconds(clock: str) -> float:
        found = time_in_turn({"a": waits}, Budget(1, 1e-4), lambda: timing.clock_for(clock))
        return min(timing.samples(found["a"]))

    assert seconds("wall") >= 0.02
    assert seconds("cpu") < 0.01


@pytest.mark.gpu
def test_events_wait_for_the_device() -> None:
    matrix = torch.ones(4096, 4096, device="cuda")
    calls = {"one": lambda: matrix @ matrix, "many": lambda: [matrix @ matrix for _ in range(50)]}
    found = time_in_turn(calls, Budget(2, 0.01), EventClock)
    assert min(timing.samples(found["many"])) > 10 * min(timing.samples(found["one"]))


@pytest.mark.gpu
def test_events_leave_out_the_launches_and_the_wall_clock_has_them_in() -> None:
    small = torch.ones(1, device="cuda")

    def launches() -> None:  # few enough to be enqueued while the device spins
        for _ in range(100):
            small.add_(1)

    launches()
    seconds = []
    for clock in (EventClock(), timing.clock_for("wall")):
        start = clock()
        launches()
        seconds.append(clock() - start)
    on_device, until_done = seconds
    assert 0 < on_device < until_done
