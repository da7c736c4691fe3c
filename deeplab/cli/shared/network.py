"""The network that a command works with, and the CRF settings that come with its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from deeplab.cli.shared.options import msc_scales
from deeplab.errors import InputError

if TYPE_CHECKING:
    import torch

    from deeplab.model import DeepLab
    from deeplab.refine import CRFSettings


def load_network(
    weights: Path | None, model: str | None, classes: int | None, msc: str | None = None
) -> tuple[DeepLab, dict[str, Any]]:
    """The model with its weights, and what the weights say about themselves.

    weights: a file of any source; None for the shipped one. model, classes: what it must be of.
    msc: the text of --msc, which sets the model's scales. What a file of another project was taken
    for is told on standard error.
    """
    from deeplab.training.distributed import is_first
    from deeplab.weights import load_checkpoint
    from deeplab.weights.file import metadata_problem

    chosen = None if msc is None else msc_scales(msc)
    opened = load_checkpoint(weights, model, classes)
    network = opened.model
    if msc is not None:
        network.set_scales(chosen)
    if network.num_classes > 256:
        raise InputError(
            f"{opened.path}: {network.num_classes} classes do not fit 8-bit label maps (256 at "
            "most); use deeplab.predict from Python"
        )
    if problem := metadata_problem(opened.metadata | {"num_classes": network.num_classes}):
        raise InputError(f"{opened.path}: {problem}; write the file anew with save_weights")
    if (told := opened.taken_for()) and is_first():
        typer.echo(f"Note: {told}", err=True)
    return network, opened.metadata


def torch_device(name: str) -> torch.device:
    """The device of --device: cpu, cuda, or auto, a GPU where there is one."""
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {name}: expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU here; use cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def stored_settings(weights: Path | None, metadata: dict[str, Any]) -> CRFSettings:
    """The CRF settings that come with the weights, DeepLab v2's where there are none."""
    from deeplab.refine import CRFSettings

    stored = metadata.get("crf") or {}
    try:
        if not isinstance(stored, dict):
            raise InputError(f"expected settings by name, got {stored!r:.80}")
        return CRFSettings().changed(stored)
    except InputError as error:
        raise InputError(f"{weights}: its metadata: crf: {error}") from error
