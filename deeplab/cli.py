"""The command line: `deeplab segment | refine | train | evaluate | demo`.

Results and tables go to standard output; notes, progress and errors to standard error. Exit status:
0 done; 2 bad input, with one line that says what to mend and nothing half-written; 130 Ctrl-C.

Everything that computes is imported inside the commands, so that `--help` answers quickly.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from typer.core import TyperCommand, TyperGroup

from deeplab.data import images, outputs
from deeplab.errors import InputError

if TYPE_CHECKING:
    from deeplab.engine.evaluate import Evaluation
    from deeplab.engine.predict import Prediction
    from deeplab.engine.refine import CRFSettings
    from deeplab.model import DeepLab

T = TypeVar("T")

SHIPPED_NOTE = (
    "the shipped weights know the generated scenes of deeplab.data.scenes only; for photographs "
    "give weights trained on photographs (--weights)"
)


class _Commands(TyperGroup):
    """Turns InputError into one line on standard error and status 2, Ctrl-C into status 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            typer.echo("Interrupted; every file written so far is complete.", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="deeplab",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The entry point of the `deeplab` script."""
    app(prog_name="deeplab")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deeplab-triton {version('deeplab-triton')}, torch {version('torch')}")
        raise typer.Exit


@app.callback()
def _top(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Semantic segmentation with DeepLab v1/v2 and a dense CRF.

    **First steps**

    ```text
    deeplab demo                          see what it does, on generated scenes
    deeplab segment photo.jpg             label every pixel of a picture
    deeplab refine photo.jpg marks.png    spread scribbles over a photograph
    ```

    Every command explains itself: deeplab COMMAND --help
    """


Weights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Weights (.safetensors).", show_default="the shipped"),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Which model the weights must belong to, such as deeplab_v2_resnet101.",
        show_default="the one that the weights name",
    ),
]
NumClasses = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="With --model: how many classes.",
        show_default="as the weights say",
    ),
]
UseCRF = Annotated[bool, typer.Option("--crf/--no-crf", help="Refine with the dense CRF.")]
OutFolder = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Folder for the results; made if missing.")
]
MaxMegapixels = Annotated[
    float, typer.Option(help="Refuse larger pictures (10^6 pixels), before they are decoded.")
]
SaveProbabilities = Annotated[
    bool,
    typer.Option(
        "--probabilities", help="Save the class probabilities too: float32 [C, H, W] as .npz."
    ),
]
Iterations = Annotated[
    int | None,
    typer.Option(metavar="N", rich_help_panel="CRF", help="Mean-field iterations."),
]
GaussianWeight = Annotated[
    float | None,
    typer.Option(metavar="W", rich_help_panel="CRF", help="Weight of the smoothness kernel."),
]
GaussianSigma = Annotated[
    float | None,
    typer.Option(metavar="PIXELS", rich_help_panel="CRF", help="Its width."),
]
BilateralWeight = Annotated[
    float | None,
    typer.Option(metavar="W", rich_help_panel="CRF", help="Weight of the appearance kernel."),
]
BilateralSigmaXY = Annotated[
    float | None,
    typer.Option(
        "--bilateral-sigma-xy", metavar="PIXELS", rich_help_panel="CRF", help="Its width in space."
    ),
]
BilateralSigmaRGB = Annotated[
    float | None,
    typer.Option(
        "--bilateral-sigma-rgb",
        metavar="LEVELS",
        rich_help_panel="CRF",
        help="Its width in colour, grey levels of 0-255.",
    ),
]


@app.command()
def segment(
    ctx: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...", help="Pictures, folders of pictures, or patterns in quotes."
        ),
    ],
    weights: Weights = None,
    model: ModelName = None,
    classes: NumClasses = None,
    use_crf: UseCRF = True,
    out: OutFolder = Path("out"),
    probabilities: SaveProbabilities = False,
    max_megapixels: MaxMegapixels = images.MAX_MEGAPIXELS,
    iterations: Iterations = None,
    gaussian_weight: GaussianWeight = None,
    gaussian_sigma: GaussianSigma = None,
    bilateral_weight: BilateralWeight = None,
    bilateral_sigma_xy: BilateralSigmaXY = None,
    bilateral_sigma_rgb: BilateralSigmaRGB = None,
) -> None:
    """Label every pixel of pictures: network, then dense CRF.

    For each picture NAME.jpg the output folder gets NAME_labels.png (a palette PNG whose pixel
    values are the class indices) and NAME_overlay.png (the classes laid over the picture). Grey,
    alpha, palette, CMYK and 16-bit pictures are converted, EXIF rotation is applied; both are said.
    All inputs are checked before the first result is written.

    CRF options left out are those stored with the weights, or else DeepLab v2's: 10 iterations,
    smoothness 3 / 3 pixels, appearance 4 / 49 pixels / 5 levels. Memory grows with the pixels of
    the largest picture: about 0.5 GB for each megapixel with the shipped weights.

    **Examples**

    ```text
    deeplab segment photo.jpg
    deeplab segment photos/ --out results --no-crf
    deeplab segment 'photos/**/*.png' --weights mine.safetensors --probabilities
    deeplab segment photo.jpg --bilateral-sigma-xy 67 --bilateral-sigma-rgb 3
    ```
    """
    from deeplab.engine.predict import predict

    files = images.find_images(inputs)
    network, metadata = _load_network(weights, model, classes)
    settings = _stored_settings(metadata).changed(_crf_options(ctx))
    layer = settings.layer(network.num_classes) if use_crf else None
    results = [_Result(out, name) for name in outputs.output_names(files)]
    _refuse_to_overwrite(files, results)
    outputs.check_writable(out)
    notes = [
        f"{file}: {note}"
        for file in _progress(files, "checking")
        for note in images.read_image(file, max_megapixels)[1]
    ]
    for note in [*notes, SHIPPED_NOTE] if weights is None else notes:
        _note(note)

    palette = outputs.full_palette(metadata.get("palette"))
    names = metadata.get("class_names")
    for file, result in _progress(list(zip(files, results, strict=True)), "segmenting"):
        start = time.perf_counter()
        image, _ = images.read_image(file, max_megapixels)
        try:
            prediction = predict(network, image, layer)
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
        result.write(image, prediction, palette, probabilities)
        _report(file, prediction, names, result, time.perf_counter() - start)


@app.command()
def refine(
    ctx: typer.Context,
    image_file: Annotated[Path, typer.Argument(metavar="IMAGE", help="The photograph.")],
    given: Annotated[
        Path,
        typer.Argument(
            metavar="ANNOTATION|PROBABILITIES",
            help="Scribbles as a picture of the same size, or probabilities (.npz, .npy).",
        ),
    ],
    indices: Annotated[
        bool,
        typer.Option(
            "--indices",
            help="The annotation's pixel values are class indices, 255 unsure (VOC's label maps), "
            "instead of colours.",
        ),
    ] = False,
    classes: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="With --indices: how many classes.", show_default="the highest + 1"
        ),
    ] = None,
    gt_prob: Annotated[
        float, typer.Option(metavar="P", help="How far scribbles are to be trusted.")
    ] = 0.7,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR|FILE.png",
            help="Folder for the results, or the name of the label map; the rest goes beside it.",
        ),
    ] = Path("out"),
    probabilities: SaveProbabilities = False,
    max_megapixels: MaxMegapixels = images.MAX_MEGAPIXELS,
    iterations: Iterations = None,
    gaussian_weight: GaussianWeight = None,
    gaussian_sigma: GaussianSigma = None,
    bilateral_weight: BilateralWeight = None,
    bilateral_sigma_xy: BilateralSigmaXY = None,
    bilateral_sigma_rgb: BilateralSigmaRGB = None,
) -> None:
    """The dense CRF alone: spread scribbles, or sharpen any network's probabilities.

    **Scribbles**: a picture of the photograph's size in which each colour is a label and
    black (or transparent) is unsure. Draw hard edges, save as PNG. A palette picture counts by its
    colours; with --indices by its values. Unsure pixels may get any label, and marked ones may
    change theirs (--gt-prob). CRF options left out: 5 iterations, smoothness 3 / 3 pixels,
    appearance 10 / 80 pixels / 13 levels, as in pydensecrf's example.

    **Probabilities**: float [C, H, W] or [H, W, C], summing to 1 over the classes, as
    .npy, or as .npz with one array or one named 'probabilities' (such as deeplab segment --no-crf
    --probabilities writes). CRF options left out: 10 iterations, smoothness 3 / 3 pixels,
    appearance 4 / 49 pixels / 5 levels.

    The output folder gets NAME_labels.png (values: the labels from 0 on; palette: the annotation's
    colours, or VOC's) and NAME_overlay.png, NAME being the photograph's.

    **Examples**

    ```text
    deeplab refine photo.jpg scribbles.png
    deeplab refine photo.jpg scribbles.png --out labels.png
    deeplab refine photo.jpg softmax.npz --out refined --iterations 5
    deeplab refine photo.jpg voc_labels.png --indices --classes 21 --gt-prob 0.9
    ```
    """
    from deeplab.engine import refine as crf_alone

    start = time.perf_counter()
    softmax_given = given.suffix.lower() in (".npy", ".npz")
    if softmax_given and indices:
        raise InputError(f"--indices: {given} holds probabilities, not an annotation; leave it out")
    if classes is not None and not indices:
        raise InputError(f"--classes {classes}: only counts with --indices; leave it out")
    defaults = crf_alone.CRFSettings() if softmax_given else crf_alone.SCRIBBLES
    settings = defaults.changed(_crf_options(ctx))
    result = _Result.at(out, outputs.output_names([image_file])[0])
    _refuse_to_overwrite([image_file, given], [result])
    outputs.check_writable(result.labels.parent)
    image, notes = images.read_image(image_file, max_megapixels)
    size = (image.shape[0], image.shape[1])
    palette, names = outputs.voc_palette(), None
    if softmax_given:
        softmax = crf_alone.read_probabilities(given, size)
        prediction = crf_alone.refine_probabilities(softmax, image, settings)
    else:
        if indices:
            annotation = crf_alone.read_indices(given, size, classes, max_megapixels)
        else:
            annotation = crf_alone.read_colours(given, size, max_megapixels)
        if annotation.colours is not None:
            palette = outputs.full_palette(annotation.colours)
            names = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in annotation.colours.tolist()]
        prediction = crf_alone.refine_scribbles(annotation, image, settings, gt_prob)
    for note in notes:
        _note(f"{image_file}: {note}")
    result.write(image, prediction, palette, probabilities)
    _report(image_file, prediction, names, result, time.perf_counter() - start)


class _ShowsRecipe(TyperCommand):
    """Shows the defaults of TrainConfig in the help: options left out are left to it."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from deeplab.engine.train import TrainConfig

        recipe = asdict(TrainConfig())
        for option in self.params:
            if option.name in recipe:
                option.show_default = str(recipe[option.name])  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


@app.command(cls=_ShowsRecipe)
def train(
    ctx: typer.Context,
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="The weights (.safetensors), rewritten as they improve."),
    ] = Path("weights.safetensors"),
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which model."),
    ] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Steps of SGD.")] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Samples in a step.")] = None,
    lr: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="First learning rate."),
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(metavar="N", help="Steps in which it rises."),
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(metavar="D", help="Of weights.")] = None,
    crop: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Side of a sample, 8k + 1."),
    ] = None,
    loss_stride: Annotated[
        int | None,
        typer.Option(
            metavar="1|8",
            help="Loss on every pixel, or on every eighth as in the papers.",
        ),
    ] = None,
    scenes: Annotated[
        int | None,
        typer.Option(metavar="N", help="Generated scenes to learn from."),
    ] = None,
    validation_scenes: Annotated[
        int | None, typer.Option(metavar="N", help="Scenes to validate on.")
    ] = None,
    validate_every: Annotated[
        int | None,
        typer.Option(metavar="STEPS", help="Validate and save so often."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="float32, bfloat16, or auto: bfloat16 where the processor has it.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Processes that prepare samples."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of initialisation and samples."),
    ] = None,
) -> None:
    """Train a model from scratch on generated scenes.

    Without options this is the recipe of the shipped weights: under an hour on two cores. The
    learning rate falls to 0 as the steps run out (poly policy). Ctrl-C ends after the step at hand,
    validates, saves and exits with 130. Own data: deeplab.engine.train from Python.

    **Examples**

    ```text
    deeplab train --out mine.safetensors
    deeplab train --steps 200 --scenes 200 --validation-scenes 10   a quick try
    deeplab evaluate --weights mine.safetensors
    ```
    """
    from deeplab.engine.train import TrainConfig
    from deeplab.engine.train import train as run

    given = {k: v for k, v in ctx.params.items() if k != "out" and v is not None}
    try:
        config = TrainConfig(**given)
    except ValueError as error:
        raise InputError(f"--{str(error).replace('_', '-')}") from error
    outputs.check_writable_file(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        result = run(config, out, progress=sys.stdout.isatty())
    except FloatingPointError as error:
        raise InputError(str(error)) from error
    typer.echo(
        f"{config.model}: {result.steps} of {config.steps} steps, loss {result.loss:.3f}, "
        f"mIoU {100 * result.metrics['miou']:.2f} on {config.validation_scenes} validation scenes "
        f"-> {out}"
    )
    if result.interrupted:
        raise typer.Exit(130)


class Split(StrEnum):
    """Which scenes to evaluate on."""

    test = "test"
    validation = "validation"


@app.command()
def evaluate(
    ctx: typer.Context,
    weights: Weights = None,
    model: ModelName = None,
    classes: NumClasses = None,
    split: Annotated[
        Split,
        typer.Option(help="Scenes kept for testing only, or those that training validates on."),
    ] = Split.test,
    scenes: Annotated[int, typer.Option(metavar="N", help="How many, from the first on.")] = 50,
    use_crf: UseCRF = True,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the scores as JSON too.", show_default=False),
    ] = None,
    iterations: Iterations = None,
    gaussian_weight: GaussianWeight = None,
    gaussian_sigma: GaussianSigma = None,
    bilateral_weight: BilateralWeight = None,
    bilateral_sigma_xy: BilateralSigmaXY = None,
    bilateral_sigma_rgb: BilateralSigmaRGB = None,
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

    if scenes < 1:
        raise InputError(f"--scenes: expected at least 1, got {scenes}")
    network, metadata = _load_network(weights, model, classes)
    if network.num_classes != len(data.CLASSES):
        raise InputError(
            f"{weights}: weights for {network.num_classes} classes, the scenes have "
            f"{len(data.CLASSES)}; evaluate weights that were trained on the scenes"
        )
    settings = _stored_settings(metadata).changed(_crf_options(ctx))
    if out is not None:
        outputs.check_writable_file(out)
    first = data.TEST_START if split is Split.test else data.VALIDATION_START
    result = run(
        network,
        data.ScenesDataset(first, scenes),
        settings.layer(network.num_classes) if use_crf else None,
        class_names=data.CLASSES,
        progress=sys.stdout.isatty(),
    )
    Console().print(_score_table(result, f"{split.value} scenes {first} to {first + scenes - 1}"))
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


@app.command()
def demo(
    out: OutFolder = Path("demo"),
) -> None:
    """Three generated scenes and one scribbled one: what the network finds, what the CRF adds.

    Prints mIoU against the exact masks before and after the CRF, for each scene and in total, and
    writes one picture, demo.png: image, truth, network, network + CRF, error. Takes seconds; needs
    nothing but this package.

    **Example**

    ```text
    deeplab demo --out demo
    ```
    """
    from deeplab.demo import run

    run(out, Console())


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


class _Result:
    """The files that one picture's prediction is written to."""

    def __init__(self, folder: Path, name: str) -> None:
        self.labels = folder / f"{name}_labels.png"
        self.overlay = folder / f"{name}_overlay.png"
        self.probabilities = folder / f"{name}_probabilities.npz"

    @classmethod
    def at(cls, place: Path, name: str) -> _Result:
        """In a folder, under that name; or where the label map's own name is given."""
        if place.suffix.lower() != ".png" or place.is_dir():
            return cls(place, name)
        result = cls(place.parent, place.stem)
        result.labels = place
        return result

    def write(
        self, image: np.ndarray, prediction: Prediction, palette: np.ndarray, everything: bool
    ) -> None:
        outputs.write_labels(self.labels, prediction.labels, palette)
        outputs.write_picture(self.overlay, outputs.overlay(image, prediction.labels, palette))
        if everything:
            outputs.write_probabilities(self.probabilities, prediction.probabilities)


def _load_network(
    weights: Path | None, model: str | None, classes: int | None
) -> tuple[DeepLab, dict[str, Any]]:
    """The model with its weights, and what the weights say about themselves."""
    from deeplab.model import MODELS, build
    from deeplab.weights import SHIPPED, load_model, load_weights, read_metadata

    if model is not None and model not in MODELS:
        raise InputError(f"--model {model}: unknown; expected one of {', '.join(MODELS)}")
    if model is None and classes is not None:
        raise InputError(f"--classes {classes}: give --model too, or leave it to the weights")
    path = SHIPPED if weights is None else weights
    metadata = read_metadata(path)
    if model is None or "model" in metadata:
        network = load_model(weights)
        if model is not None and network.config["model"] != model:
            raise InputError(
                f"{path}: weights of {network.config['model']}, not of --model {model}; leave out "
                "--model, the file knows its own"
            )
        if classes is not None and network.num_classes != classes:
            raise InputError(
                f"{path}: weights for {network.num_classes} classes, not for --classes {classes}; "
                "leave out --classes, the file knows its own"
            )
    elif classes is None or not 1 <= classes <= 256:
        raise InputError(f"{path}: does not say how many classes it has; give --classes, 1 to 256")
    else:
        network = build(model, num_classes=classes)
        load_weights(network, path)
    if network.num_classes > 256:
        raise InputError(
            f"{path}: {network.num_classes} classes do not fit 8-bit label maps (256 at most); use "
            "deeplab.engine.predict from Python"
        )
    return network.eval(), metadata


def _crf_options(ctx: typer.Context) -> dict[str, Any]:
    """The command's CRF options, named as the fields of CRFSettings; None where left out."""
    from deeplab.engine.refine import CRFSettings

    return {field.name: ctx.params[field.name] for field in fields(CRFSettings)}


def _stored_settings(metadata: dict[str, Any]) -> CRFSettings:
    """The CRF settings that come with the weights, DeepLab v2's where there are none."""
    from deeplab.engine.refine import CRFSettings

    stored = metadata.get("crf") or {}
    if not isinstance(stored, dict):
        raise InputError(f"the weights' metadata: crf: expected settings by name, got {stored!r}")
    return CRFSettings().changed(stored)


def _refuse_to_overwrite(files: Iterable[Path], results: Iterable[_Result]) -> None:
    inputs = {file.resolve(): file for file in files}
    for result in results:
        for target in (result.labels, result.overlay, result.probabilities):
            if target.resolve() in inputs:
                raise InputError(
                    f"{target}: is an input, and a result would overwrite it; choose another "
                    "output folder with --out"
                )


def _report(
    file: Path,
    prediction: Prediction,
    names: list[str] | None,
    result: _Result,
    seconds: float,
) -> None:
    """One line: the file, its size, its classes by area, where the result is."""
    height, width = prediction.labels.shape
    areas = Counter(dict(enumerate(np.bincount(prediction.labels.ravel()).tolist()))).most_common()
    shares = [
        f"{names[label] if names else f'class {label}'} {100 * area / (height * width):.1f}%"
        for label, area in areas
        if area
    ]
    more = f" and {len(shares) - 4} more" if len(shares) > 4 else ""
    typer.echo(
        f"{file}: {width} x {height}, {', '.join(shares[:4])}{more}; {seconds:.1f} s "
        f"-> {result.labels}"
    )


def _note(text: str) -> None:
    typer.echo(f"Note: {text}", err=True)


def _progress(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, under a progress bar on standard error when there are several and it is seen."""
    console = Console(stderr=True)
    if len(items) < 2 or not console.is_terminal:
        yield from items
        return
    # Lines that are printed meanwhile go above the bar, but stay on standard output if it is piped.
    with Progress(console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as progress:
        yield from progress.track(items, description=what)
