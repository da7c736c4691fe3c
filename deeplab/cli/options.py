"""Options that several commands share, and the CRF settings that they choose."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

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


def crf_settings(ctx: typer.Context) -> dict[str, Any]:
    """The command's CRF options, named as the fields of CRFSettings; None where left out."""
    from deeplab.engine.refine import CRFSettings

    names = (field.name for field in fields(CRFSettings))
    return {name: ctx.params[name] for name in names if name in ctx.params}
