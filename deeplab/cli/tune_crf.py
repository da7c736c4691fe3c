"""`deeplab tune-crf`: the CRF settings that suit weights and a data set."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deeplab.cli.shared import options
from deeplab.cli.shared.dataset import class_names, open_data
from deeplab.cli.shared.groups import takes_options
from deeplab.cli.shared.network import load_network, named_weights, torch_device
from deeplab.cli.shared.options import option
from deeplab.cli.shared.results import named_errors, print_notes
from deeplab.data import outputs
from deeplab.data.conversions import counted
from deeplab.errors import InputError

if TYPE_CHECKING:
    from rich.progress import Progress

    from deeplab.evaluation.logit_cache import LogitCache
    from deeplab.evaluation.tune_crf import Point, Scored, Space, Tuner, Tuning


FOLDS = 5
_TRIED, _RANGE = "What is tried", "LOW:STEP:HIGH|V,V,..."
MOST = 10_000  # settings of a coarse grid: more are a slip, or would take weeks


Search = StrEnum("Search", ["grid", "tpe"])


def _values(name: str, what: str) -> Any:
    return option("LOW:STEP:HIGH|V,V,...", what, name, panel=_TRIED)


@takes_options
def tune_crf(
    *,
    weights: options.WeightsOptions,
    data: options.DataOptions,
    split: Annotated[
        str,
        options.split_option("Which part of it; not the one that the final scores come from."),
    ] = "val",
    images: Annotated[
        int, option("N", "How many pictures, drawn at random (--seed).", panel="Data")
    ] = 100,
    scale: Annotated[
        float,
        option("S", "The scale at which the model sees a picture, as evaluate --scales has it."),
    ] = 1.0,
    out: Annotated[
        Path,
        option(
            "DIR", "Folder for crf.toml, heatmap.png, results.jsonl (to resume from) and logits."
        ),
    ] = Path("out/crf"),
    cache: Annotated[
        Path | None, option("DIR", "Another folder for the logits.", shown="OUT/logits")
    ] = None,
    search: Annotated[
        Search,
        typer.Option(
            rich_help_panel=_TRIED,
            help="grid: all values, then finer ones around the best, as in the papers; tpe: as "
            "optuna proposes, between the lowest and the highest values.",
        ),
    ] = Search.grid,
    bilateral_weight: Annotated[str, option(_RANGE, "w1.", panel=_TRIED)] = "3:1:6",
    bilateral_sigma_xy: Annotated[
        str, option(_RANGE, "sigma_alpha, pixels.", panel=_TRIED)
    ] = "30:10:100",
    bilateral_sigma_rgb: Annotated[
        str, option(_RANGE, "sigma_beta, levels.", panel=_TRIED)
    ] = "3:1:6",
    rounds: Annotated[int, option("N", "With grid: how many finer rounds.", panel=_TRIED)] = 2,
    trials: Annotated[int, option("N", "With tpe: how many settings.", panel=_TRIED)] = 60,
    folds: Annotated[
        int | None,
        option(
            "K",
            "Parts of the cross-validation.",
            shown="5, or the number of pictures where there are fewer",
        ),
    ] = None,
    seed: Annotated[int, option("N", "Of the drawn pictures, and of tpe.")] = 0,
    device: options.Device = "auto",
    smoothness: options.SmoothnessOptions,
) -> None:
    """Find the CRF settings that give the best mIoU on a part of a data set.

    The network runs once over the pictures; its logits are kept on disk. Each setting of weight
    and widths of the appearance kernel is then scored on all of them. The smoothness kernel stays
    at 3 / 3 pixels and the iterations at 10, unless told otherwise.

    Besides the best settings it tells the held-out score: for each fold the search is made again
    without its pictures, and the fold scored with what that search chose. If it is well below the
    best score, more pictures are needed. The coarse grid serves all these searches; finer rounds of
    at most 26 settings cost more where a search looks elsewhere, and with tpe each has trials of
    its own after the first ten.

    Every result is on disk before the next setting starts: the same command goes on after Ctrl-C
    or a crash, and with more --rounds or --trials it adds to what is there.

    **Examples**

    ```text
    deeplab tune-crf --weights voc.safetensors --data voc2012 --root VOCdevkit/VOC2012
    deeplab segment photo.jpg --weights voc.safetensors --crf-settings out/crf/crf.toml
    deeplab tune-crf --images 20 --bilateral-weight 6:2:12 --bilateral-sigma-xy 60,90,120 \\
        --gaussian-weight 1 --gaussian-sigma-xy 1
    deeplab tune-crf --search tpe --trials 40
    ```
    """
    from deeplab.crf_settings import CRFSettings
    from deeplab.data.datasets.base import Recording
    from deeplab.evaluation.logit_cache import LogitCache
    from deeplab.evaluation.tune_crf import Log, Space, Tuner, log_identity
    from deeplab.predict import check_scales

    space = Space(
        axis("--bilateral-weight", bilateral_weight, zero=True),
        axis("--bilateral-sigma-xy", bilateral_sigma_xy),
        axis("--bilateral-sigma-rgb", bilateral_sigma_rgb),
    )
    if (settings := math.prod(len(values) for values in space.axes())) > MOST:
        raise InputError(
            f"--bilateral-...: {settings} settings, expected at most {MOST}; take larger steps, "
            "finer ones follow around the best (--rounds)"
        )
    fixed = smoothness.change(CRFSettings())
    for name, value, least in (
        ("--images", images, 2),
        ("--folds", FOLDS if folds is None else folds, 2),
        ("--rounds", rounds, 0),
        ("--trials", trials, 1),
        ("--seed", seed, 0),
    ):
        if value < least:
            raise InputError(f"{name} must be at least {least}, not {value}")
    try:
        check_scales([scale])
    except ValueError:
        raise InputError(f"--scale must be a number from 0.1 to 4, not {scale:g}") from None
    where = torch_device(device)
    scenes = images if data.name == "scenes" else None
    pictures, split = open_data(data, split, scenes, usual="val")
    indices = draw(len(pictures), images, seed)
    if len(indices) < 2:
        raise InputError(f"{pictures.name}: a single picture; cross-validation needs at least 2")
    if folds is not None and folds > len(indices):
        raise InputError(f"--folds {folds}: there are only {len(indices)} pictures; take fewer")
    parts = folds or min(FOLDS, len(indices))
    if folds is None and parts < FOLDS:
        typer.echo(f"Note: {len(indices)} pictures: {parts} folds instead of {FOLDS}", err=True)
    network, metadata = load_network(weights)
    class_names(network, pictures, metadata, weights.weights_file)
    if network.multilabel:
        raise InputError("tune-crf must have weights of one label a pixel, as a CRF gives it")
    outputs.check_writable(out)
    name = f"{pictures.name}, {len(indices)} of {len(pictures)} pictures"
    recorded = Recording(pictures)
    classes = outputs.NamedPalette(outputs.full_palette(pictures.palette), pictures.classes)
    folder = cache or out / "logits"
    logits = LogitCache(folder, network.to(where), recorded, indices, name, classes, scale)
    with named_weights(weights):
        _fill(logits)
    print_notes(counted(recorded.conversions))
    chance = {"seed": seed} if search is Search.tpe else {}
    about = log_identity(name, logits.identity(), fixed, search.value, space, folds=parts, **chance)
    log = Log(out / "results.jsonl", about)
    if log.results:
        typer.echo(f"Note: {len(log.results)} settings are known from {log.path}", err=True)
    with named_errors(pictures.name):
        tuner = Tuner(logits, network.num_classes, fixed, log, folds=parts, device=where)
        _search(tuner, space, search, rounds, trials, seed)
        tuning = tuner.tuning()
    _report(tuning, tuner, space, out, f"{name}, seen at scale {scale:g}")


def axis(name: str, text: str, zero: bool = False) -> tuple[float, ...]:
    """Rising values from LOW:STEP:HIGH (HIGH included) or a list; InputError names the option."""
    expected = f"{name} {text} must be LOW:STEP:HIGH or numbers with commas, such as 30:10:100"
    try:
        numbers = [float(part) for part in text.split(":" if ":" in text else ",")]
    except ValueError:
        raise InputError(expected) from None
    if ":" not in text:
        values = sorted(set(numbers))
    else:
        low, step, high = numbers if len(numbers) == 3 else (1.0, 0.0, 0.0)
        if not (step > 0 and low <= high and (high - low) / step < 1000):
            raise InputError(f"{expected}, with LOW below HIGH and fewer than 1000 steps")
        values = [low + k * step for k in range(int((high - low) / step + 1e-6) + 1)]
    if not all(0 < v < float("inf") or (zero and v == 0) for v in values):
        raise InputError(f"{name} {text} must be numbers above 0")
    return tuple(float(f"{v:.6g}") for v in values)


def draw(count: int, wanted: int, seed: int) -> list[int]:
    """`wanted` of `count` indices at random, rising; all where there are no more."""
    import numpy as np

    if wanted >= count:
        return list(range(count))
    return sorted(np.random.default_rng(seed).choice(count, wanted, replace=False).tolist())


def _fill(logits: LogitCache) -> None:
    with _bar() as bar:
        for _ in bar.track(logits.fill(), total=len(logits), description="network"):
            pass


def _search(
    tuner: Tuner, space: Space, search: Search, rounds: int, trials: int, seed: int
) -> None:
    from deeplab.evaluation.tune_crf import RANDOM

    count, seconds = len(tuner.pictures), 0.0
    with _bar() as bar:
        task = bar.add_task("tuning", total=0)
        tuner.on_picture = lambda: bar.advance(task)
        if search is Search.grid:
            stages = tuner.grid(space, rounds)
        else:
            stages = tuner.tpe(space, trials, seed)
            most = trials + tuner.folds * max(0, trials - RANDOM) - len(tuner.log.results)
            if most > 0:
                seconds = _seconds_of_one(tuner, space.grid()[0])
                what = f"at most {most} settings, {trials} in each search"
                _print_estimate(bar, what, most, count, seconds)
        for stage in stages:
            waiting = len(stage.waiting)
            bar.update(task, description=stage.name, completed=0, total=waiting * count)
            if waiting and search is Search.grid:
                seconds = seconds or _seconds_of_one(tuner, stage.waiting[0])
                _print_estimate(bar, f"{stage.name}: {waiting} settings", waiting, count, seconds)


def _seconds_of_one(tuner: Tuner, point: Point) -> float:
    """How long the CRF takes on one picture, once its kernels are compiled."""
    import torch

    cached, layer = tuner.pictures[0], tuner.settings(point).layer(tuner.num_classes)
    scores, image = cached.logits.to(tuner.device), cached.image.to(tuner.device)
    taken = 0.0
    for _ in range(2):
        start = time.perf_counter()
        with torch.inference_mode():
            layer.to(tuner.device)(scores, image).sum().item()
        taken = time.perf_counter() - start
    return taken


def _print_estimate(bar: Progress, what: str, settings: int, pictures: int, seconds: float) -> None:
    minutes = settings * pictures * seconds / 60
    bar.console.print(
        f"Note: {what}, {pictures} pictures, {seconds:.2f} s each: about {minutes:.1f} minutes",
        soft_wrap=True,
        highlight=False,
    )


def _report(tuning: Tuning, tuner: Tuner, space: Space, out: Path, name: str) -> None:
    """The table and the files."""
    typer.echo(f"The best of {len(tuning.results)} settings on {name}:")
    table = Table()
    for column in ("weight", "sigma xy", "sigma rgb", "mIoU (%)"):
        table.add_column(column, justify="right")
    for result in tuning.results[:5]:
        table.add_row(*(f"{v:g}" for v in result.point), f"{100 * result.miou():.2f}")
    Console().print(table)
    best, (mean, spread) = tuning.best, tuning.fold_scores()
    alone, held_out = tuning.alone.miou(), tuning.held_out()
    typer.echo(
        f"mIoU {100 * alone:.2f} without the CRF, {100 * best.miou():.2f} with the best settings; "
        f"over {tuner.folds} folds {100 * mean:.2f} +- {100 * spread:.2f}; held out "
        f"{100 * held_out:.2f}"
    )
    for edge in space.on_edge(best.point):
        typer.echo(
            f"Note: --{edge.replace('_', '-')}: the best value lies at an end of what was tried; "
            "try further",
            err=True,
        )
    settings = tuner.settings(best.point)
    comment = (
        f"# deeplab tune-crf: mIoU {100 * best.miou():.2f} on {' '.join(name.split())}; held out "
        f"{100 * held_out:.2f}, without the CRF {100 * alone:.2f}\n"
    )
    outputs.write_text(out / "crf.toml", comment + settings.to_toml())
    _draw(tuning.results, space, out / "heatmap.png")
    typer.echo(f"-> {out / 'crf.toml'}, {out / 'heatmap.png'}")


def _draw(results: Sequence[Scored], space: Space, path: Path) -> None:
    """The plane of the best weight: of the grid, and of the finer rounds where it is another."""
    from deeplab.evaluation.plots import HeatMap, plot_heat_maps, plot_scatter, require_matplotlib
    from deeplab.evaluation.tune_crf import heat_map

    try:
        require_matplotlib()
    except InputError as error:
        typer.echo(f"Note: {path} is not drawn: {error}", err=True)
        return
    grid = set(space.grid())
    coarse = [result for result in results if result.point in grid]
    best = [max(some, key=lambda r: r.miou()) for some in (coarse, results) if some]
    weights = {result.point[0] for result in best}
    if coarse:
        some = (coarse, results) if len(weights) == 2 else (results,)
        planes = [(max(r, key=lambda x: x.miou()).point[0], heat_map(r)) for r in some]
        plot_heat_maps(path, [HeatMap(f"bilateral weight {w:g}", *p) for w, p in planes])
    else:
        points = [result.point for result in results]
        xy, rgb = [p[1] for p in points], [p[2] for p in points]
        title = "all settings, at their own weights"
        plot_scatter(path, xy, rgb, [r.miou() for r in results], title)


def _bar() -> Progress:
    """A bar with the time left, on standard error where it is seen."""
    from deeplab.evaluation.evaluate import progress_bar

    return progress_bar(sys.stderr.isatty())
