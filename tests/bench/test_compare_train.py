"""A step of training: both sides do the same, and a step too many is seen."""

import compare_train
from compare_train import OURS, PLAIN, Task
from frame import Settings


def test_steps_agree_and_a_second_one_of_ours_is_seen() -> None:
    prepared = compare_train.prepare(Task("resnet50", side=33, batch=1))
    assert list(prepared.candidates) == [OURS, PLAIN]
    outputs = {name: call() for name, call in prepared.candidates.items()}
    checks = prepared.gate(outputs)
    assert all(check.passed for check in checks), checks
    outputs[OURS] = prepared.candidates[OURS]()
    assert not any(check.passed for check in prepared.gate(outputs)), "neither loss nor weights"


def test_the_case_names_tell_the_cases_apart() -> None:
    for quick in (True, False):
        names = [case.name for case in compare_train.cases(Settings("cpu", 1, quick))]
        assert len(set(names)) == len(names)
