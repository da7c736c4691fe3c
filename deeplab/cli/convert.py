"""`deeplab convert`: other people's checkpoints as weights files of this package."""

from __future__ import annotations

import warnings
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from deeplab.data import outputs
from deeplab.errors import InputError

if TYPE_CHECKING:
    from deeplab.model import DeepLab
    from deeplab.weights import Loaded


class From(StrEnum):
    """The sources of `deeplab.weights.loading`."""

    auto = "auto"
    safetensors = "safetensors"
    caffemodel = "caffemodel"
    kazuto1011 = "kazuto1011"
    isht7 = "isht7"
    torchvision = "torchvision"


class Named(StrEnum):
    """Data sets whose class names and colours go into the file."""

    voc2012 = "voc2012"
    pascal_context = "pascal_context"
    pascal_person_part = "pascal_person_part"
    cityscapes = "cityscapes"
    camvid = "camvid"


def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="FILE", help="The checkpoint.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The weights file to write (.safetensors).")
    ],
    model: Annotated[
        str, typer.Option(metavar="NAME", help="Which model it is of, such as deeplab_v2_vgg16.")
    ],
    classes: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="How many classes.", show_default="those of --data, or 21"
        ),
    ] = None,
    data: Annotated[
        Named | None,
        typer.Option(
            metavar="SET",
            help=f"Name and colour the classes as this data set does: {', '.join(Named)}.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        From, typer.Option(help="Where it comes from; auto looks inside the file.")
    ] = From.auto,
) -> None:
    """Turn a published checkpoint into a weights file, which every other command reads.

    Reads .caffemodel files (old and new form; no Caffe needed) of DeepLab v1 and v2, and the .pth
    files of kazuto1011/deeplab-pytorch, isht7/pytorch-deeplab-resnet and torchvision's DeepLabV3.
    Every tensor must find its place: what is missing, left over or of another shape is listed, and
    nothing is written. Rates, strides and poolings that a .caffemodel says must be the model's.
    Nothing in a file is executed.

    Files for ImageNet, and heads for other classes, make no finished model: train from them,
    deeplab train --weights FILE.

    **Examples**

    ```text
    deeplab convert train2_iter_20000.caffemodel voc.safetensors --model deeplab_v2_resnet101 --data voc2012
    deeplab convert deeplabv2_resnet101_msc-vocaug-20000.pth voc.safetensors --model deeplab_v2_resnet101 --data voc2012
    deeplab convert deeplabv3_resnet101_coco-586e9e4e.pth v3.safetensors --model deeplab_v3_resnet101 --data voc2012
    deeplab segment photo.jpg --weights voc.safetensors
    ```
    """  # noqa: E501
    from deeplab.engine.classes import Classes, agreement
    from deeplab.model import MODELS
    from deeplab.weights import read_metadata, save_weights

    if model not in MODELS:
        raise InputError(f"--model {model}: unknown; expected one of {', '.join(MODELS)}")
    if out.resolve() == checkpoint.resolve():
        raise InputError(f"{out}: is the checkpoint itself, and would be overwritten; name another")
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: expected a name that ends in .safetensors")
    outputs.check_writable_file(out)
    names, palette = _classes_of(data)
    if names and classes not in (None, len(names)):
        raise InputError(
            f"--classes {classes}: {data} has {len(names)}; leave one of the two options out"
        )
    count = classes if classes is not None else len(names) or 21
    network, loaded = read_checkpoint(checkpoint, model, count, source.value)
    metadata: dict[str, object] = {"converted_from": f"{checkpoint.name} ({loaded.source})"}
    if loaded.source == "safetensors":  # what it says about its weights stays true
        of_model = ("model", "num_classes", "options")
        stored = read_metadata(checkpoint)
        metadata |= {key: value for key, value in stored.items() if key not in of_model}
    if names:
        theirs = Classes.stored(checkpoint, metadata, network.num_classes)
        ours = Classes.of(f"--data {data}", names)
        if note := agreement(theirs, ours, "leave out --data, the file names its own"):
            typer.echo(f"Note: {note}", err=True)
        metadata |= {"class_names": names, "palette": palette}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_weights(network, out, metadata)
    Console(markup=False).print(_summary(network, loaded, out))


def read_checkpoint(path: Path, model: str, classes: int, source: str) -> tuple[DeepLab, Loaded]:
    """The model of that name with the file's weights, all of them, in the file's style.

    Raises InputError as `load_weights` does, and where the head has no weights in the file.
    """
    from deeplab.model import build
    from deeplab.weights import load_weights, style_of

    style = style_of(path)  # before the try: what is wrong with the file is not --model's fault
    try:
        network = build(model, num_classes=classes, style=style)
    except ValueError as error:
        raise InputError(f"--model {model}: {error}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is skipped is an error here
        loaded = load_weights(network, path, source)  # type: ignore[arg-type]
    if loaded.skipped:
        raise InputError(
            f"{path}: has no weights for {', '.join(loaded.skipped)} of {model} with {classes} "
            "classes; name the model and the number of classes that it was trained for, or train "
            f"from it: deeplab train --weights {path}"
        )
    return network, loaded


def _classes_of(data: Named | None) -> tuple[list[str], list[list[int]]]:
    from deeplab.data.datasets import classes

    known = {
        Named.voc2012: (classes.VOC, classes.VOC_PALETTE),
        Named.pascal_context: (classes.CONTEXT, classes.CONTEXT_PALETTE),
        Named.pascal_person_part: (classes.PERSON_PART, classes.PERSON_PART_PALETTE),
        Named.cityscapes: (classes.CITYSCAPES, classes.CITYSCAPES_PALETTE),
        Named.camvid: (classes.CAMVID, classes.CAMVID_PALETTE),
    }
    if data is None:
        return [], []
    names, palette = known[data]
    return list(names), palette.tolist()


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
