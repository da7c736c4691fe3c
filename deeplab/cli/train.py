"""`deeplab train`: weights from generated scenes."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from deeplab.data import outputs
from deeplab.errors import InputError


class ShowsRecipe(TyperCommand):
    """Shows the defaults of TrainConfig in the help: options left out are left to it."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from deeplab.engine.train import TrainConfig

        recipe = asdict(TrainConfig())
        for option in self.params:
            if option.name in recipe:
                option.show_default = str(recipe[option.name])  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


def train(
    ctx: typer.Context,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="The weights (.safetensors), rewritten at every validation."
        ),
    ] = Path("weights.safetensors"),
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Which model.")] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Steps of SGD.")] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Samples in a step.")] = None,
    lr: Annotated[float | None, typer.Option(metavar="RATE", help="First learning rate.")] = None,
    warmup: Annotated[
        int | None, typer.Option(metavar="N", help="Steps in which it rises.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(metavar="D", help="Of weights.")] = None,
    crop: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Side of a sample, 8k + 1.")
    ] = None,
    loss_stride: Annotated[
        int | None,
        typer.Option(
            metavar="1|8", help="Loss on every pixel, or on every eighth as in the papers."
        ),
    ] = None,
    scenes: Annotated[
        int | None, typer.Option(metavar="N", help="Generated scenes to learn from.")
    ] = None,
    validation_scenes: Annotated[
        int | None, typer.Option(metavar="N", help="Scenes to validate on.")
    ] = None,
    validate_every: Annotated[
        int | None, typer.Option(metavar="STEPS", help="Validate and save so often.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="float32, bfloat16, or auto: bfloat16 where the processor has it."
        ),
    ] = None,
    crf: Annotated[
        bool | None,
        typer.Option("--crf", help="End in a CRF that learns with the network; slower by far."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Processes that prepare samples.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Of initialisation and samples.")
    ] = None,
) -> None:
    """Train a model from scratch on generated scenes.

    Without options this is the recipe of the shipped weights, 6000 steps: half an hour of one core
    for the network, and drawing the scenes on top. The learning rate falls to 0 as the steps run
    out (poly policy). Ctrl-C ends after the step at hand, validates, saves and exits with 130. Own
    data: deeplab.engine.train from Python.

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
        name, _, expected = str(error).partition(":")
        raise InputError(f"--{name.replace('_', '-')}:{expected}") from error
    outputs.check_writable_file(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        result = run(config, out, progress=sys.stderr.isatty())
    except FloatingPointError as error:
        raise InputError(str(error)) from error
    typer.echo(
        f"{config.model}: {result.steps} of {config.steps} steps, loss {result.loss:.3f}, "
        f"mIoU {100 * result.metrics['miou']:.2f} on {config.validation_scenes} validation scenes "
        f"-> {out}"
    )
    if result.interrupted:
        raise typer.Exit(130)
