from __future__ import annotations

import math

import pytest
from frame import Check, Formula


@pytest.mark.parametrize(
    ("value", "passed"), [(0.0, True), (1.0, True), (1.1, False), (math.nan, False)]
)
def test_a_check_passes_up_to_its_limit_and_not_for_nan(value: float, passed: bool) -> None:
    assert Check("error", value, limit=1.0).passed is passed


def test_a_formula_evaluates_the_text_that_it_shows() -> None:
    assert Formula("2*N*(D + 1)", {"N": 10, "D": 4}).value == 100
    with pytest.raises(NameError):
        _ = Formula("2*N*M", {"N": 10}).value
