"""Options that several commands share, stated once, and what their texts mean."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deeplab import toml
from deeplab.errors import InputError

if TYPE_CHECKING:
    from deeplab.crf_settings import CRFSettings


def option(
    metavar: str, text: str, *names: str, panel: str | None = None, shown: str | bool = True
) -> Any:
    """An option that takes a value. shown: what the help says of the default, False for nothing."""
    return typer.Option(
        *names, metavar=metavar, help=text, rich_help_panel=panel, show_default=shown
    )


def split_option(text: str, shown: str | bool = True) -> Any:
    """--split: a part of the data set."""
    return option("NAME", text, "--split", panel="Data", shown=shown)


ModelName = Annotated[
    str | None,
    option(
        "NAME",
        "Which model the weights must belong to, such as deeplab_v2_resnet101 or, on any backbone, "
        "deeplab_v3plus.",
        shown="the one that the weights name or fit",
    ),
]
MSC = Annotated[
    str | None,
    option(
        "S,S,...|none",
        "Scales at which the model itself sees each picture, as MSC of the papers does: the "
        "largest logit of 1,0.75,0.5 counts. Networks are trained with it; --scales averages the "
        "probabilities of views of any network.",
        shown="as the weights say",
    ),
]
Threshold = Annotated[
    float | None,
    option(
        "P",
        "Of two classes: probability from which on a pixel is the second; of several labels a "
        "pixel: from which on a class holds.",
        shown="0.5",
    ),
]
Device = Annotated[str, option("NAME", "cpu, cuda, or auto: a GPU where there is one.")]
Precision = Annotated[
    str,
    option(
        "NAME",
        "What the network computes in: float32, bfloat16, float16, or auto: bfloat16 where the "
        "processor or GPU computes in it. Up to half a percent of the labels are others than in "
        "float32, which therefore is the default.",
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the network for this CPU at the first picture, and a few times more at other "
        "sizes, which takes as long as many pictures. For thousands of pictures through a small "
        "network, which gains a little. Needs a C++ compiler.",
    ),
]
Overlap = Annotated[
    int, option("PIXELS", "What neighbouring tiles share at least, up to half a tile.")
]
UseCRF = Annotated[bool, typer.Option("--crf/--no-crf", help="Refine with the dense CRF.")]
OutFolder = Annotated[Path, option("DIR", "Folder for the results; made if missing.", "--out")]
MaxMegapixels = Annotated[
    float | None,
    option(
        "N",
        "Refuse larger pictures (10^6 pixels), before they are decoded.",
        shown="what the memory holds",
    ),
]
SaveProbabilities = Annotated[
    bool,
    typer.Option(
        "--probabilities",
        help="Save the class probabilities too: float32 [C, H, W] as .npz, with palette and "
        "class_names.",
    ),
]
Legend = Annotated[
    bool,
    typer.Option(
        "--legend/--no-legend",
        help="Name the classes that occur, with their colours, below the overlay.",
    ),
]


@dataclass(frozen=True)
class WeightsOptions:
    """The network: which weights, and what they must be of."""

    weights_file: Annotated[
        Path | None,
        option(
            "FILE|NAME",
            "Weights: .safetensors, any file that `deeplab convert` reads, or a name of "
            "`deeplab weights list`, which is downloaded once.",
            "--weights",
            shown="the shipped",
        ),
    ] = None
    model: ModelName = None
    classes: Annotated[
        int | None,
        option("N", "How many classes the weights must be for.", shown="as the weights say"),
    ] = None
    msc: MSC = None


@dataclass(frozen=True)
class DataOptions:
    """The data set, or what is said of it: train takes the rest from its recipe."""

    data_name: Annotated[
        str | None,
        option(
            "NAME",
            "Which data set; `deeplab data list` names them.",
            "--data",
            panel="Data",
            shown="scenes, which are generated",
        ),
    ] = None
    data_root: Annotated[
        Path | None,
        option("DIR", "Its folder.", "--root", panel="Data", shown="none: scenes are generated"),
    ] = None
    data_option: Annotated[
        list[str] | None,
        option(
            "KEY=VALUE",
            "An option of that data set, such as classes=my/classes.txt; may be repeated.",
            "--data-option",
            panel="Data",
        ),
    ] = None

    @property
    def name(self) -> str:
        """The data set's: the generated scenes where none is given."""
        return "scenes" if self.data_name is None else self.data_name

    @property
    def options(self) -> dict[str, Any]:
        """What --data-option gives the data set."""
        texts = self.data_option or ()
        return dict(key_value("--data-option", text, "ignore=11") for text in texts)


@dataclass(frozen=True)
class ViewOptions:
    """The views of a picture whose probabilities are averaged."""

    scales: Annotated[
        str,
        option(
            "S,S,...",
            "Let the model see the picture at these scales and average the probabilities.",
        ),
    ] = "1"
    flip: Annotated[bool, typer.Option("--flip", help="Average over the mirrored picture too.")] = (
        False
    )

    def numbers(self) -> tuple[float, ...]:
        """The scales; InputError names the option."""
        from deeplab.predict import check_scales

        scales = numbers("--scales", self.scales)
        try:
            check_scales(scales)
        except ValueError as error:
            raise InputError(f"--{error}") from error
        return scales


@dataclass(frozen=True)
class SmoothnessOptions:
    """The iterations and the smoothness term of a CRF, named as in `deeplab.crf_settings`."""

    iterations: Annotated[int | None, option("N", "Mean-field iterations.", panel="CRF")] = None
    gaussian_weight: Annotated[
        float | None, option("W", "Weight of the smoothness kernel.", panel="CRF")
    ] = None
    gaussian_sigma_xy: Annotated[
        float | None,
        option("PIXELS", "Its width.", "--gaussian-sigma-xy", "--gaussian-sigma", panel="CRF"),
    ] = None

    def change(self, settings: CRFSettings) -> CRFSettings:
        """The settings with what the options say."""
        return settings.changed(asdict(self))


@dataclass(frozen=True)
class CRFOptions(SmoothnessOptions):
    """All numbers of a CRF, one by one or from a file."""

    bilateral_weight: Annotated[
        float | None, option("W", "Weight of the appearance kernel.", panel="CRF")
    ] = None
    bilateral_sigma_xy: Annotated[
        float | None, option("PIXELS", "Its width in space.", panel="CRF")
    ] = None
    bilateral_sigma_rgb: Annotated[
        float | None, option("LEVELS", "Its width in colour, grey levels of 0-255.", panel="CRF")
    ] = None
    crf_bands: Annotated[
        str | None,
        option(
            "R,G,B|all",
            "Of pictures of other bands than RGB, the three that the CRF and the overlay take for "
            "red, green and blue, counted from 0; with all the CRF compares all bands.",
            panel="CRF",
            shown="the first three",
        ),
    ] = None
    crf_settings: Annotated[
        Path | None,
        option(
            "FILE.toml",
            "Settings that deeplab tune-crf found; the other options change them.",
            panel="CRF",
            shown="none",
        ),
    ] = None

    def change(self, settings: CRFSettings) -> CRFSettings:
        """The settings of --crf-settings, or else those given, with what the options say."""
        from deeplab.crf_settings import CRFSettings

        numbers = asdict(self)
        file, bands = numbers.pop("crf_settings"), numbers.pop("crf_bands")
        if bands is not None:
            numbers["bands"] = bands if bands == "all" else whole_numbers("--crf-bands", bands)
        return (settings if file is None else CRFSettings.from_toml(file)).changed(numbers)


def numbers(name: str, text: str) -> tuple[float, ...]:
    """The numbers of a list such as 0.5,0.75,1; InputError names the option."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"{name} {text} must be numbers with commas between them, such as 0.5,0.75,1"
        ) from None


def whole_numbers(name: str, text: str) -> list[int]:
    """Those of a list such as 3,2,1; InputError names the option."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"{name} {text} must be whole numbers with commas between them, such as 3,2,1"
        ) from None


def key_value(flag: str, text: str, example: str) -> tuple[str, Any]:
    """KEY=VALUE: the value as TOML has it, or else as the text that it is."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not key or not equals:
        raise InputError(f"{flag} {text} must be KEY=VALUE, such as {example}")
    try:
        table = toml.loads(f"value = {value}")
    except ValueError:
        return key, value
    return key, table["value"] if len(table) == 1 else value  # several lines would set more


def msc_scales(text: str) -> list[float] | None:
    """The scales of --msc, None for one."""
    from deeplab.model.multiscale import checked_scales

    try:
        return None if text == "none" else checked_scales(numbers("--msc", text))
    except ValueError:
        raise InputError(
            f"--msc {text} must be none, or 1 and smaller scales, falling, such as 1,0.75,0.5"
        ) from None
