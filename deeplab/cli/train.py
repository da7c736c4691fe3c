"""`deeplab train`: weights from a recipe and a data set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from deeplab.cli.shared import options
from deeplab.cli.shared.groups import takes_options
from deeplab.cli.shared.options import option
from deeplab.cli.shared.several import reported_once
from deeplab.data import outputs
from deeplab.errors import InputError

if TYPE_CHECKING:
    from deeplab.training import TrainConfig, TrainResult
    from deeplab.training.recipe import Settings


class ShowsRecipe(TyperCommand):
    """Shows the defaults of TrainConfig in the help: options left out are left to it."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from deeplab.training import TrainConfig

        recipe = asdict(TrainConfig())
        for given in self.params:
            if recipe.get(given.name, "") != "":
                given.show_default = str(recipe[given.name])  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


@takes_options
def train(
    *,
    ctx: typer.Context,
    config: Annotated[
        str | None, option("RECIPE", "A TOML file, or the name of a recipe that comes with this.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        option(
            "KEY=VALUE",
            "Any field of a recipe, such as data.root=VOC2012; may be repeated.",
            "--set",
        ),
    ] = None,
    out: Annotated[
        Path, option("FILE", "The best weights (.safetensors); the run's files lie beside it.")
    ] = Path("weights.safetensors"),
    weights: Annotated[
        str | None,
        option(
            "FILE|NAME",
            "Start from these weights: a file in any format of `convert`, or a name of "
            "`deeplab weights list`.",
        ),
    ] = None,
    data: options.DataOptions,
    split: Annotated[
        str | None,
        options.split_option("The part of it to train on.", shown="as the recipe says, or train"),
    ] = None,
    validation_split: Annotated[
        str | None,
        option(
            "NAME",
            "The part of it to validate on.",
            panel="Data",
            shown="as the recipe says, or val",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run of --out that was stopped; with more --steps also with one "
            "that has finished.",
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Start anew in place of what lies at --out, which is lost then."
        ),
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Log for TensorBoard too, into FILE.tensorboard.")
    ] = False,
    wandb: Annotated[
        str | None,
        option("PROJECT", "Log to this project of Weights & Biases too.", shown=False),
    ] = None,
    mlflow: Annotated[
        str | None, option("NAME", "Log to this experiment of MLflow too.", shown=False)
    ] = None,
    pictures: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Draw N pictures at each validation, beside truth and errors: into FILE.pictures "
            "and to those logs.",
        ),
    ] = 0,
    model: Annotated[
        str | None,
        option("NAME", "Which model; with deeplab_v3plus and such goes model_options.backbone."),
    ] = None,
    steps: Annotated[int | None, option("N", "Steps of SGD.")] = None,
    batch_size: Annotated[int | None, option("N", "Samples in a step.")] = None,
    accumulate: Annotated[int | None, option("N", "Pieces of a step, to save memory.")] = None,
    lr: Annotated[float | None, option("RATE", "First learning rate.")] = None,
    warmup: Annotated[int | None, option("N", "Steps in which it rises.")] = None,
    weight_decay: Annotated[float | None, option("D", "Of weights.")] = None,
    crop: Annotated[int | None, option("PIXELS", "Side of a sample, 8k + 1.")] = None,
    loss_stride: Annotated[
        int | None, option("1|8", "Loss on every pixel, or on every eighth as in the papers.")
    ] = None,
    scenes: Annotated[int | None, option("N", "Generated scenes to learn from.")] = None,
    validation_scenes: Annotated[int | None, option("N", "Scenes to validate on.")] = None,
    validate_every: Annotated[int | None, option("STEPS", "Validate and save so often.")] = None,
    patience: Annotated[
        int | None, option("N", "Stop after N validations without a better mIoU; 0: never.")
    ] = None,
    precision: Annotated[
        str | None,
        option("NAME", "float32, bfloat16, float16, or auto: bfloat16 where the processor has it."),
    ] = None,
    device: Annotated[
        str | None, option("NAME", "cpu, cuda, or auto: a GPU if there is one.")
    ] = None,
    crf: Annotated[
        bool | None,
        typer.Option("--crf", help="End in a CRF that learns with the network; slower by far."),
    ] = None,
    workers: Annotated[int | None, option("N", "Processes that prepare samples.")] = None,
    seed: Annotated[int | None, option("N", "Of initialisation and samples.")] = None,
) -> None:
    """Train a model: the papers' recipes, your own, or the one of the shipped weights.

    On pictures of your own (--data folder --root mine) the model follows the weights: that of a
    segmentation network's file, or DeepLab v3+ on a body such as resnet50_imagenet, which learn
    with AdamW. Without --weights it suits the machine. What was chosen is told, and how long it
    will take; the options choose otherwise.

    Without options this is the recipe of the shipped weights on generated scenes, 6000 steps: half
    an hour of one core for the network, and drawing the scenes on top. --config names another;
    options and --set change single fields of it, options over --set over --config. A data set that
    --data names in place of the recipe's own has none of its splits and options. Recipes that come
    with this: scenes,
    voc12_vgg16_largefov, voc12_vgg16, voc12_resnet101, coco_resnet101, voc12_resnet101_coco,
    cityscapes_resnet101, camvid_resnet101, camvid_efficientnet_lite0, camvid_small and
    scenes_quick.

    Pictures of other bands than RGB: the option bands of a folder data set, and in_channels, mean
    and deviation of the model, which deeplab data check prints. Weights for RGB to start from are
    adapted.

    Beside the weights FILE.safetensors, the best by validation mIoU, lie FILE-last.safetensors,
    FILE.state to resume from, the log FILE.csv (with the IoU of each class) and at the end, with
    matplotlib and a log of ten rows or more, FILE.curves.png. Ctrl-C and SIGTERM end after the step
    at hand, save, and exit with 130 and 143; --resume goes on as if nothing had been. A run or
    weights that lie at --out already are replaced with --overwrite only.

    **Examples**

    ```text
    deeplab train --data folder --root mine --weights resnet50_imagenet --out mine.safetensors
    deeplab train --data folder --root mine --split most --validation-split few
    deeplab train --out scenes.safetensors                          as the shipped weights
    deeplab train --steps 200 --scenes 200 --validation-scenes 10   a quick try
    deeplab train --config voc12_resnet101 --weights resnet101-imagenet.pth --out voc.safetensors
    deeplab train --config camvid_small --root /data/camvid --out camvid.safetensors
    deeplab train --config camvid_small --patience 10 --pictures 4 --tensorboard
    deeplab train --set class_weights=balanced --set label_smoothing=0.1
    deeplab train --set loss.cross_entropy=1 --set loss.dice=0.5    a sum of losses
    deeplab train --out voc.safetensors --resume                    go on after a stop
    deeplab train --out voc.safetensors --resume --workers 2        the same on another machine
    deeplab train --out voc.safetensors --resume --steps 30000      longer than it was to be
    deeplab train --set model=deeplab_v3plus --set model_options.backbone=resnet34
    torchrun --nproc-per-node 2 -m deeplab train --config voc12_vgg16 --weights vgg16.caffemodel
    deeplab evaluate --weights mine.safetensors
    ```
    """
    from deeplab.distributed import is_first
    from deeplab.training import train as run
    from deeplab.training.callbacks import Callback
    from deeplab.training.trackers import MLflowLog, WandbLog

    trackers: list[Callback] = [] if wandb is None else [WandbLog(wandb)]
    trackers += [] if mlflow is None else [MLflowLog(mlflow)]
    outputs.check_writable_file(out)
    of_data = _data_settings(data, split, validation_split)
    recipe, note = _recipe(ctx, config, settings or [], of_data, out if resume else None)
    again = reported_once(then="mend that, then go on with --resume")
    with again, _folder_of_results(out.parent):
        result = run(
            recipe,
            out,
            resume=resume,
            overwrite=overwrite,
            tensorboard=tensorboard,
            pictures=pictures,
            callbacks=trackers,
            note=note,
        )
    if is_first():
        _report(recipe, result, out)
    if result.interrupted:
        raise typer.Exit(128 + (result.signal or 2))


@contextmanager
def _folder_of_results(folder: Path) -> Iterator[None]:
    """A folder that is there, and is gone again if it was not before and stays empty."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # one that is not empty stays, with those above it
            for each in new:
                each.rmdir()


def _recipe(
    ctx: typer.Context,
    config: str | None,
    settings: list[str],
    of_data: Settings,
    resumed: Path | None,
) -> tuple[TrainConfig, str]:
    """The recipe, of --config or else of the run to resume, with the options' changes.

    Where neither of these nor an option says which model, one that suits is chosen: what to tell
    of it, else "".
    """
    from deeplab.training import TrainConfig, checkpoint, defaults, recipe

    chosen: recipe.Settings = {}
    if resumed is not None:
        state = checkpoint.Files(resumed).state
        stored = checkpoint.stored_config(state, checkpoint.read_state(state))
        chosen = recipe.flat_settings(stored, str(state))
    if config is not None:
        steps = {key: value for key, value in chosen.items() if key == "steps"}
        chosen = steps | recipe.read_recipe(config)  # those of the run unless the recipe says
    if "data.name" in of_data and of_data["data.name"][0] != chosen.get("data.name", ("",))[0]:
        # Root, splits and options that the recipe has are of its own data set.
        chosen = {key: value for key, value in chosen.items() if not key.startswith("data.")}
    for text in settings:
        key, value = options.key_value("--set", text, "data.root=/data/VOC2012")
        chosen |= recipe.one_setting(key, value)
    if ctx.params.get("weights") == "":  # such as a shell's variable that is not set
        raise InputError("--weights must be a file, not an empty text; leave it out for none")
    for name in asdict(TrainConfig()):
        if ctx.params.get(name) is not None:
            chosen[name] = (ctx.params[name], f"--{name.replace('_', '-')}")
    chosen |= of_data
    suiting = defaults.choose(chosen) if config is None and resumed is None else None
    if suiting is None:
        return recipe.make_config(chosen), ""
    made = recipe.make_config(suiting.settings | chosen)
    return made, suiting.told(made)


def _data_settings(
    data: options.DataOptions, split: str | None, validation_split: str | None
) -> Settings:
    """What --data, --root, --data-option and the splits say, as fields of a recipe."""
    root = None if data.data_root is None else str(data.data_root)
    said = {
        "data.name": (data.data_name, "--data"),
        "data.root": (root, "--root"),
        "data.train": (split, "--split"),
        "data.validation": (validation_split, "--validation-split"),
    }
    said |= {
        f"data.options.{key}": (value, f"--data-option {key}")
        for key, value in data.options.items()
    }
    return {key: (value, where) for key, (value, where) in said.items() if value is not None}


def _report(config: TrainConfig, result: TrainResult, out: Path) -> None:
    scored = ""
    if result.metrics:
        what = f"{result.metrics.get('images', 0)} validation images"
        if config.data.name == "scenes":
            what = f"{config.validation_scenes} validation scenes"
        scored = f", mIoU {100 * result.metrics['miou']:.2f} on {what}"
    best = ""
    if result.best and result.best["step"] != result.steps:
        best = f" (best: mIoU {100 * result.best['miou']:.2f} at step {result.best['step']})"
    typer.echo(
        f"{config.model}: {result.steps} of {config.steps} steps, loss {result.loss:.3f}{scored} "
        f"-> {out}{best}"
    )
    if result.stopped:
        typer.echo(f"  stopped early: {result.stopped}")
    if result.throughput.images:
        typer.echo(f"  {result.throughput}")
    if result.broken:
        typer.echo(f"  {len(result.broken)} broken pictures passed over")
    if result.interrupted:
        typer.echo(f"  go on with: deeplab train --out {out} --resume")
