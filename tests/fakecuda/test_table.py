"""The table of launches says what differs, and is written as it is read."""

from collections import Counter
from pathlib import Path

import fake_cuda_table as table
from fake_cuda import Counts

COUNTS = Counts(Counter({"b.kernel": 1, "a.kernel": 2}), Counter({"sum": 3}), waits=1)
ROW = {
    "total": {"triton": 3, "aten": 3, "waits": 1},
    "triton": {"a.kernel": 2, "b.kernel": 1},
    "aten": {"sum": 3},
}


def test_a_row_has_totals_and_names_in_order() -> None:
    row = table.row_of(COUNTS)
    assert row == ROW
    assert list(row["triton"]) == ["a.kernel", "b.kernel"]


def test_every_number_that_differs_is_a_line() -> None:
    more = Counts(Counter({"a.kernel": 3, "c.kernel": 1}), Counter({"sum": 3}), waits=2)
    assert table.difference(ROW, table.row_of(COUNTS)) == []
    assert table.difference(ROW, table.row_of(more)) == [
        "total: triton 3 -> 4",
        "total: waits 1 -> 2",
        "triton: a.kernel 2 -> 3",
        "triton: b.kernel 1 -> 0",
        "triton: c.kernel 0 -> 1",
    ]
    assert table.difference(None, ROW) == ["the table has no such case"]


def test_rows_are_read_as_they_were_written_in_lines_of_100_columns(tmp_path: Path) -> None:
    file = tmp_path / "launches.json"
    many = table.row_of(Counts(Counter({f"operation.kernel_{i}": i + 1 for i in range(40)})))
    table.write(file, {"one": ROW, "another, with many": many})
    assert table.read(file) == {"one": ROW, "another, with many": many}
    assert max(map(len, file.read_text().splitlines())) <= 100


def test_renewing_sets_one_row_in_the_order_of_the_cases_and_drops_what_is_no_case(
    tmp_path: Path,
) -> None:
    file = tmp_path / "launches.json"
    for name in ("second", "gone", "first"):
        table.renew(file, name, ROW, ["gone", "first", "second"])
    table.renew(file, "second", {"total": {}}, ["first", "second", "not yet run"])
    assert list(table.read(file).items()) == [("first", ROW), ("second", {"total": {}})]
