"""Show a run as tables, and keep it as a JSON record."""

import datetime
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
from rich.console import Console
from rich.table import Table

from deeplab.whole_file import whole_file

RECORDS = Path(__file__).resolve().parent / "records"

Report = dict[str, Any]

# A column: its heading, where its figure is in a candidate's report, and the unit it is shown in.
COLUMNS: Sequence[tuple[str, tuple[str, ...], float]] = (
    ("p20 ms", ("seconds", "p20"), 1e-3),
    ("p50 ms", ("seconds", "p50"), 1e-3),
    ("p80 ms", ("seconds", "p80"), 1e-3),
    ("wall ms", ("wall", "p50"), 1e-3),
    ("ours x", ("ours_is_faster_by", "median_of_pairs"), 1),
    ("of p50", ("ours_is_faster_by", "ratio_of_p50"), 1),
    ("images/s", ("images_per_second",), 1),
    ("same label %", ("quality", "same_label"), 1e-2),
    ("mean |dQ|", ("quality", "mean_error"), 1),
    ("mIoU %", ("quality", "miou"), 1e-2),
    ("trimap mIoU %", ("quality", "trimap_miou"), 1e-2),
    ("peak MB", ("peak_bytes",), 1e6),
    ("GB/s", ("bytes_per_second",), 1e9),
    ("GFLOP/s", ("operations_per_second",), 1e9),
    ("x floor", ("times_the_floor",), 1),
)


def new_record(
    command: Sequence[str], names: Sequence[str], threads: int, quick: bool = False
) -> Report:
    """What every record says: what was asked for, when, by which command, of which sources, on
    which machine. Where the record goes (--out) is left out: it is a folder of that machine."""
    command = [
        part
        for before, part in zip(["", *command], command, strict=False)
        if "--out" not in (before, part) and not part.startswith("--out=")
    ]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "names": list(dict.fromkeys(names)),
        "command": shlex.join(["python", *command]),
        "quick": quick,
        "threads": threads,
        "commit": machine.commit(),
        "versions": machine.versions(),
        "hardware": machine.hardware(),
        "comparisons": [],
    }


def write_record(record: Report, folder: Path) -> Path:
    """Write the record under a name made of its date, commit and comparisons; give its path.

    Once more, it replaces what was written before."""
    date = record["date"].replace("-", "").replace(":", "").split("+")[0]
    names = "-".join(record["names"])
    commit = (record["commit"]["id"] or "unknown")[:7]
    kind = "-quick" if record["quick"] else ""
    path = folder / f"{date}-{commit}-{names}{kind}.json"
    write_whole(path, json.dumps(record, indent=1) + "\n")
    return path


def read_record(path: Path) -> Report:
    """A record that compare.py wrote.

    Raises ValueError where the file is none, or of the first form, with its name and what is wrong.
    """
    try:
        record: Report = json.loads(path.read_text())
        cases = [case for comparison in record["comparisons"] for case in comparison["cases"]]
        needed = {"name", "candidates", "bars", "notes"}
        if not all(needed <= case.keys() for case in cases):
            raise ValueError(f"a case has not all of {', '.join(sorted(needed))}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be a record of compare.py ({error!r})") from error
    return record


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step, so that a process that is killed leaves the old one or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(text.encode())


def show(comparison: Report, console: Console) -> None:
    """Print one comparison: a table of times, then what failed, bars and notes."""
    console.print()
    console.print(_table(comparison))
    for case in comparison["cases"]:
        _show_failures(case, console)
    for case in comparison["cases"]:
        _show_bars(case, console)
    if comparison["left_out"]:
        names = ", ".join(comparison["left_out"])
        console.print(f"LEFT OUT, the time was up: {names}", style="yellow")
    for note in dict.fromkeys(note for case in comparison["cases"] for note in case["notes"]):
        console.print(f"note: {note}", style="yellow", highlight=False)


def rows(comparison: Report) -> tuple[list[str], list[list[str]]]:
    """The headings of the figures, and a row for each candidate of each case: the case where it is
    the first of it, the candidate, its figures. Columns that no row fills are left out."""
    listed = [
        [
            case["name"] if name == next(iter(case["candidates"])) else "",
            name,
            *(_figure(entry, *column[1:]) if case["passed"] else "" for column in COLUMNS),
        ]
        for case in comparison["cases"]
        for name, entry in case["candidates"].items()
    ]
    used = [i for i in range(len(COLUMNS)) if any(row[2 + i] for row in listed)]
    headings = [COLUMNS[i][0] for i in used]
    return headings, [[*row[:2], *(row[2 + i] for i in used)] for row in listed]


def _table(comparison: Report) -> Table:
    """The rows, and where a case was not timed this instead of figures."""
    headings, listed = rows(comparison)
    cases = [case for case in comparison["cases"] for _ in case["candidates"]]
    table = Table(
        "case",
        "candidate",
        title=f"{comparison['name']} on the {comparison['device']}",
        caption=comparison["description"],
        title_justify="left",
        caption_justify="left",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for case, row in zip(cases, listed, strict=True):
        shown = row[2:] if case["passed"] else ["[red]not timed[/]"]
        table.add_row(*row[:2], *shown, end_section=row[1] == list(case["candidates"])[-1])
    return table


def _figure(entry: Report, path: tuple[str, ...], unit: float) -> str:
    """Four digits, or nothing where there is no figure."""
    value: Any = entry
    for key in path:
        value = value.get(key)
        if value is None:
            return ""
    scaled = value / unit
    return f"{scaled:.0f}" if abs(scaled) >= 1000 else f"{scaled:.4g}"


def _show_failures(case: Report, console: Console) -> None:
    """What did not hold or raised. A gate that passed is in the record, not on the screen."""
    for check in case["checks"]:
        if not check["passed"]:
            console.print(
                f"GATE FAILED, not timed: {case['name']}: {check['what']} is "
                f"{check['value']:.3g}, the limit is {check['limit']:.3g}",
                style="bold red",
                highlight=False,
            )
    if case["error"]:
        last = case["error"].strip().splitlines()[-1]
        console.print(
            f"BROKE, not timed (the record has the traceback): {case['name']}: {last}",
            style="bold red",
            highlight=False,
            markup=False,
        )


def _show_bars(case: Report, console: Console) -> None:
    for bar in case["bars"]:
        verdict = "met" if bar["met"] else "MISSED"
        reached = "not timed" if bar["value"] is None else f"{bar['value']:.3g} {bar['what']}"
        console.print(
            f"bar {bar['bar']:g} {verdict}: {case['name']}: {reached}",
            style="green" if bar["met"] else "red",
            highlight=False,
        )
