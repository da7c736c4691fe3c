"""`deeplab evaluate`: the scores of weights on a data set, and predictions for its server."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deeplab.cli.dataset import class_names, open_data
from deeplab.cli.shared import options
from deeplab.cli.shared.network import load_network, stored_settings, torch_device
from deeplab.cli.shared.results import errors_of, print_notes
from deeplab.cli.shared.several import said_once
from deeplab.data import outputs
from deeplab.data.conversions import Conversion, counted
from deeplab.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from deeplab.data.datasets import PredictionLayout, SegmentationData
    from deeplab.evaluation.evaluate import Evaluation


class Absent(StrEnum):
    """How a class counts that is neither in the truth nor predicted."""

    skip = "skip"
    zero = "zero"


class Around(StrEnum):
    """What the bands of a trimap curve lie around."""

    void = "void"
    boundary = "boundary"


def evaluate(
    ctx: typer.Context,
    weights: options.Weights = None,
    model: options.ModelName = None,
    classes: options.NumClasses = None,
    msc: options.MSC = None,
    data: options.DataName = "scenes",
    root: options.DataRoot = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel="Data",
            help="Which part of it.",
            show_default="val; of the scenes test",
        ),
    ] = None,
    data_options: options.DataOptions = None,
    scenes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel="Data",
            help="How many generated scenes, from the first on.",
            show_default="50",
        ),
    ] = None,
    scales: options.Scales = "1",
    flip: options.Flip = False,
    device: options.Device = "auto",
    absent: Annotated[
        Absent,
        typer.Option(
            help="A class that neither occurs nor is predicted: left out of the means, or 0 as in "
            "the VOC kit."
        ),
    ] = Absent.skip,
    trimap: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the trimap curve: FILE.csv and, with matplotlib, FILE.png.",
            show_default=False,
        ),
    ] = None,
    trimap_widths: Annotated[
        str, typer.Option(metavar="W,W,...", help="Its widths in pixels.")
    ] = "1,2,4,6,8,10,15,20,25,30,35,40",
    trimap_around: Annotated[
        Around | None,
        typer.Option(
            help="Bands around the void labels that VOC draws about objects, or around class "
            "boundaries.",
            show_default="void for voc2012, else boundary",
        ),
    ] = None,
    submission: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write the predictions as the data set's own server takes them, and the archive "
            "to upload: of VOC 2012 DIR/results.tgz, of Cityscapes DIR/results.zip.",
            show_default=False,
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write the predictions of any set as DIR/NAME.png, label maps in the values of "
            "the set's own.",
            show_default=False,
        ),
    ] = None,
    score: Annotated[
        bool,
        typer.Option(
            "--score/--no-score",
            help="Without scores no labels are read, which a test split may lack: with "
            "--submission or --predictions.",
        ),
    ] = True,
    use_crf: options.UseCRF = True,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the scores as JSON too.", show_default=False),
    ] = None,
    save_confusion: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="Write the confusion matrix: rows true, columns predicted.",
            show_default=False,
        ),
    ] = None,
    crf_file: options.CRFFile = None,
    iterations: options.Iterations = None,
    gaussian_weight: options.GaussianWeight = None,
    gaussian_sigma: options.GaussianSigma = None,
    bilateral_weight: options.BilateralWeight = None,
    bilateral_sigma_xy: options.BilateralSigmaXY = None,
    bilateral_sigma_rgb: options.BilateralSigmaRGB = None,
) -> None:
    """Score weights on a data set, before and after the CRF; by default on generated scenes.

    mIoU is that of one confusion matrix over all pictures. The band mIoU counts only the pixels
    near class boundaries, where thin structures are won or lost; the trimap curve does so for
    bands of many widths. With --scales and --flip the probabilities of several views are averaged.
    Files of the final labels (--submission, --predictions, --save-confusion) are the CRF's, unless
    --no-crf.
    CRF options as in deeplab segment. On several GPUs: torchrun --nproc-per-node 4 -m deeplab
    evaluate ...

    **Examples**

    ```text
    deeplab evaluate
    deeplab evaluate --weights mine.safetensors --no-crf --scenes 200 --out scores.json
    deeplab evaluate --weights voc.safetensors --data voc2012 --root VOCdevkit/VOC2012 --split val
    deeplab evaluate --weights voc.safetensors --data voc2012 --root VOC2012 --trimap curve.csv \\
        --scales 0.5,0.75,1 --flip --crf-settings crf.toml
    deeplab evaluate --weights voc.safetensors --data voc2012 --root VOC2012 --split test \\
        --no-score --submission upload
    deeplab evaluate --weights mine.safetensors --data folder --root mine --split test \\
        --no-score --predictions found
    ```
    """
    from deeplab.data.datasets.base import Recording
    from deeplab.evaluation.evaluate import evaluate as run
    from deeplab.evaluation.plots import require_matplotlib
    from deeplab.evaluation.submission import PredictionFiles
    from deeplab.training.distributed import processes

    views = options.view_scales(scales)
    widths = () if trimap is None else _widths(trimap_widths)
    if not score:
        _check_without_scores(submission or predictions, trimap, out, save_confusion)
    pictures, split = open_data(
        data, root, split, data_options, scenes, usual="test", labelled=score
    )
    torch_device(device)  # refuses unknown names
    network, metadata = load_network(weights, model, classes, msc)
    names = class_names(network, pictures, metadata, weights)
    settings = options.chosen_settings(ctx, crf_file, stored_settings(weights, metadata))
    curve = None if trimap is None else _curve_file(trimap)
    for file in (out, save_confusion, curve):
        if file is not None:
            outputs.check_writable_file(file)
    if curve is not None and trimap is not None and trimap.suffix == ".png":
        require_matplotlib()
    recorded, written = Recording(pictures), []
    if submission is not None:
        server = _server(data, pictures)
        written.append(PredictionFiles(submission, pictures, split, server))
    if predictions is not None:
        written.append(PredictionFiles(predictions, pictures, split))

    def write(index: int, labels: np.ndarray) -> None:
        for files in written:
            files.write(index, labels)

    with said_once(then="mend that and start again"), processes(device) as process:
        network.to(process.device)
        layer = settings.layer(network.num_classes).to(process.device) if use_crf else None
        progress = sys.stderr.isatty() and process.first
        if not score:
            if process.world > 1:
                raise InputError("--no-score: one process writes all predictions; start one")
            with errors_of(pictures.name):
                recorded.conversions |= _predict_all(
                    network, pictures, layer, views, flip, write, progress
                )
        else:
            around = trimap_around or ("void" if data == "voc2012" else "boundary")
            try:
                with errors_of(pictures.name):
                    result = run(
                        network,
                        recorded,
                        layer,
                        class_names=names,
                        absent=absent.value,
                        trimap=widths,
                        around=str(around),  # type: ignore[arg-type]
                        scales=views,
                        flip=flip,
                        on_prediction=write if written else None,
                        shard=True,
                        progress=progress,
                    )
            except FloatingPointError as error:
                raise InputError(f"{weights or 'the shipped weights'}: {error}") from error
            if process.first:
                table = _score_table(result, f"{pictures.name}, {len(pictures)} pictures")
                Console(markup=False).print(table)  # a class may be called [/b]
                if note := result.truth(pictures.name).note():
                    typer.echo(f"Note: {note}", err=True)
        conversions = set().union(*process.gather(recorded.conversions))
        if not process.first:
            return
        print_notes(counted(conversions))
    for files in written:
        typer.echo(f"{len(pictures)} predictions -> {files.pack()}")
    if not score:
        return
    if curve is not None:
        _write_curve(curve, result, str(around))
    if save_confusion is not None:
        outputs.write_text(save_confusion, _confusion_csv(result, names))
    if out is not None:
        about: dict[str, Any] = {
            "weights": str(weights or "shipped"),
            "model": network.config,
            "data": data,
            "split": split,
            "scales": list(views),
            "flip": flip,
            "absent": absent.value,
            "crf_settings": asdict(settings) if use_crf else None,
            "version": version("deeplab-triton"),
        }
        outputs.write_text(out, json.dumps(about | result.as_dict(), indent=2) + "\n")


def _predict_all(
    network: Any,
    pictures: Any,
    layer: Any,
    scales: tuple[float, ...],
    flip: bool,
    write: Callable[[int, np.ndarray], None],
    progress: bool,
) -> set[Conversion]:
    """Predictions of a split whose labels are not known; what was converted in its pictures."""
    from deeplab.evaluation.evaluate import progress_bar
    from deeplab.predict import predict

    bar = progress_bar()
    bar.disable = not progress
    found: set[Conversion] = set()
    with bar:
        for index in bar.track(range(len(pictures)), description="predict"):
            image, conversions = pictures.picture(index)
            found.update(conversions)
            with errors_of(pictures.file(index)):
                write(index, predict(network, image, layer, scales=scales, flip=flip).labels)
    return found


def _server(name: str, pictures: SegmentationData) -> PredictionLayout:
    if pictures.server is None:
        raise InputError(
            f"--submission: no evaluation server is known for {name}; --predictions DIR writes "
            "label maps in the values of the set's own"
        )
    return pictures.server


def _check_without_scores(folder: Path | None, *scores: Path | None) -> None:
    if folder is None:
        raise InputError(
            "--no-score: leaves nothing to do; give --submission DIR or --predictions DIR too"
        )
    given = zip(("--trimap", "--out", "--save-confusion"), scores, strict=True)
    if unused := [name for name, file in given if file is not None]:
        raise InputError(f"--no-score: leaves nothing for {', '.join(unused)}; leave it out")


def _curve_file(path: Path) -> Path:
    """The CSV file, whether its name is given, that of the plot beside it, or neither's suffix."""
    if not path.name:
        raise InputError(f"--trimap {path}: expected the name of a file, such as curve.csv")
    known = path.suffix in (".csv", ".png")
    return path.with_name(f"{path.stem if known else path.name}.csv")


def _widths(text: str) -> tuple[int, ...]:
    widths = options.numbers("--trimap-widths", text)
    if any(w != int(w) or w < 1 for w in widths) or sorted(set(widths)) != list(widths):
        raise InputError(f"--trimap-widths {text}: expected rising whole numbers from 1 up")
    return tuple(int(w) for w in widths)


def _write_curve(path: Path, result: Evaluation, around: str) -> None:
    from deeplab.evaluation.plots import plot_trimap, require_matplotlib
    from deeplab.evaluation.trimap import curves_csv

    assert result.trimap is not None
    if all(value is None for value in result.trimap["network"].miou):
        typer.echo(
            f"Note: no pixel lies in a band around {around} labels; the curve is empty, try "
            "--trimap-around boundary",
            err=True,
        )
    outputs.write_text(path, curves_csv(result.trimap))
    picture = path.with_suffix(".png")
    try:
        require_matplotlib()
    except InputError as error:
        typer.echo(f"Note: {picture} is not drawn: {error}", err=True)
    else:
        plot_trimap(picture, result.trimap)


def _confusion_csv(result: Evaluation, names: list[str]) -> str:
    """The matrix of the final labels: a row for each true class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["true \\ predicted", *names])
    matrix = result.confusion["network" if result.crf is None else "crf"].matrix
    writer.writerows([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))
    return text.getvalue()


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
