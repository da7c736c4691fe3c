"""The table of launches and waits, a file of the repository: what each case does, exactly."""

import json
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fake_cuda import Counts

Row = Mapping[str, Any]


def row_of(counts: Counts) -> Row:
    """`total`s first, then launches by kernel and operator."""
    triton, aten = (dict(sorted(found.items())) for found in (counts.triton, counts.aten))
    total = {"triton": sum(triton.values()), "aten": sum(aten.values()), "waits": counts.waits}
    return {"total": total, "triton": triton, "aten": aten}


def read(file: Path) -> dict[str, Row]:
    table: dict[str, Row] = json.loads(file.read_text())
    return table


def write(file: Path, table: Mapping[str, Row]) -> None:
    """As JSON of lines that a reader can take in."""
    rows = (f"{json.dumps(name)}: {{\n{_lines(row)}\n}}" for name, row in table.items())
    file.write_text("{\n" + ",\n".join(rows) + "\n}\n")


def renew(file: Path, name: str, row: Row, names: Iterable[str]) -> None:
    """Set one row; rows of no name in `names` are dropped."""
    table = {**(read(file) if file.exists() else {}), name: row}
    write(file, {known: table[known] for known in names if known in table})


def difference(expected: Row | None, found: Row) -> list[str]:
    """One line for each number that differs; none where the rows are equal."""
    if expected is None:
        return ["the table has no such case"]
    lines = []
    for group in found:
        before, after = expected.get(group, {}), found[group]
        lines += [
            f"{group}: {what} {before.get(what, 0)} -> {after.get(what, 0)}"
            for what in sorted(before.keys() | after.keys())
            if before.get(what, 0) != after.get(what, 0)
        ]
    return lines


def _lines(row: Row) -> str:
    return ",\n".join(
        textwrap.fill(
            f'"{group}": {json.dumps(numbers)}',
            width=100,
            initial_indent="  ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for group, numbers in row.items()
    )
