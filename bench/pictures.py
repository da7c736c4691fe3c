"""Tables and plots of records of compare.py: report.md, and the SVGs that plots.py lists.

    python bench/pictures.py bench/records/DATE-COMMIT-*.json --out docs/measured

Where several records have a comparison on one kind of device, the last one counts. A plot without
figures in the records is not written, and this is said; what is made of `--quick` runs says so.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plots import draw
from report import read_record, rows, write_whole

PLOTS = {
    "crf_cores": "The dense CRF a core for a core: one thread of each side, processor time.",
    "crf_methods": "Time and error of the methods of `crf.DenseCRF`; left and low is better.",
    "image_to_labels": "From an image to its labels, by steps.",
}
MACHINE = ("cpu", "cores", "gpu")

Report = dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", type=Path, nargs="+", metavar="RECORD", help="of compare.py")
    parser.add_argument(
        "--out", type=Path, default=Path("measured"), metavar="DIR", help="default: measured"
    )
    options = parser.parse_args(arguments)
    try:
        newest = latest([(path.name, read_record(path)) for path in options.records])
        options.out.mkdir(parents=True, exist_ok=True)
        plots = draw([comparison for _, _, comparison in newest], options.out)
        write_whole(options.out / "report.md", markdown(newest, [path.stem for path in plots]))
    except ImportError:
        parser.error("drawing needs matplotlib: pip install '.[plots]'")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for name in sorted({*PLOTS} - {path.stem for path in plots}):
        print(f"{name}.svg is not written: the records have no figures for it")
    print(f"written: {', '.join(str(path) for path in [options.out / 'report.md', *plots])}")
    return 0


def latest(records: Sequence[tuple[str, Report]]) -> list[tuple[str, Report, Report]]:
    """(file, record, comparison): of each comparison and device the one of the last record."""
    found: dict[tuple[str, str], tuple[str, Report, Report]] = {}
    for file, record in sorted(records, key=lambda each: each[1]["date"]):
        for comparison in record["comparisons"]:
            found[comparison["name"], comparison["device"]] = file, record, comparison
    return list(found.values())


def markdown(newest: Sequence[tuple[str, Report, Report]], plots: Sequence[str]) -> str:
    """The report: the plots, then a table for each comparison, with where it was measured."""
    parts = ["# What was measured", "Made by `python bench/pictures.py` of records, not by hand."]
    parts += [f"{PLOTS[name]}\n\n![{PLOTS[name]}]({name}.svg)" for name in plots]
    for file, record, comparison in newest:
        parts += [f"## {comparison['name']} on the {comparison['device']}"]
        parts += [comparison["description"], _source(file, record), _table(comparison)]
        told = [*_failures(comparison), *_bars(comparison), *_notes(comparison)]
        parts += ["\n".join(f"- {line}" for line in told)] if told else []
    return "\n\n".join(parts) + "\n"


def _source(file: str, record: Report) -> str:
    """What a reader needs to measure it again."""
    commit, hardware = record["commit"], record["hardware"]
    changed = " and changes" if commit["dirty"] else ""
    machine = ", ".join(f"{name} {hardware[name]}" for name in MACHINE if hardware[name])
    versions = ", ".join(f"{name} {found}" for name, found in record["versions"].items() if found)
    quick = " A `--quick` run: to try, not to quote." if record["quick"] else ""
    return (
        f"`{record['command']}` on {record['date'][:10]}, {record['threads']} threads, commit "
        f"{(commit['id'] or 'unknown')[:7]}{changed} ({file}); {machine}; {versions}.{quick}"
    )


def _table(comparison: Report) -> str:
    headings, lines = rows(comparison)
    table = [["case", "candidate", *headings], ["---", "---", *["---:"] * len(headings)], *lines]
    cells = ([cell.replace("|", r"\|") for cell in line] for line in table)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _failures(comparison: Report) -> list[str]:
    return [
        f"**not timed**: {case['name']}: its outputs did not agree, or it broke"
        for case in comparison["cases"]
        if not case["passed"]
    ]


def _bars(comparison: Report) -> list[str]:
    """What was asked and what was reached."""
    return [
        f"asked for {bar['bar']:g} {bar['what']}, {'reached' if bar['met'] else 'MISSED'}: "
        + (f"{bar['value']:.3g}" if bar["value"] is not None else "not timed")
        + f" ({case['name']})"
        for case in comparison["cases"]
        for bar in case["bars"]
    ]


def _notes(comparison: Report) -> list[str]:
    notes = [note for case in comparison["cases"] for note in case["notes"]]
    left_out = [f"left out, the time was up: {name}" for name in comparison["left_out"]]
    return [*left_out, *dict.fromkeys(notes)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
