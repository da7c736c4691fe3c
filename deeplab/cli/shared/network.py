"""The network that a command works with, and the device that it runs on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from deeplab.cli.shared.options import WeightsOptions, msc_scales
from deeplab.errors import InputError

if TYPE_CHECKING:
    import torch

    from deeplab.model import DeepLab
    from deeplab.precision import Precision


def load_network(weights: WeightsOptions) -> tuple[DeepLab, dict[str, Any]]:
    """The model with its weights, and what the weights say about themselves.

    The model that a file of another project was taken for is printed on standard error.
    """
    from deeplab.distributed import is_first
    from deeplab.weights import load_checkpoint

    scales = None if weights.msc is None else msc_scales(weights.msc)
    opened = load_checkpoint(weights.weights_file, weights.model, weights.classes)
    network = opened.model
    if weights.msc is not None:
        network.set_scales(scales)
    opened.check_label_maps()
    if (told := opened.taken_for()) and is_first():
        typer.echo(f"Note: {told}", err=True)
    return network, opened.metadata


def refuse_crf(network: DeepLab, use_crf: bool) -> None:
    """InputError where a CRF is to refine several labels a pixel: it gives each pixel one."""
    if network.multilabel and use_crf:
        raise InputError(
            "--no-crf must be given with weights of several labels a pixel: a CRF gives a pixel one"
        )


@contextmanager
def named_weights(weights: WeightsOptions) -> Iterator[None]:
    """InputError that names the weights where the network gives NaN or Inf."""
    try:
        yield
    except FloatingPointError as error:
        raise InputError(f"{weights.weights_file or 'the shipped weights'}: {error}") from error


def torch_device(name: str) -> torch.device:
    """The device of --device: cpu, cuda, or auto, a GPU where there is one."""
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {name} must be auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU here; use cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def check_tiles(network: DeepLab, scales: Sequence[float], tile: int | None, overlap: int) -> None:
    """InputError, which names the option, for tiles that the network cannot be given.

    tile: None leaves them to the predictor, which takes those of its own size.
    """
    from deeplab.predict import TILE, Tiling

    try:
        Tiling.of(network, scales, TILE if tile is None else tile, overlap)
    except ValueError as error:
        raise InputError(f"--{error}") from error


def torch_precision(name: str) -> Precision:
    """What --precision names."""
    from deeplab.precision import PRECISIONS

    named = {str(dtype).removeprefix("torch."): dtype for dtype in PRECISIONS}
    if name == "auto":
        return "auto"
    if name not in named:
        raise InputError(f"--precision {name} must be float32, bfloat16, float16 or auto")
    return named[name]
