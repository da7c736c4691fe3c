"""`deeplab demo`: a first look, on generated scenes and a photograph."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from deeplab.cli.shared import options


def demo(out: options.OutFolder = Path("demo")) -> None:
    """Generated scenes and scribbles: what the network finds, what the CRF adds.

    Prints mIoU against the exact masks before and after the CRF, for each scene and in total, and
    writes demo.png: image, truth, network, network + CRF, error; and photograph.png: a photograph,
    scribbles on it, and what the CRF makes of them. Takes seconds; needs nothing but this package.

    **Example**

    ```text
    deeplab demo --out demo
    ```
    """
    from deeplab.demo import run

    run(out, Console())
