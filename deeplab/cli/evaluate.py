"""`deeplab evaluate`: the scores of weights on a data set, and predictions for its server."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deeplab.cli.shared import options
from deeplab.cli.shared.dataset import class_names, open_data
from deeplab.cli.shared.groups import takes_options
from deeplab.cli.shared.network import (
    check_tiles,
    load_network,
    named_weights,
    refuse_crf,
    torch_device,
    torch_precision,
)
from deeplab.cli.shared.options import option
from deeplab.cli.shared.results import named_errors, print_notes
from deeplab.cli.shared.several import reported_once
from deeplab.data import outputs
from deeplab.data.conversions import Conversion, counted
from deeplab.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from deeplab.data.datasets import SegmentationData
    from deeplab.evaluation.evaluate import Evaluation
    from deeplab.evaluation.submission import PredictionFiles
    from deeplab.predict import Predictor


Absent = StrEnum("Absent", ["skip", "zero"])
Around = StrEnum("Around", ["void", "boundary"])


@dataclass(frozen=True)
class TrimapOptions:
    """The trimap curve: where it goes, and its bands."""

    trimap: Annotated[
        Path | None,
        option(
            "FILE", "Write the trimap curve: FILE.csv and, with matplotlib, FILE.png.", shown=False
        ),
    ] = None
    trimap_widths: Annotated[str, option("W,W,...", "Its widths in pixels.")] = (
        "1,2,4,6,8,10,15,20,25,30,35,40"
    )
    trimap_around: Annotated[
        Around | None,
        typer.Option(
            help="Bands around the void labels that VOC draws about objects, or around class "
            "boundaries.",
            show_default="void for voc2012, else boundary",
        ),
    ] = None

    def widths(self) -> tuple[int, ...]:
        """The widths in pixels; none where no curve is wanted."""
        if self.trimap is None:
            return ()
        widths = options.numbers("--trimap-widths", self.trimap_widths)
        if any(w != int(w) or w < 1 for w in widths) or sorted(set(widths)) != list(widths):
            raise InputError(
                f"--trimap-widths {self.trimap_widths} must be rising whole numbers from 1 up"
            )
        return tuple(int(w) for w in widths)

    def csv_file(self) -> Path | None:
        """The CSV file, whether its name is given, the plot's beside it, or one without suffix."""
        path = self.trimap
        if path is None:
            return None
        if not path.name:
            raise InputError(f"--trimap {path} must be the name of a file, such as curve.csv")
        known = path.suffix in (".csv", ".png")
        return path.with_name(f"{path.stem if known else path.name}.csv")

    def around(self, data_name: str) -> Any:
        """What the bands lie around, by default as is usual for the data set."""
        usual = Around.void if data_name == "voc2012" else Around.boundary
        return (self.trimap_around or usual).value


@dataclass(frozen=True)
class PredictionOptions:
    """Predictions as files, with scores or without."""

    submission: Annotated[
        Path | None,
        option(
            "DIR",
            "Write the predictions as the data set's own server takes them, and the archive "
            "to upload: of VOC 2012 DIR/results.tgz, of Cityscapes DIR/results.zip.",
            shown=False,
        ),
    ] = None
    predictions: Annotated[
        Path | None,
        option(
            "DIR",
            "Write the predictions of any set as DIR/NAME.png, label maps in the values of "
            "the set's own.",
            shown=False,
        ),
    ] = None
    score: Annotated[
        bool,
        typer.Option(
            "--score/--no-score",
            help="Without scores no labels are read, which a test split may lack: with "
            "--submission or --predictions.",
        ),
    ] = True

    def check_unscored(self, score_files: dict[str, Path | None]) -> None:
        """Raise InputError where nothing is scored and a file of scores, or nothing, is wanted."""
        if self.score:
            return
        if self.submission is None and self.predictions is None:
            raise InputError(
                "--no-score: leaves nothing to do; give --submission DIR or --predictions DIR too"
            )
        if unused := [name for name, file in score_files.items() if file is not None]:
            raise InputError(f"--no-score: leaves nothing for {', '.join(unused)}; leave it out")

    def open(self, name: str, pictures: SegmentationData, split: str) -> list[PredictionFiles]:
        """Where the predictions go."""
        from deeplab.evaluation.submission import PredictionFiles

        files = []
        if self.submission is not None:
            if pictures.server is None:
                raise InputError(
                    f"--submission: no evaluation server is known for {name}; --predictions DIR "
                    "writes label maps in the values of the set's own"
                )
            files.append(PredictionFiles(self.submission, pictures, split, pictures.server))
        if self.predictions is not None:
            files.append(PredictionFiles(self.predictions, pictures, split))
        return files


@dataclass(frozen=True)
class ReportOptions:
    """A folder for the eye."""

    report: Annotated[
        Path | None,
        option(
            "FOLDER",
            "Write a report: index.html with the scores, the classes, the confusion matrix and the "
            "worst pictures; the same as files beside it. Replaces an earlier report.",
            shown=False,
        ),
    ] = None
    report_pictures: Annotated[
        int,
        typer.Option(min=0, max=200, metavar="N", help="How many of the worst pictures it shows."),
    ] = 24


@takes_options
def evaluate(
    *,
    weights: options.WeightsOptions,
    data: options.DataOptions,
    split: Annotated[
        str | None, options.split_option("Which part of it.", shown="val; of the scenes test")
    ] = None,
    scenes: Annotated[
        int | None,
        option("N", "How many generated scenes, from the first on.", panel="Data", shown="50"),
    ] = None,
    threshold: options.Threshold = None,
    views: options.ViewOptions,
    tile: Annotated[
        int | None,
        option(
            "PIXELS",
            "Cut larger pictures into overlapping tiles of at most so many pixels a side.",
            shown="whole pictures",
        ),
    ] = None,
    overlap: options.Overlap = 384,
    precision: options.Precision = "float32",
    device: options.Device = "auto",
    absent: Annotated[
        Absent,
        typer.Option(
            help="A class that neither occurs nor is predicted: left out of the means, or 0 as in "
            "the VOC kit."
        ),
    ] = Absent.skip,
    trimap: TrimapOptions,
    files: PredictionOptions,
    use_crf: options.UseCRF = True,
    out: Annotated[
        Path | None, option("FILE", "Write the scores as JSON too.", shown=False)
    ] = None,
    save_confusion: Annotated[
        Path | None,
        option(
            "FILE.csv", "Write the confusion matrix: rows true, columns predicted.", shown=False
        ),
    ] = None,
    report: ReportOptions,
    crf: options.CRFOptions,
) -> None:
    """Score weights on a data set, before and after the CRF; by default on generated scenes.

    mIoU is that of one confusion matrix over all pictures. The band mIoU counts only the pixels
    near class boundaries, where thin structures are won or lost; the trimap curve does so for
    bands of many widths. With --scales and --flip the probabilities of several views are averaged.
    Files of the final labels (--submission, --predictions, --save-confusion, and the classes and
    pictures of --report) are the CRF's, unless --no-crf.
    Of several labels a pixel (with --no-crf) the IoU of a class is that of its thresholded masks.
    CRF options as in deeplab segment. On several GPUs: torchrun --nproc-per-node 4 -m deeplab
    evaluate ...

    **Examples**

    ```text
    deeplab evaluate
    deeplab evaluate --weights mine.safetensors --no-crf --scenes 200 --out scores.json
    deeplab evaluate --weights voc.safetensors --data voc2012 --root VOCdevkit/VOC2012 --split val
    deeplab evaluate --weights mine.safetensors --data folder --root mine --report report
    deeplab evaluate --weights voc.safetensors --data voc2012 --root VOC2012 --trimap curve.csv \\
        --scales 0.5,0.75,1 --flip --crf-settings crf.toml
    deeplab evaluate --weights voc.safetensors --data voc2012 --root VOC2012 --split test \\
        --no-score --submission upload
    deeplab evaluate --weights mine.safetensors --data folder --root mine --split test \\
        --no-score --predictions found
    deeplab evaluate --weights bands.safetensors --data folder --root mine --data-option bands=6
    ```
    """
    from deeplab.crf_settings import CRFSettings
    from deeplab.data.datasets.base import Recording, Remembering
    from deeplab.distributed import processes
    from deeplab.evaluation.evaluate import evaluate as score
    from deeplab.evaluation.plots import require_matplotlib
    from deeplab.evaluation.report import ReportFolder, WorstPictures
    from deeplab.precision import chosen
    from deeplab.predict import Predictor, check_threshold

    scales, widths, curve = views.numbers(), trimap.widths(), trimap.csv_file()
    score_files = {"--trimap": curve, "--out": out, "--save-confusion": save_confusion}
    files.check_unscored(score_files | {"--report": report.report})
    pictures, split = open_data(data, split, scenes, usual="test", labelled=files.score)
    torch_device(device)  # refuses unknown names
    computes_in = torch_precision(precision)
    network, metadata = load_network(weights)
    names = class_names(network, pictures, metadata, weights.weights_file)
    refuse_crf(network, use_crf)
    try:
        check_threshold(threshold, network)
    except ValueError as error:
        raise InputError(f"--{error}") from error
    if network.multilabel:
        one_label = {
            "--trimap": curve,
            "--submission": files.submission,
            "--predictions": files.predictions,
            "--save-confusion": save_confusion,
            "--report": report.report,
        }
        if unfit := [name for name, file in one_label.items() if file is not None]:
            raise InputError(
                f"{unfit[0]} must be left out for several labels a pixel; deeplab segment writes "
                "their masks"
            )
    check_tiles(network, scales, tile, overlap)
    settings = crf.change(CRFSettings.stored(metadata, weights.weights_file))
    for file in score_files.values():
        if file is not None:
            outputs.check_writable_file(file)
    if trimap.trimap is not None and trimap.trimap.suffix == ".png":
        require_matplotlib()
    recorded, around = Recording(pictures), trimap.around(data.name)
    written = files.open(data.name, pictures, split)
    told = [each.write for each in written]
    remembered = Remembering(recorded)
    if report.report is not None:
        others = (*score_files.values(), files.submission, files.predictions)
        folder = ReportFolder(report.report, pictures, filter(None, others))
        worst = WorstPictures(
            remembered, pictures, network.preprocessing, report.report_pictures, settings.bands
        )
        told.append(worst.add)

    def write(index: int, labels: np.ndarray) -> None:
        for tell in told:
            tell(index, labels)

    with reported_once(then="mend that and start again"), processes(device) as process:
        network.to(process.device)
        layer = settings.refiner(network.num_classes).to(process.device) if use_crf else None
        progress = sys.stderr.isatty() and process.first
        if files.score:
            with named_weights(weights), named_errors(pictures.name):
                result = score(
                    network,
                    remembered,
                    layer,
                    class_names=names,
                    absent="zero" if absent is Absent.zero else "skip",
                    trimap=widths,
                    around=around,
                    scales=scales,
                    flip=views.flip,
                    precision=computes_in,
                    bands=settings.bands,
                    threshold=threshold,
                    tile=tile,
                    overlap=overlap,
                    on_prediction=write if told else None,
                    shard=True,
                    progress=progress,
                )
        elif process.world > 1:
            raise InputError("--no-score: one process writes all predictions; start one")
        else:
            with named_errors(pictures.name):
                recorded.conversions |= _predict_all(
                    Predictor(
                        network,
                        layer,
                        scales=scales,
                        flip=views.flip,
                        precision=computes_in,
                        bands=settings.bands,
                        threshold=threshold,
                        tile=tile,
                        overlap=overlap,
                    ),
                    pictures,
                    write,
                    progress,
                )
        conversions = set().union(*process.gather(recorded.conversions))
        if report.report is not None:
            found = worst.joined(process.gather(worst.found))
        if not process.first:
            return
        if files.score:
            _print_scores(result, pictures)
        print_notes(counted(conversions))
    for each in written:
        typer.echo(f"{len(pictures)} predictions -> {each.pack()}")
    if curve is not None:
        _write_curve(curve, result, around)
    if save_confusion is not None:
        outputs.write_text(save_confusion, _confusion_csv(result, names))
    if out is not None or report.report is not None:
        about: dict[str, Any] = {
            "weights": str(weights.weights_file or "shipped"),
            "model": network.config,
            "data": data.name,
            "split": split,
            "scales": list(scales),
            "flip": views.flip,
            "threshold": threshold,
            "tile": tile,
            "overlap": None if tile is None else overlap,
            "precision": str(chosen(computes_in, process.device)).removeprefix("torch."),
            "absent": absent.value,
            "crf_settings": settings.as_dict() if use_crf else None,
            "version": version("deeplab-triton"),
        }
    if out is not None:
        outputs.write_text(out, json.dumps(about | result.as_dict(), indent=2) + "\n")
    if report.report is not None:
        folder.write(result, found, about)
        typer.echo(f"report -> {report.report / 'index.html'}")


def _predict_all(
    predictor: Predictor,
    pictures: SegmentationData,
    write: Callable[[int, np.ndarray], None],
    progress: bool,
) -> set[Conversion]:
    """Predictions of a split whose labels are not known; what was converted in its pictures."""
    from deeplab.evaluation.evaluate import progress_bar

    found: set[Conversion] = set()
    with progress_bar(progress) as bar:
        for index in bar.track(range(len(pictures)), description="predict"):
            image, conversions = pictures.picture(index)
            found.update(conversions)
            with named_errors(pictures.file(index)):
                write(index, predictor(image, probabilities=False).labels)
    return found


def _print_scores(result: Evaluation, pictures: SegmentationData) -> None:
    table = _score_table(result, f"{pictures.name}, {len(pictures)} pictures")
    Console(markup=False).print(table)  # a class may be called [/b]
    if note := result.truth(pictures.name).note():
        typer.echo(f"Note: {note}", err=True)


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
