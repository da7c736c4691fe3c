"""Host code of every GPU path on a fake GPU: tensors, grids and guards, and how much it launches.

What is wrong raises where it is done (tests/support/fake_cuda.py). How much is launched and waited
for is exactly what launches.json says. Where it is meant to change, write the table anew:

    pytest tests/fakecuda --renew-launches
"""

from collections.abc import Callable
from pathlib import Path

import fake_cuda_table as table
import pytest
import torch
from fake_cuda import counts_of
from fake_cuda_answers import ANSWERS
from fake_cuda_cases import CASES

from kernels import dispatch

TABLE = Path(__file__).with_name("launches.json")

pytestmark = pytest.mark.skipif(
    not dispatch.TRITON_INSTALLED or dispatch.interpreting(),
    reason="kernels are launched where Triton is installed and TRITON_INTERPRET=0",
)


@pytest.mark.parametrize("name", CASES)
def test_a_case_launches_and_waits_for_what_the_table_says(name: str, renewing: bool) -> None:
    found = table.row_of(counts_of(CASES[name], ANSWERS))
    if renewing:
        table.renew(TABLE, name, found, CASES)
        return
    lines = table.difference(table.read(TABLE).get(name), found)
    if lines:
        said = [
            f"{name}: what is launched differs from {TABLE.name}",
            *lines,
            f"ATen's part is that of the torch in constraints.txt; this is {torch.__version__}.",
            "If it is meant: pytest tests/fakecuda --renew-launches",
        ]
        pytest.fail("\n  ".join(said), pytrace=False)


def test_the_table_has_a_row_for_each_case_and_no_other() -> None:
    assert list(table.read(TABLE)) == list(CASES)


def test_what_is_done_once_more_is_a_difference() -> None:
    name = "separable, positions and colours, build"

    def twice() -> Callable[[], None]:
        first, second = CASES[name](), CASES[name]()
        return lambda: (first(), second())[0]

    row = table.read(TABLE)[name]
    lines = table.difference(row, table.row_of(counts_of(twice, ANSWERS)))
    assert lines[:3] == [
        f"total: {what} {row['total'][what]} -> {2 * row['total'][what]}"
        for what in ("aten", "triton", "waits")
    ]
