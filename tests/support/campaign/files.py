"""What a file says, whatever its bytes: times, speeds and packing left out."""

import csv
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

TIMED = ("images_per_second", "loader_images_per_second", "wait_share", "memory_mib")


def content(path: Path) -> Any:
    """Comparable with ==; raises where the file is not whole."""
    kind = path.suffix
    if kind in (".png", ".jpg"):
        with Image.open(path) as picture:
            picture.load()
            return picture.mode, picture.size, picture.tobytes(), picture.getpalette()
    if kind == ".npz":
        with np.load(path) as arrays:
            return {name: (arrays[name].shape, arrays[name].tobytes()) for name in arrays.files}
    if kind == ".safetensors":
        with safe_open(path, "pt") as file:
            tensors = {name: _bits(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata()
    if kind == ".state":
        return _plain(torch.load(path, weights_only=True))
    if kind == ".csv":
        rows = list(csv.DictReader(path.read_text().splitlines()))
        return [{key: value for key, value in row.items() if key not in TIMED} for row in rows]
    if kind == ".json":
        return json.loads(path.read_text())
    if kind == ".tgz":
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes()), mode="r:gz") as archive:
            return {one.name: _member(archive, one) for one in archive.getmembers()}
    return path.read_bytes()


def contents(folder: Path, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Of all files in a folder, by name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): content(path)
        for path in files
        if not path.name.startswith(without)
    }


def lay(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files by their names below a folder."""
    for name, bytes_ in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes_)


def _member(archive: tarfile.TarFile, one: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(one)
    return b"" if file is None else file.read()


def _bits(tensor: torch.Tensor) -> tuple[Any, ...]:
    return str(tensor.dtype), tuple(tensor.shape), tensor.numpy().tobytes()


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _bits(value)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
