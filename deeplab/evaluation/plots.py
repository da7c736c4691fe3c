"""Pictures of results, drawn with matplotlib where it is installed: trimap curves, heat maps."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deeplab.data.outputs import write_bytes
from deeplab.errors import InputError
from deeplab.evaluation.trimap import TrimapCurve


def require_matplotlib() -> None:
    """Raise InputError, which tells how to install it, where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            "matplotlib draws this and is not installed: pip install 'deeplab-triton[plots]'"
        ) from None


def plot_trimap(path: Path, curves: Mapping[str, TrimapCurve]) -> None:
    """mIoU against the width of the band, a line for each curve, as PNG."""
    figure = _figure(6.0, 4.0)
    axes = figure.subplots()
    around = "the void band" if next(iter(curves.values())).around == "void" else "a class boundary"
    for name, curve in curves.items():
        scores = [np.nan if value is None else 100 * value for value in curve.miou]
        axes.plot(curve.widths, scores, marker="o", markersize=3, label=name)
    axes.set_xlabel(f"pixels from {around}")
    axes.set_ylabel("mIoU (%)")
    axes.grid(alpha=0.3)
    axes.legend()
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


def _figure(width: float, height: float) -> Any:
    require_matplotlib()
    from matplotlib.figure import Figure  # not pyplot: no window, no state of the whole process

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_bytes(path, content.getvalue())
