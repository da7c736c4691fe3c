"""`deeplab evaluate`: the scores of weights on generated scenes."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from deeplab.cli import options
from deeplab.cli.network import load_network, stored_settings
from deeplab.cli.results import errors_of
from deeplab.data import outputs
from deeplab.errors import InputError

if TYPE_CHECKING:
    from deeplab.engine.evaluate import Evaluation


class Split(StrEnum):
    """Which scenes to evaluate on."""

    test = "test"
    validation = "validation"


def evaluate(
    ctx: typer.Context,
    weights: options.Weights = None,
    model: options.ModelName = None,
    classes: options.NumClasses = None,
    split: Annotated[
        Split,
        typer.Option(help="Scenes kept for testing only, or those that training validates on."),
    ] = Split.test,
    scenes: Annotated[int, typer.Option(metavar="N", help="How many, from the first on.")] = 50,
    use_crf: options.UseCRF = True,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the scores as JSON too.", show_default=False),
    ] = None,
    iterations: options.Iterations = None,
    gaussian_weight: options.GaussianWeight = None,
    gaussian_sigma: options.GaussianSigma = None,
    bilateral_weight: options.BilateralWeight = None,
    bilateral_sigma_xy: options.BilateralSigmaXY = None,
    bilateral_sigma_rgb: options.BilateralSigmaRGB = None,
) -> None:
    """Score weights on generated scenes that no training has seen, before and after the CRF.

    mIoU is that of one confusion matrix over all scenes; a class that never occurs is left out. The
    band mIoU counts only the pixels near class boundaries, where thin structures are won or lost.
    CRF options as in deeplab segment.

    **Examples**

    ```text
    deeplab evaluate
    deeplab evaluate --weights mine.safetensors --no-crf
    deeplab evaluate --scenes 200 --bilateral-weight 5 --out scores.json
    ```
    """
    from deeplab.data import scenes as data
    from deeplab.engine.evaluate import evaluate as run

    first = data.TEST_START if split is Split.test else data.VALIDATION_START
    most = data.TEST_START - data.VALIDATION_START
    if not 1 <= scenes <= most:
        raise InputError(f"--scenes: expected 1 to {most}, got {scenes}")
    network, metadata = load_network(weights, model, classes)
    if network.num_classes != len(data.CLASSES):
        raise InputError(
            f"{weights}: weights for {network.num_classes} classes, the scenes have "
            f"{len(data.CLASSES)}; evaluate weights that were trained on the scenes"
        )
    settings = stored_settings(weights, metadata).changed(options.crf_settings(ctx))
    if out is not None:
        outputs.check_writable_file(out)
    about_scenes = f"{split.value} scenes {first} to {first + scenes - 1}"
    try:
        with errors_of(about_scenes):
            result = run(
                network,
                data.ScenesDataset(first, scenes),
                settings.layer(network.num_classes) if use_crf else None,
                class_names=data.CLASSES,
                progress=sys.stderr.isatty(),
            )
    except FloatingPointError as error:
        raise InputError(f"{weights or 'the shipped weights'}: {error}") from error
    Console().print(_score_table(result, about_scenes))
    if out is not None:
        about = {
            "weights": str(weights or "shipped"),
            "model": network.config,
            "split": split.value,
            "first_scene": first,
            "crf_settings": asdict(settings) if use_crf else None,
            "version": version("deeplab-triton"),
        }
        outputs.write_text(out, json.dumps(about | result.as_dict(), indent=2) + "\n")


def _score_table(result: Evaluation, title: str) -> Table:
    """Rows: mIoU and its kin, then the IoU of each class; columns: before and after the CRF."""
    table = Table(title=f"Scores (%) on {title}")
    table.add_column("score")
    columns = [scores for scores in (result.network, result.crf) if scores is not None]
    for name in ("before", "after")[: len(columns)]:
        table.add_column(name, justify="right")

    def row(name: str, values: list[float | None]) -> None:
        table.add_row(name, *("-" if v is None else f"{100 * v:.2f}" for v in values))

    row("mIoU", [scores.miou for scores in columns])
    row(f"band mIoU, {result.band} pixels", [scores.band_miou for scores in columns])
    row("pixel accuracy", [scores.pixel_accuracy for scores in columns])
    row("mean accuracy", [scores.mean_accuracy for scores in columns])
    table.add_section()
    for name in result.network.iou:
        row(f"IoU {name}", [scores.iou[name] for scores in columns])
    return table
