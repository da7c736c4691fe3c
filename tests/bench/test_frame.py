import math

import pytest
from frame import Check, Cost

COST = Cost(bytes=2000, operations=500, sizes={"N": 500}, peak="bf16")


@pytest.mark.parametrize(
    ("value", "passed"), [(0.0, True), (1.0, True), (1.1, False), (math.nan, False)]
)
def test_a_check_passes_up_to_its_limit_and_not_for_nan(value, passed):
    assert Check("error", value, limit=1.0).passed is passed


@pytest.mark.parametrize(("bf16", "seconds"), [(1e9, 2e-6), (1e6, 5e-4)])
def test_the_floor_is_the_larger_of_moving_the_bytes_and_doing_the_operations(bf16, seconds):
    ceilings = {"bytes_per_second": 1e9, "operations_per_second": 1.0, "bf16": bf16}
    assert COST.floor_seconds(ceilings) == pytest.approx(seconds), "by the peak that it names"
