"""The network that a command works with, and the CRF settings that come with its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab.cli.convert import read_checkpoint
from deeplab.errors import InputError

if TYPE_CHECKING:
    import torch

    from deeplab.engine.refine import CRFSettings
    from deeplab.model import DeepLab


def load_network(
    weights: Path | None, model: str | None, classes: int | None
) -> tuple[DeepLab, dict[str, Any]]:
    """The model with its weights, and what the weights say about themselves."""
    from deeplab.model import MODELS
    from deeplab.weights import SHIPPED, is_own, load_model, read_metadata
    from deeplab.weights.file import metadata_problem

    if model is not None and model not in MODELS:
        raise InputError(f"--model {model}: unknown; expected one of {', '.join(MODELS)}")
    if model is None and classes is not None:
        raise InputError(f"--classes {classes}: give --model too, or leave it to the weights")
    path = SHIPPED if weights is None else weights
    foreign = model is not None and not is_own(path)
    metadata = {} if foreign else read_metadata(path)
    if model is not None and foreign:
        network, _ = read_checkpoint(path, model, 21 if classes is None else classes, "auto")
    elif model is None or "model" in metadata:
        network = load_model(weights)
        if model is not None and network.config["model"] != model:
            raise InputError(
                f"{path}: weights of {network.config['model']}, not of --model {model}; leave out "
                "--model, the file knows its own"
            )
        if classes is not None and network.num_classes != classes:
            raise InputError(
                f"{path}: weights for {network.num_classes} classes, not for --classes {classes}; "
                "leave out --classes, the file knows its own"
            )
    elif classes is None or not 1 <= classes <= 256:
        raise InputError(f"{path}: does not say how many classes it has; give --classes, 1 to 256")
    else:
        network, _ = read_checkpoint(path, model, classes, "auto")
    if network.num_classes > 256:
        raise InputError(
            f"{path}: {network.num_classes} classes do not fit 8-bit label maps (256 at most); use "
            "deeplab.engine.predict from Python"
        )
    if problem := metadata_problem(metadata | {"num_classes": network.num_classes}):
        raise InputError(f"{path}: {problem}; write the file anew with save_weights")
    return network.eval(), metadata


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
    from deeplab.engine.refine import CRFSettings

    stored = metadata.get("crf") or {}
    try:
        if not isinstance(stored, dict):
            raise InputError(f"expected settings by name, got {stored!r:.80}")
        return CRFSettings().changed(stored)
    except InputError as error:
        raise InputError(f"{weights}: its metadata: crf: {error}") from error
