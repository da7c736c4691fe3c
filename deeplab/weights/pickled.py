"""Reading a `.pth`: the tensors of a PyTorch checkpoint, by name, without executing anything.

`torch.load(weights_only=True)` unpickles tensors and plain containers only and refuses everything
else, so that a hostile file raises instead of running. The records of a zip archive, the form since
PyTorch 1.6, are looked at first: torch.load checks no checksum, and would take the bytes of a
compressed record, which torch.save never writes, for weights.
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
    odd = [name for name, value in state.items() if not _is_plain(name, value)]
    if odd:
        first = (
            f"as {odd[0]:.120}" if isinstance(odd[0], str) else f"under a {type(odd[0]).__name__}"
        )
        raise InputError(
            f"{path}: what it has {first} is no plain tensor of numbers in memory; expected weights"
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
        if zipped:
            _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old files; what matters is raised
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except InputError:
        raise
    except Exception as error:  # whatever a reader of pickles runs into on arbitrary bytes
        what = str(error).partition("\n")[0]
        if "weights_only" in str(error) or "WeightsUnpickler" in str(error):
            what = "it holds more than tensors, which could run code when it is loaded"
        raise InputError(
            f"{path}: not a readable PyTorch checkpoint ({type(error).__name__}: {what:.200}); it "
            "may be cut off or of another format; from a file that you trust, save "
            "model.state_dict() again"
        ) from error


def _check_archive(path: Path) -> None:
    """Raise InputError where it holds no checkpoint, or not as torch.save writes one."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    names = [record.filename for record in records]
    if not any(name.endswith("/data.pkl") for name in names):
        raise InputError(
            f"{path}: a zip archive without a PyTorch checkpoint in it; unpack it and name the "
            "weights"
        )
    if any(name.endswith("/constants.pkl") for name in names):
        raise InputError(
            f"{path}: a TorchScript program, expected its tensors; save model.state_dict() alone"
        )
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise InputError(
            f"{path}: its records are compressed, which torch.save never does; fetch the file as "
            "it was published"
        )
    if record := damaged_record(path):
        raise InputError(
            f"{path}: damaged: the checksum of its record {record:.120} is wrong; copy or fetch "
            "the file again"
        )


def damaged_record(path: Path) -> str | None:
    """The first record of an archive of torch.save whose checksum is wrong; None: all are right.

    torch.load looks at no checksum, so that a flipped bit would be a wrong weight.
    """
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()
