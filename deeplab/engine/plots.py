"""Pictures of results, drawn with matplotlib where it is installed: trimap curves, heat maps."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeplab.data.outputs import write_bytes
from deeplab.engine.trimap import TrimapCurve
from deeplab.errors import InputError


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
    figure, axes = _figure(6.0, 4.0)
    around = "the void band" if next(iter(curves.values())).around == "void" else "a class boundary"
    for name, curve in curves.items():
        scores = [np.nan if value is None else 100 * value for value in curve.miou]
        axes.plot(curve.widths, scores, marker="o", markersize=3, label=name)
    axes.set_xlabel(f"pixels from {around}")
    axes.set_ylabel("mIoU (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def plot_heat_map(
    path: Path,
    sigma_xy: Sequence[float],
    sigma_rgb: Sequence[float],
    miou: np.ndarray,
    title: str,
) -> None:
    """mIoU over sigma_xy (rows) and sigma_rgb (columns), NaN where nothing was tried, as PNG."""
    rows, columns = miou.shape
    figure, axes = _figure(2.5 + 0.7 * columns, 2.0 + 0.45 * rows)
    shown = axes.imshow(100 * miou, aspect="auto", origin="lower", cmap="viridis")
    middle = 50 * (np.nanmin(miou) + np.nanmax(miou))
    for row, column in np.argwhere(np.isfinite(miou)):
        value = 100 * miou[row, column]
        colour = "white" if value < middle else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(columns), [f"{value:g}" for value in sigma_rgb])
    axes.set_yticks(range(rows), [f"{value:g}" for value in sigma_xy])
    axes.set_xlabel("bilateral sigma rgb (levels)")
    axes.set_ylabel("bilateral sigma xy (pixels)")
    axes.set_title(title, fontsize=9)
    figure.colorbar(shown, label="mIoU (%)")
    _save(figure, path)


def plot_scatter(
    path: Path,
    sigma_xy: Sequence[float],
    sigma_rgb: Sequence[float],
    miou: Sequence[float],
    title: str,
) -> None:
    """Settings off any grid as points whose colour is the mIoU, as PNG."""
    figure, axes = _figure(6.0, 4.5)
    order = np.argsort(miou)  # the best on top
    xy, rgb, values = (np.asarray(x)[order] for x in (sigma_xy, sigma_rgb, miou))
    shown = axes.scatter(rgb, xy, c=100 * values, cmap="viridis", s=60, edgecolors="black")
    axes.set_xlabel("bilateral sigma rgb (levels)")
    axes.set_ylabel("bilateral sigma xy (pixels)")
    axes.set_title(title, fontsize=9)
    figure.colorbar(shown, label="mIoU (%)")
    _save(figure, path)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    require_matplotlib()
    from matplotlib.figure import Figure  # not pyplot: no window, no state of the whole process

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _save(figure: Any, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_bytes(path, content.getvalue())
