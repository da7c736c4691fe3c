"""Reading a `.pth`: the tensors of a PyTorch checkpoint, by name, without executing anything.

`torch.load(weights_only=True)` unpickles tensors and plain containers only. The records of a zip
archive, the form since PyTorch 1.6, are looked at first: torch.load checks no checksum, so that a
flipped bit would be a wrong weight, and takes the bytes of a compressed record for weights.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deeplab.errors import InputError

MOST_SHARED = 4  # how many times over the tensors may hold the numbers of the file
WRAPPERS = (  # where trainers put it
    *("state_dict", "model_state_dict", "model_state", "network_state_dict", "network_state"),
    *("model", "network", "net"),
)


def read(path: Path) -> dict[str, Tensor]:
    """The file's state dict on the CPU.

    Raises InputError where the file is no checkpoint, is cut off, holds code, or no tensors.
    """
    content = _load(path)
    for _ in WRAPPERS:  # no deeper: a pickled dict may hold itself
        content = _wrapped(content) or content
    if not isinstance(content, Mapping):
        raise InputError(
            f"{path}: holds {type(content).__name__}, expected a state dict: tensors by name; "
            "save model.state_dict() instead of the model"
        )
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise InputError(f"{path}: holds no tensors by name; expected a state dict")
    if odd := [name for name, value in state.items() if not _is_plain(name, value)]:
        raise InputError(
            f"{path}: what it has as {odd[0]!r:.120} is no plain tensor of numbers in memory; "
            "expected weights"
        )
    # Tensors may share numbers, or repeat one without end: the sizes below are claims.
    claimed = sum(value.numel() * value.element_size() for value in state.values())
    if claimed > MOST_SHARED * path.stat().st_size:
        raise InputError(
            f"{path}: its tensors claim {claimed} bytes, and the file has {path.stat().st_size}; "
            "it is damaged, or made to fill the memory: fetch it again"
        )
    return {name: value.detach() for name, value in state.items()}


def _wrapped(content: Any) -> Mapping[Any, Any] | None:
    """The mapping that a trainer has put its model into, among other things."""
    if not isinstance(content, Mapping):
        return None
    inner = (content.get(wrapper) for wrapper in WRAPPERS)
    return next((value for value in inner if isinstance(value, Mapping)), None)


def _is_plain(name: object, value: Tensor) -> bool:
    """Whether it can be copied as weights are: dense, on the CPU, not quantized or nested."""
    dense = value.layout == torch.strided and not value.is_nested and not value.is_quantized
    return isinstance(name, str) and dense and value.device.type == "cpu"


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"  # files before PyTorch 1.6 are not, and cannot be mapped
    try:
        problem = _archive_problem(path) if zipped else ""
        if not problem:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of old files; what matters is raised
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # whatever a reader of pickles runs into on arbitrary bytes
        what = str(error).partition("\n")[0]
        if "weights_only" in str(error) or "WeightsUnpickler" in str(error):
            what = "it holds more than tensors, which could run code when it is loaded"
        raise InputError(
            f"{path}: not a readable PyTorch checkpoint ({type(error).__name__}: {what:.200}); it "
            "may be cut off or of another format; from a file that you trust, save "
            "model.state_dict() again"
        ) from error
    raise InputError(f"{path}: {problem}")


def _archive_problem(path: Path) -> str:
    """Why it holds no checkpoint as torch.save writes one; empty where it does."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    endings = {Path(record.filename).name for record in records}
    if "data.pkl" not in endings:
        return "a zip archive without a PyTorch checkpoint in it; unpack it and name the weights"
    if "constants.pkl" in endings:
        return "a TorchScript program, expected its tensors; save model.state_dict() alone"
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        return (
            "its records are compressed, which torch.save never does; fetch the file as it was "
            "published"
        )
    if record := damaged_record(path):
        return f"damaged: the checksum of its record {record:.120} is wrong; fetch the file again"
    return ""


def damaged_record(path: Path) -> str | None:
    """The first record of an archive of torch.save whose checksum is wrong; None: all are right."""
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()
