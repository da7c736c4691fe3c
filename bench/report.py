"""Show a run as tables, and keep it as a JSON record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console, JustifyMethod
from rich.table import Table

Report = dict[str, Any]

COLUMNS = (
    "case",
    "candidate",
    *("p20 ms", "p50 ms", "p80 ms", "wall ms"),
    *("ours x", "of p50", "bar"),
    *("same label", "mean |dQ|"),
    *("peak MB", "GB/s", "GFLOP/s", "TFLOP/s", "x floor"),
)


def write_record(record: Report, folder: Path) -> Path:
    """Write the record under a name made of its date, commit and comparisons; give its path."""
    folder.mkdir(parents=True, exist_ok=True)
    date = record["date"].replace("-", "").replace(":", "").split("+")[0]
    names = "-".join(dict.fromkeys(each["name"] for each in record["comparisons"]))
    commit = (record["commit"]["id"] or "unknown")[:7]
    kind = "-quick" if record["quick"] else ""
    path = folder / f"{date}-{commit}-{names}{kind}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def show(comparison: Report, console: Console) -> None:
    """Print one comparison: a table of times, then probes, what failed, bars and notes."""
    console.print()
    console.print(_times(comparison))
    for probe in comparison["probes"]:
        _show_probe(probe, console)
    for case in comparison["cases"]:
        _show_gate(case, console)
    for case in comparison["cases"]:
        _show_bars(case, console)
    if comparison["left_out"]:
        console.print(
            f"LEFT OUT, the time was up: {', '.join(comparison['left_out'])}", style="yellow"
        )
    for note in dict.fromkeys(note for case in comparison["cases"] for note in case["notes"]):
        console.print(f"note: {note}", style="yellow", highlight=False)


def _times(comparison: Report) -> Table:
    table = Table(
        title=f"{comparison['name']} on the {comparison['device']}",
        caption=comparison["description"],
        title_justify="left",
        caption_justify="left",
    )
    tera = comparison["device"] == "cuda"
    rows = [
        (case, ["" if number else case["name"], name, *_row(case, entry, number == 0, tera)])
        for case in comparison["cases"]
        for number, (name, entry) in enumerate(case["candidates"].items())
    ]
    used = [column for column in range(len(COLUMNS)) if any(row[column] for _, row in rows)]
    for column in used:
        justify: JustifyMethod = "left" if column < 2 else "right"
        table.add_column(COLUMNS[column], justify=justify, no_wrap=True)
    for case, row in rows:
        last = row[1] == list(case["candidates"])[-1]
        table.add_row(*(row[column] for column in used), end_section=last)
    return table


def _row(case: Report, entry: Report, is_ours: bool, tera: bool) -> list[str]:
    if not case["passed"]:
        return ["[red]not timed[/]"] + [""] * (len(COLUMNS) - 3)
    seconds = entry.get("seconds", {})
    faster = entry.get("ours_is_faster_by", {})
    rate = entry.get("operations_per_second")
    quality = entry.get("quality", {})
    return [
        *(_number(seconds.get(p), 1e3) for p in ("p20", "p50", "p80")),
        _number(entry.get("wall", {}).get("p50"), 1e3),
        _number(faster.get("median_of_pairs"), 1),
        _number(faster.get("ratio_of_p50"), 1),
        _bar(case, entry, is_ours),
        _share(quality.get("same_label")),
        _number(quality.get("mean_error"), 1),
        _number(entry.get("peak_bytes"), 1e-6),
        _number(entry.get("bytes_per_second"), 1e-9),
        "" if tera else _number(rate, 1e-9),
        _number(rate, 1e-12) if tera else "",
        _number(entry.get("times_the_floor"), 1),
    ]


def _bar(case: Report, entry: Report, is_ours: bool) -> str:
    """What a peer's ratio, or ours to the floor, is held against, in the colour of the verdict."""
    bar = case["floor_bar"] if is_ours else case["bar"]
    reached = entry.get("times_the_floor") if is_ours else entry.get("bar_met")
    if bar is None or reached is None:
        return ""
    met = reached <= bar if is_ours else reached
    return f"{'[green]' if met else '[red]'}{bar:g}x{' floor' if is_ours else ''}[/]"


def _number(value: float | None, scale: float) -> str:
    """Three digits, or nothing where there is no figure."""
    if value is None:
        return ""
    scaled = value * scale
    return f"{scaled:.0f}" if abs(scaled) >= 100 else f"{scaled:.3g}"


def _share(value: float | None) -> str:
    """A share close to 1, in percent with two decimals."""
    return "" if value is None else f"{100 * value:.2f}%"


def _show_probe(probe: Report, console: Console) -> None:
    figures = ", ".join(
        f"{name} {_number(value, 1)} {probe['unit']}{_verdict(probe, name)}"
        for name, value in probe["figures"].items()
    )
    console.print(f"{probe['name']}: {figures}", highlight=False)


def _verdict(probe: Report, name: str) -> str:
    if name not in probe["bars"]:
        return ""
    met = "met" if probe["bars_met"][name] else "[red]missed[/]"
    return f" (bar {probe['bars'][name]:g}: {met})"


def _show_gate(case: Report, console: Console) -> None:
    """What did not hold or broke. A gate that passed is in the record, not on the screen."""
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
