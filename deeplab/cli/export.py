"""`deeplab export`: a network as a torch.export, ONNX or AOTInductor program."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from deeplab.cli.shared import options
from deeplab.cli.shared.groups import takes_options
from deeplab.cli.shared.network import load_network
from deeplab.cli.shared.options import option
from deeplab.errors import InputError


@takes_options
def export(
    *,
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="The program to write: NAME.onnx or NAME.pt2.")
    ],
    weights: options.WeightsOptions,
    format: Annotated[
        str | None,
        option(
            "NAME",
            "onnx, export (torch.export) or aoti (AOTInductor).",
            shown="onnx for .onnx, export for .pt2",
        ),
    ] = None,
    size: Annotated[
        str | None,
        option(
            "HxW",
            "The only size of pictures that the program takes, such as 513x513.",
            shown="any from 33x33 up",
        ),
    ] = None,
) -> None:
    """Write the network as a program that runs without this package.

    The program takes preprocessed pictures, float32 [B, 3, H, W], and gives logits
    [B, classes, H, W]. FILE.json beside it says how to preprocess and names the classes and their
    colours. The program is read back and compared with the network before it gets its name, so a
    file that is there agrees with it. A CRF is no part of it: `deeplab refine` does that.

    AOTInductor compiles for the CPU of this machine, with a C++ compiler, in a minute or more.
    ONNX needs `pip install 'deeplab-triton[export]'`.

    **Examples**

    ```text
    deeplab export scenes.onnx
    deeplab export mine.onnx --weights mine.safetensors
    deeplab export mine.pt2 --weights mine.safetensors
    deeplab export mine_aoti.pt2 --format aoti --size 513x513 --weights mine.safetensors
    ```
    """
    from deeplab.export import export as write

    chosen: Any = format
    fixed = None if size is None else _parsed(size)
    network, metadata = load_network(weights)
    with Console(stderr=True).status("exporting and comparing"):
        written = write(network, path, chosen, size=fixed, metadata=metadata)
    typer.echo(
        f"{written.path}  differs from the model by {written.error:.1e} of its largest logit"
    )
    typer.echo(f"{written.description}  preprocessing and classes")


def _parsed(size: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    if found is None:
        raise InputError(f"--size {size} must be HEIGHTxWIDTH in pixels, such as 513x513")
    return int(found[1]), int(found[2])
