"""`deeplab convert`: other people's checkpoints as weights files of this package."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console
from rich.table import Table

from deeplab.cli.shared import options
from deeplab.cli.shared.options import option
from deeplab.data import outputs
from deeplab.errors import InputError

if TYPE_CHECKING:
    from deeplab.model import DeepLab
    from deeplab.weights import Loaded, Source


From = StrEnum(
    "From",
    [
        "auto",
        "safetensors",
        "caffemodel",
        "kazuto1011",
        "isht7",
        "torchvision",
        "smp",
        "efficientnet",
        "state_dict",
    ],
)
Named = StrEnum(
    "Named", ["voc2012", "pascal_context", "pascal_person_part", "cityscapes", "camvid"]
)


def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="FILE", help="The checkpoint.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The weights file to write (.safetensors).")
    ],
    model: options.ModelName = None,
    classes: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="How many classes it must be for.",
            show_default="as many as it is for",
        ),
    ] = None,
    output_stride: Annotated[
        int | None,
        option(
            "8|16|32",
            "Output stride that the network was trained at, which no tensor tells.",
            shown="that of the published models",
        ),
    ] = None,
    msc: options.MSC = None,
    data: Annotated[
        Named | None,
        option(
            "SET",
            f"Name and colour the classes as this data set does: {', '.join(Named)}.",
            shown=False,
        ),
    ] = None,
    source: Annotated[
        From, typer.Option(help="Where it comes from; auto looks inside the file.")
    ] = From.auto,
) -> None:
    """Turn a published checkpoint into a weights file, which every other command reads.

    Reads .caffemodel files (old and new form; no Caffe needed) of DeepLab v1 and v2, the .pth files
    of kazuto1011/deeplab-pytorch, isht7/pytorch-deeplab-resnet and torchvision's DeepLabV3, and
    state dicts of this package's models, also where a wrapper such as DataParallel or a trainer
    put its name in front (module., model., net., _orig_mod.). Which model it is and for how many
    classes, its tensors tell; what they do not tell is that of the models published in this form,
    and is said. Where several fit, --model chooses.

    Every tensor must find its place: what is missing, left over or of another shape is listed, and
    nothing is written. Rates, strides and poolings that a .caffemodel says must be the model's.
    Networks trained with several scales (MSC) keep them. Nothing in a file is executed.

    Files for ImageNet, and heads for other classes, make no finished model: train from them,
    deeplab train --weights FILE.

    **Examples**

    ```text
    deeplab convert train2_iter_20000.caffemodel voc.safetensors --data voc2012
    deeplab convert deeplabv2_resnet101_msc-vocaug-20000.pth voc.safetensors --data voc2012
    deeplab convert deeplabv3_resnet101_coco-586e9e4e.pth v3.safetensors --data voc2012
    deeplab convert train2_iter_20000.caffemodel quick.safetensors --msc none
    deeplab segment photo.jpg --weights voc.safetensors
    ```
    """
    from deeplab.data.agreement import Classes, compare_classes
    from deeplab.weights import load_checkpoint, save_weights

    scales = None if msc is None else options.msc_scales(msc)
    if out.resolve() == checkpoint.resolve():
        raise InputError(f"{out}: is the checkpoint itself, and would be overwritten; name another")
    if out.suffix != ".safetensors":
        raise InputError(f"{out} must be a name that ends in .safetensors")
    outputs.check_writable_file(out)
    names, palette = _classes_of(data)
    if names and classes not in (None, len(names)):
        raise InputError(
            f"--classes {classes}: {data} has {len(names)}; leave one of the two options out"
        )
    opened = load_checkpoint(
        checkpoint, model, classes, cast("Source", source.value), output_stride
    )
    network, loaded = opened.model, opened.loaded
    if msc is not None:
        network.set_scales(scales)
    metadata: dict[str, object] = {"converted_from": f"{checkpoint.name} ({loaded.source})"}
    of_model = ("model", "num_classes", "options")  # what else it says about itself stays true
    metadata |= {key: value for key, value in opened.metadata.items() if key not in of_model}
    if names:
        theirs = Classes.stored(checkpoint, metadata, network.num_classes)
        ours = Classes.of(f"--data {data}", names)
        if note := compare_classes(
            theirs, ours, "leave out --data, or give the set that it is for"
        ):
            typer.echo(f"Note: {note}", err=True)
        metadata |= {"class_names": names, "palette": palette}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_weights(network, out, metadata)
    if told := opened.taken_for():
        typer.echo(f"Note: {told}", err=True)
    Console(markup=False).print(_summary(network, loaded, out))


def _classes_of(data: Named | None) -> tuple[list[str], list[list[int]]]:
    from deeplab.data.datasets import classes

    if data is None:
        return [], []
    name = data.upper().removeprefix("PASCAL_").replace("VOC2012", "VOC")
    return list(getattr(classes, name)), getattr(classes, f"{name}_PALETTE").tolist()


def _summary(network: DeepLab, loaded: Loaded, out: Path) -> Table:
    table = Table(title=f"{network.config['model']}, {network.num_classes} classes -> {out}")
    table.add_column("")
    table.add_column("tensors", justify="right")
    table.add_column("from")
    parts = Counter(name.partition(".")[0] for name in loaded.initialised)
    for part, count in parts.items():
        table.add_row(part, str(count), loaded.source)
    for reason, count in Counter(loaded.dropped.values()).items():
        table.add_row("left out", str(count), reason)
    return table
