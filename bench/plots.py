"""Plots of records of compare.py, as SVG: the CRF a core for a core, its methods, the pipelines.

    crf_cores         time of a call of pydensecrf2 and of ours, by sigmas and number of labels
    crf_methods       time of a picture against the error, for each method of the CRF
    image_to_labels   time of a picture by steps, for each pipeline

A page may be dark or light: the background is transparent, and every colour stands out on both.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

TEXT = "#797979"
OURS, PEER = "#2f81f7", "#8b8f95"
NETWORK, UPSAMPLING, REST = "network", "upsampling", "not timed apart"
STEPS = {NETWORK: OURS, UPSAMPLING: "#b98000", "CRF": "#2da44e", REST: PEER}
NO_ERROR = 1e-8  # where an error of 0 is drawn
TIMES = "times as fast"
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "deeplab-triton",  # the same record gives the same file
    "font.family": "sans-serif",
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": TEXT,
    "axes.titlesize": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "legend.frameon": False,
}

Case = Mapping[str, Any]
Bars = dict[str, dict[str, float]]  # of a row its parts, in ms


def draw(comparisons: Sequence[Case], folder: Path) -> list[Path]:
    """Write the plots that these comparisons have figures for; ImportError without matplotlib."""
    import matplotlib

    drawn: dict[str, tuple[Callable[[Any], Any], Mapping[str, Any]]] = {
        "crf_cores": (_draw_cores, cores(comparisons)),
        "crf_methods": (_draw_methods, methods(comparisons)),
        "image_to_labels": (_draw_pipelines, pipelines(comparisons)),
    }
    written = []
    for name, (plot, panels) in drawn.items():
        if panels:
            path = folder / f"{name}.svg"
            with matplotlib.rc_context(STYLE):
                figure = plot(panels)
                figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
            written.append(path)
    return written


def cores(comparisons: Sequence[Case]) -> dict[str, dict[int, Bars]]:
    """By sigmas, by labels: ms of ours and of its peer, one thread each, and how many times as fast
    ours is (TIMES): the median over pairs of calls, as tables have it."""
    panels: dict[str, dict[int, Bars]] = {}
    for _, case in _timed(comparisons, "crf"):
        facts, entries = case["facts"], case["candidates"]
        whole = case["cost"] is not None
        if whole and case.get("threads") == 1 and "labels" in facts and len(entries) == 2:
            title = (
                f"{facts['width']}x{facts['height']}, sigmas {facts['sigma_xy']} pixels, "
                f"{facts['sigma_rgb']} levels"
            )
            bars = {name: {"": _ms(entry)} for name, entry in entries.items()}
            (lead,) = (e["ours_is_faster_by"] for e in entries.values() if "ours_is_faster_by" in e)
            bars[next(iter(bars))][TIMES] = lead["median_of_pairs"]
            panels.setdefault(title, {})[facts["labels"]] = bars
    return panels


def methods(comparisons: Sequence[Case]) -> dict[str, dict[str, dict[str, float]]]:
    """By problem, by method: ms of a picture (p20, p50, p80), and the mean error.

    On a CPU of the labelled pictures, on a GPU of the photographs.
    """
    panels: dict[str, dict[str, dict[str, float]]] = {}
    for name, device in (("accuracy", "cpu"), ("crf", "cuda")):
        for comparison, case in _timed(comparisons, name):
            if comparison["device"] != device:
                continue
            facts = case["facts"]
            images = facts.get("pictures", facts.get("batch", 1))
            of = facts.get("of") or f"{facts.get('sigma_xy')}/{facts.get('sigma_rgb')} on a GPU"
            for method, entry in case["candidates"].items():
                error = entry.get("quality", {}).get("mean_error")
                if error is not None and "seconds" in entry:
                    title = f"{of}, {facts['width']}x{facts['height']}"
                    times = {p: 1e3 * t / images for p, t in entry["seconds"].items()}
                    panels.setdefault(title, {})[method] = {**times, "error": error}
    return panels


def pipelines(comparisons: Sequence[Case]) -> dict[str, Bars]:
    """By task, by pipeline: ms of a picture in each step; together they are the time of the whole.

    Steps that were timed apart add up to nearly it, and are scaled to it; where not all of them
    were, the rest is what is left.
    """
    panels: dict[str, Bars] = {}
    totals: dict[tuple[str, str], float] = {}
    for _, case in _timed(comparisons, "model"):
        facts = case["facts"]
        if "step" not in facts:
            continue
        title = "{body}, {side}x{side}, batch {batch}".format(**facts)
        for name, entry in case["candidates"].items():
            ms = _ms(entry) / facts["batch"]
            if facts["step"] in STEPS:
                panels.setdefault(title, {}).setdefault(name, {})[facts["step"]] = ms
            else:
                totals[title, name] = ms
    for (title, name), total in totals.items():
        steps = panels.get(title, {}).get(name)
        if steps is None:
            continue
        known = STEPS.keys() - {REST} == steps.keys()
        if {NETWORK, UPSAMPLING} <= steps.keys():  # the last part of "network"
            steps[NETWORK] -= steps[UPSAMPLING]
        timed = sum(steps.values())
        scale = total / timed if known else min(1.0, total / timed)
        steps |= {step: scale * ms for step, ms in steps.items()}
        steps |= {} if known else {REST: total - scale * timed}
    return panels


def _timed(comparisons: Sequence[Case], name: str) -> Iterator[tuple[Case, Case]]:
    """The cases of the comparisons of a name that passed their gate and were timed."""
    for comparison in comparisons:
        for case in comparison["cases"] if comparison["name"] == name else ():
            if case["passed"] and any("seconds" in each for each in case["candidates"].values()):
                yield comparison, case


def _ms(entry: Mapping[str, Any]) -> float:
    found: float = 1e3 * entry["seconds"]["p50"]
    return found


def _figure(panels: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure of panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, height), layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False).flat)


def _draw_cores(panels: Mapping[str, Mapping[int, Bars]]) -> Any:
    figure, axes = _figure(len(panels), 4.2, 2.9)
    for axis, (title, by_labels) in zip(axes, panels.items(), strict=True):
        longest = max(ms[""] for bars in by_labels.values() for ms in bars.values())
        for row, (_, bars) in enumerate(sorted(by_labels.items())):
            (ours, mine), (peer, theirs) = ((name, ms[""]) for name, ms in bars.items())
            for offset, ms, colour, name in ((-0.2, theirs, PEER, peer), (0.2, mine, OURS, ours)):
                axis.barh(row + offset, ms, height=0.38, color=colour, label=name)
            text = f"{mine:.0f} ms, {bars[ours][TIMES]:.1f} times as fast"
            axis.text(mine + 0.02 * longest, row + 0.2, text, va="center", size="small")
            text = f"{theirs:.0f} ms"
            axis.text(theirs + 0.02 * longest, row - 0.2, text, va="center", size="small")
        axis.set_yticks(range(len(by_labels)), [f"{labels} labels" for labels in sorted(by_labels)])
        axis.set(title=title, xlabel="processor ms a call", xlim=(0, 1.35 * longest))
        axis.invert_yaxis()
    _legend(figure, axes)
    return figure


def _draw_methods(panels: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Any:
    figure, axes = _figure(len(panels), 4.8, 3.6)
    for axis, (title, points) in zip(axes, panels.items(), strict=True):
        for i, (name, point) in enumerate(points.items()):
            error = max(point["error"], NO_ERROR)
            spread = [[point["p50"] - point["p20"]], [point["p80"] - point["p50"]]]
            axis.errorbar(point["p50"], error, xerr=spread, fmt="o", color=OURS, capsize=2)
            text = f"{name} (no error)" if point["error"] == 0 else name
            above = {"xytext": (0, -14 if i % 2 else 7), "textcoords": "offset points"}
            axis.annotate(text, (point["p50"], error), size="small", ha="center", **above)
        axis.set(title=title, xlabel="ms a picture", ylabel="mean |dQ| from all pairs")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.margins(0.25)
    return figure


def _draw_pipelines(panels: Mapping[str, Bars]) -> Any:
    figure, axes = _figure(len(panels), 5.2, 2.6)
    for axis, (title, bars) in zip(axes, panels.items(), strict=True):
        for row, steps in enumerate(bars.values()):
            left = 0.0
            for step, ms in steps.items():
                axis.barh(row, ms, left=left, height=0.55, color=STEPS[step], label=step)
                left += ms
            axis.text(left, row, f" {left:.0f} ms", va="center", size="small")
        axis.set_yticks(range(len(bars)), list(bars))
        longest = max(sum(steps.values()) for steps in bars.values())
        axis.set(title=title, xlabel="ms a picture", xlim=(0, 1.2 * longest))
        axis.invert_yaxis()
    _legend(figure, axes)
    return figure


def _legend(figure: Any, axes: Sequence[Any]) -> None:
    """Below all panels, each name once."""
    pairs = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in axes]
    named = {label: handle for each in pairs for handle, label in each}
    figure.legend(
        named.values(), named, loc="outside lower center", ncols=len(named), fontsize="small"
    )
