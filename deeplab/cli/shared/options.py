"""Options that several commands share, and the CRF settings that they choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deeplab import toml
from deeplab.errors import InputError

if TYPE_CHECKING:
    from deeplab.refine import CRFSettings

Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Weights: .safetensors, or any file that `deeplab convert` reads.",
        show_default="the shipped",
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Which model the weights must belong to, such as deeplab_v2_resnet101.",
        show_default="the one that the weights name or fit",
    ),
]
NumClasses = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="How many classes the weights must be for.",
        show_default="as the weights say",
    ),
]
MSC = Annotated[
    str | None,
    typer.Option(
        metavar="S,S,...|none",
        help="Scales at which the model itself sees each picture, as MSC of the papers does: the "
        "largest logit of 1,0.75,0.5 counts. Networks are trained with it; --scales averages the "
        "probabilities of views of any network.",
        show_default="as the weights say",
    ),
]
DataName = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="NAME",
        rich_help_panel="Data",
        help="Which data set; `deeplab data list` tells those there are.",
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--root",
        metavar="DIR",
        rich_help_panel="Data",
        help="Its folder.",
        show_default="none: scenes are generated",
    ),
]
DataOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--data-option",
        metavar="KEY=VALUE",
        rich_help_panel="Data",
        help="An option of that data set, such as classes=my/classes.txt; may be repeated.",
    ),
]
Device = Annotated[
    str, typer.Option(metavar="NAME", help="cpu, cuda, or auto: a GPU where there is one.")
]
Scales = Annotated[
    str,
    typer.Option(
        metavar="S,S,...",
        help="Let the model see the picture at these scales and average the probabilities.",
    ),
]
Flip = Annotated[bool, typer.Option("--flip", help="Average over the mirrored picture too.")]
CRFFile = Annotated[
    Path | None,
    typer.Option(
        "--crf-settings",
        metavar="FILE.toml",
        rich_help_panel="CRF",
        help="Settings that deeplab tune-crf found; the options below change them.",
        show_default="none",
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


def numbers(name: str, text: str) -> tuple[float, ...]:
    """The numbers of a list such as 0.5,0.75,1; InputError names the option."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"{name} {text}: expected numbers with commas between them, such as 0.5,0.75,1"
        ) from None


def key_value(flag: str, text: str, example: str) -> tuple[str, Any]:
    """KEY=VALUE: the value as TOML has it, or else as the text that it is."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not key or not equals:
        raise InputError(f"{flag} {text}: expected KEY=VALUE, such as {example}")
    try:
        table = toml.loads(f"value = {value}")
    except ValueError:
        return key, value
    return key, table["value"] if len(table) == 1 else value  # several lines would set more


def data_options(given: Sequence[str] | None) -> dict[str, Any]:
    """What --data-option gives a data set."""
    return dict(key_value("--data-option", text, "ignore=11") for text in given or ())


def view_scales(text: str) -> tuple[float, ...]:
    """The scales of --scales."""
    from deeplab.predict import check_scales

    scales = numbers("--scales", text)
    try:
        check_scales(scales)
    except ValueError as error:
        raise InputError(f"--{error}") from error
    return scales


def msc_scales(text: str) -> list[float] | None:
    """The scales of --msc, None for one."""
    from deeplab.model.multiscale import checked_scales

    try:
        return None if text == "none" else checked_scales(numbers("--msc", text))
    except ValueError:
        raise InputError(
            f"--msc {text}: expected none, or 1 and smaller scales, falling, such as 1,0.75,0.5"
        ) from None


def crf_settings(ctx: typer.Context) -> dict[str, Any]:
    """The command's CRF options, named as the fields of CRFSettings; None where left out."""
    from deeplab.refine import CRFSettings

    names = (field.name for field in fields(CRFSettings))
    return {name: ctx.params[name] for name in names if name in ctx.params}


def chosen_settings(ctx: typer.Context, file: Path | None, otherwise: CRFSettings) -> CRFSettings:
    """The settings of --crf-settings, or else `otherwise`, changed by the command's options."""
    from deeplab.refine import CRFSettings

    settings = otherwise if file is None else CRFSettings.from_toml(file)
    return settings.changed(crf_settings(ctx))
