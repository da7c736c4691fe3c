"""Draw the time of each candidate against its error, from a record of compare.py.

    python bench/pareto.py bench/records/DATE-COMMIT-crf.json --out pareto.png

One panel a problem; a point is one way to compute it, its bar from p20 to p80. Left and low is
better. Candidates without a stated error are left out.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str]) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("record", type=Path, help="a JSON record that compare.py wrote")
    parser.add_argument("--out", type=Path, default=Path("pareto.png"), help="PNG, SVG or PDF")
    options = parser.parse_args(arguments)
    try:
        record = json.loads(options.record.read_text())
        panels = list(panels_of(record))
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"{options.record}: no record of compare.py ({error!r})")
    if not panels:
        parser.error(f"{options.record}: no case states an error; run bench/compare.py crf")
    try:
        draw(panels, options.out)
    except ImportError:
        parser.error("drawing needs matplotlib: pip install '.[plots]'")
    except (OSError, ValueError) as error:
        parser.error(f"--out {options.out}: {error}")
    return 0


Point = dict[str, Any]


def panels_of(record: dict[str, Any]) -> Iterator[tuple[str, list[Point]]]:
    """(problem, points) of each problem: cases that differ in the method alone are one."""
    panels: dict[str, dict[str, Point]] = {}
    for comparison in record["comparisons"]:
        for case in comparison["cases"]:
            for name, entry in case["candidates"].items():
                if "quality" not in entry or "seconds" not in entry:
                    continue
                problem = " ".join(case["name"].split()[:2])
                title = f"{problem} on the {comparison['device']}"
                point = {"name": name, **entry["seconds"], **entry["quality"]}
                panels.setdefault(title, {}).setdefault(name, point)
    for title, points in panels.items():
        yield title, list(points.values())


def draw(panels: Sequence[tuple[str, list[Point]]], out: Path) -> None:
    """Write the picture; ImportError without matplotlib."""
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.5 * columns, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, (title, points) in zip(axes, panels, strict=False):
        for point in points:
            low, middle, high = (1e3 * point[p] for p in ("p20", "p50", "p80"))
            spread = [[middle - low], [high - middle]]
            error = max(point["mean_error"], 1e-8)  # the exact method has none
            axis.errorbar(middle, error, xerr=spread, fmt="o", capsize=2)
            axis.annotate(
                point["name"], (middle, error), textcoords="offset points", xytext=(5, 4), size=8
            )
        axis.set(title=title, xlabel="ms a call", ylabel="mean |dQ| from exact mean field")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
    for axis in list(axes)[len(panels) :]:
        axis.set_visible(False)
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
