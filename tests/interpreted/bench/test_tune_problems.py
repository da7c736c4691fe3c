"""The launches that tuning times are those that their truth in float64 is of."""

from __future__ import annotations

import pytest
import torch
import tune_atrous
from tune_problems import PROBLEMS, Problem, budget, launch

SMALL = [
    Problem("conv", 2, 5, 32, 48),
    Problem("conv", 2, 5, 48, 32, to_input=True),
    Problem("conv", 1, 6, 16, 32, (1, 2, 7), 3),
    Problem("conv", 2, 6, 32, 16, (1, 3), 3, to_input=True),
    Problem("weight_grad", 2, 5, 32, 48),
    Problem("weight_grad", 2, 6, 32, 16, (1, 3), 3),
]


def form(problem: Problem) -> tuple[object, ...]:
    return problem.kernel, problem.size, len(problem.rates) > 1, problem.to_input


@pytest.mark.parametrize("problem", SMALL, ids=str)
def test_a_launch_computes_its_truth(problem: Problem) -> None:
    run = launch(problem, "ieee", "cpu")
    found = tune_atrous.difference(run, run.truth())
    assert found <= budget(problem, "ieee", torch.float32)


def test_the_small_problems_have_every_form_of_the_tuned_ones() -> None:
    assert {form(problem) for problem in PROBLEMS} == {form(problem) for problem in SMALL}
