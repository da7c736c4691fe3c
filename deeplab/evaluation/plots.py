"""Pictures of results, drawn with matplotlib where it is installed: curves, heat maps."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deeplab.data.outputs import write_bytes
from deeplab.errors import InputError
from deeplab.evaluation.trimap import TrimapCurve

LEGEND = 24  # classes that a legend names
BESIDE = 4  # curves up to which their legend lies among them
BESIDE_AXES: dict[str, Any] = {
    "loc": "upper left",
    "bbox_to_anchor": (1.0, 1.0),
    "fontsize": 8,
    "frameon": False,
}
CELLS = 40  # classes up to which a confusion matrix has numbers


def require_matplotlib() -> None:
    """Raise InputError, which tells how to install it, where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            "matplotlib draws this and is not installed: pip install 'deeplab-triton[plots]'"
        ) from None


def plot_trimap(path: Path, curves: Mapping[str, TrimapCurve]) -> None:
    """mIoU against the width of the band, a line for each curve, as PNG or SVG by the name."""
    many = len(curves) > BESIDE
    figure = _figure(9.0 if many else 6.0, 4.0)
    axes = figure.subplots()
    axes.set_prop_cycle(color=_colours(len(curves)))
    around = "the void band" if next(iter(curves.values())).around == "void" else "a class boundary"
    for name, curve in curves.items():
        scores = [np.nan if value is None else 100 * value for value in curve.miou]
        axes.plot(curve.widths, scores, marker="o", markersize=3, label=name)
    axes.set_xlabel(f"pixels from {around}")
    axes.set_ylabel("mIoU (%)")
    axes.grid(alpha=0.3)
    axes.legend(**(BESIDE_AXES if many else {}))
    _save(figure, path)


@dataclass(frozen=True)
class HeatMap:
    """mIoU `[rows, columns]` over sigma_xy (rows) and sigma_rgb (columns); NaN: not tried."""

    title: str
    sigma_xy: Sequence[float]
    sigma_rgb: Sequence[float]
    miou: np.ndarray


def plot_heat_maps(path: Path, maps: Sequence[HeatMap]) -> None:
    """Heat maps side by side with one scale of colours, as PNG."""
    rows = max(len(one.sigma_xy) for one in maps)
    columns = sum(len(one.sigma_rgb) for one in maps)
    low = 100 * min(float(np.nanmin(one.miou)) for one in maps)
    high = 100 * max(float(np.nanmax(one.miou)) for one in maps)
    figure = _figure(1.5 + 1.5 * len(maps) + 0.7 * columns, 2.0 + 0.45 * rows)
    ratios = [len(one.sigma_rgb) + 1 for one in maps]
    axes = figure.subplots(1, len(maps), squeeze=False, width_ratios=ratios)[0]
    for axis, one in zip(axes, maps, strict=True):
        values = 100 * one.miou
        shown = axis.imshow(
            values, aspect="auto", origin="lower", cmap="viridis", vmin=low, vmax=high
        )
        for row, column in np.argwhere(np.isfinite(values)):
            value = values[row, column]
            colour = "white" if value < (low + high) / 2 else "black"
            text = f"{value:.2f}"
            axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
        axis.set_xticks(range(len(one.sigma_rgb)), [f"{v:g}" for v in one.sigma_rgb])
        axis.set_yticks(range(len(one.sigma_xy)), [f"{v:g}" for v in one.sigma_xy])
        axis.set_xlabel("bilateral sigma rgb (levels)")
        axis.set_ylabel("bilateral sigma xy (pixels)")
        axis.set_title(one.title, fontsize=9)
    figure.colorbar(shown, ax=axes, label="mIoU (%)")
    _save(figure, path)


def plot_scatter(
    path: Path,
    sigma_xy: Sequence[float],
    sigma_rgb: Sequence[float],
    miou: Sequence[float],
    title: str,
) -> None:
    """Settings off any grid as points whose colour is the mIoU, as PNG."""
    figure = _figure(6.0, 4.5)
    axes = figure.subplots()
    order = np.argsort(miou)  # the best on top
    xy, rgb, values = (np.asarray(x)[order] for x in (sigma_xy, sigma_rgb, miou))
    shown = axes.scatter(rgb, xy, c=100 * values, cmap="viridis", s=60, edgecolors="black")
    axes.set_xlabel("bilateral sigma rgb (levels)")
    axes.set_ylabel("bilateral sigma xy (pixels)")
    axes.set_title(title, fontsize=9)
    figure.colorbar(shown, label="mIoU (%)")
    _save(figure, path)


def plot_training(
    path: Path,
    steps: Sequence[int],
    curves: Mapping[str, Sequence[float]],
    classes: Mapping[str, Sequence[float]],
) -> None:
    """A run at a glance: loss, learning rate, mIoU and the IoU of each class over steps, as PNG.

    curves: "loss", "lr" and "miou"; classes: IoU by name. NaN where nothing is known at a step.
    """
    figure = _figure(12.0, 8.0)
    loss, rate, miou, classwise = figure.subplots(2, 2).ravel()
    _line(loss, steps, curves["loss"])
    loss.set_title("loss (running mean)")
    _line(rate, steps, curves["lr"])
    rate.set_title("learning rate")
    rate.ticklabel_format(axis="y", scilimits=(-2, 3))
    scores = 100 * np.asarray(curves["miou"], float)
    _line(miou, steps, scores, marker="o", color="tab:green")
    miou.set_title("mIoU of the validations (%)")
    if np.isfinite(scores).any():
        best = int(np.nanargmax(scores))
        label = f"best: {scores[best]:.2f} at step {steps[best]}"
        miou.axhline(scores[best], color="grey", linewidth=0.8, linestyle=":", label=label)
        miou.legend(loc="best")
    _class_lines(classwise, steps, classes)
    classwise.set_title("IoU of each class (%)")
    for axes in (loss, rate, miou, classwise):
        axes.grid(alpha=0.3)
        axes.set_xlabel("step")
    _save(figure, path, dpi=100)


def _line(axes: Any, steps: Sequence[int], values: npt.ArrayLike, **style: Any) -> None:
    """Through the points that are known, without gaps."""
    numbers = np.asarray(values, float)
    known = np.isfinite(numbers)
    axes.plot(np.asarray(steps)[known], numbers[known], **({"markersize": 4} | style))


def _class_lines(axes: Any, steps: Sequence[int], classes: Mapping[str, Sequence[float]]) -> None:
    """A line for each class, the best of the last validation first in the legend."""
    import matplotlib

    known = {n: v for n, v in classes.items() if np.isfinite(np.asarray(v, float)).any()}
    ends = {name: 100 * _last(values) for name, values in known.items()}
    order = sorted(known, key=lambda name: -ends[name])
    colours = matplotlib.colormaps["tab20"]
    for number, name in enumerate(order):
        style = ("-", "--", ":", "-.")[number // 20 % 4]
        label = f"{_shortened(name)}  {ends[name]:.1f}" if number < LEGEND else None
        values = 100 * np.asarray(known[name], float)
        _line(
            axes,
            steps,
            values,
            color=colours(number % 20),
            linestyle=style,
            label=label,
            marker=".",
        )
    if order:
        more = len(order) - LEGEND
        title = f"and {more} more" if more > 0 else None
        axes.legend(**BESIDE_AXES, title=title)


def plot_confusion(path: Path, matrix: np.ndarray, names: Sequence[str]) -> None:
    """Rows of true, columns of predicted classes, each row as shares of its pixels, as PNG.

    matrix: counts `[C, C]`. Shares stand in the cells up to `CELLS` classes.
    """
    total = matrix.sum(1, keepdims=True)
    shares = np.where(total > 0, 100 * matrix / np.maximum(total, 1), np.nan)
    classes = len(names)
    side = min(3.0 + 0.42 * classes, 24.0)
    figure = _figure(side + 1.0, side)
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    if classes <= CELLS:
        for row, column in np.argwhere(shares >= 0.5):
            share = shares[row, column]
            colour = "white" if share > 55 else "black"
            axes.text(
                column, row, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=8
            )
    size = min(8.0, 45 * side / classes)
    labels = [_shortened(name) for name in names]
    axes.set_xticks(range(classes), labels, rotation=90, fontsize=size)
    axes.set_yticks(range(classes), labels, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    figure.colorbar(shown, ax=axes, label="% of the true class's pixels", shrink=0.8, fraction=0.04)
    _save(figure, path, dpi=110)


def _last(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return known[-1]


def _shortened(name: str) -> str:
    """A name for a legend or an axis; dollars would begin a formula there."""
    return (name if len(name) <= 24 else f"{name[:23]}…").replace("$", r"\$")


def _colours(count: int) -> list[Any]:
    """Of so many lines, ten that are easy to tell apart or more."""
    from matplotlib import colormaps

    colours = colormaps["tab10" if count <= 10 else "tab20"]
    return [colours(number) for number in range(colours.N)]


def _figure(width: float, height: float) -> Any:
    require_matplotlib()
    from matplotlib.figure import Figure  # not pyplot: no window, no state of the whole process

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path, dpi: int = 150) -> None:
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:] or "png", dpi=dpi)
    write_bytes(path, content.getvalue())
