"""Class activation maps (CAMs) from files, as weakly supervised pipelines leave them.

A CAM says for each class of a picture's tags where it is seen, from 0 to 1; there is none for the
background. Two layouts of a pickled dictionary in an .npy file are in use:

    {"keys": [K] classes, "high_res": [K, H, W], ...}      jiwoon-ahn/irn, step/make_cam.py
    {class: [H, W], ...}                                   jiwoon-ahn/psa, infer_cls.py

Classes count from 0 without the background: class k is label k + 1 of VOC. The same arrays by name
in an .npz file (`keys` and one of the maps) are read too, which needs no pickle.

A pickle may run code when it is loaded. Only what makes arrays, tensors and plain containers is
taken from one here; anything else is refused unread.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deeplab.data.annotations import ROUNDING, UNSURE_INDEX
from deeplab.errors import InputError

KEYS, HIGH_RES = "keys", "high_res"
MAGIC = b"\x93NUMPY"
_MADE_BY = {  # how NumPy pickles arrays and scalars, wherever its version has the functions
    "_reconstruct": np.empty(0).__reduce__()[0],
    "scalar": np.float32(0).__reduce__()[0],
}


@dataclass(frozen=True)
class CAMs:
    """The activation maps of one picture.

    Attributes:
        maps: float32 `[K, H, W]`, from 0 to 1; K may be 0.
        classes: int64 `[K]`, all different, from 0 on without the background.
    """

    maps: np.ndarray
    classes: np.ndarray


def holds_cams(path: Path) -> bool:
    """Whether a file is one of CAMs: a pickled object in an .npy, or `keys` in an .npz.

    False for what cannot be read, of which whoever reads the file tells.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                with np.load(path, allow_pickle=False) as arrays:
                    return KEYS in arrays.files
            file.seek(0)
            return _is_pickled_object(file)
    except Exception:  # whatever a parser meets in a damaged file
        return False


def read_cams(path: Path, size: tuple[int, int]) -> CAMs:
    """The CAMs in a file, for a picture of `size` (height, width).

    Of several maps in it those named high_res are taken, or else the only ones of the picture's
    size.

    Raises InputError: missing, damaged, or of other contents; maps of another size, beyond 0 to 1,
    NaN or Inf; classes that are no whole numbers from 0 to 253, or not one a map.
    """
    content = _load(path)
    if KEYS in content:
        classes = _numbers(path, content[KEYS]).reshape(-1)
        maps = _maps(path, content, len(classes), size)
    else:
        classes = _numbers(path, list(content))
        one_each = [_array(each) for each in content.values()]
        if odd := [each.shape for each in one_each if each.shape != size]:
            raise InputError(f"{path}: {_does_not_fit(odd[0], size)}")
        maps = np.array(one_each).reshape(-1, *size)
    if len(np.unique(classes)) != len(classes):
        raise InputError(f"{path}: classes must be all different, not {classes.tolist()!s:.80}")
    if not np.issubdtype(maps.dtype, np.floating) and maps.size:
        raise InputError(f"{path}: maps must be floating point, not {maps.dtype}")
    if not np.isfinite(maps).all():
        raise InputError(f"{path}: maps have NaN or Inf; look for them where the file was made")
    low, high = maps.min(initial=0), maps.max(initial=0)
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise InputError(
            f"{path}: maps must be from 0 to 1, not from {low:.3g} to {high:.3g}; divide those of "
            "each class by their maximum"
        )
    return CAMs(maps.clip(0, 1).astype(np.float32), classes)


def _maps(path: Path, content: Mapping[Any, Any], count: int, size: tuple[int, int]) -> np.ndarray:
    shape = (count, *size)
    named = {name: _array(each) for name, each in content.items() if name != KEYS}
    if HIGH_RES in named and named[HIGH_RES].shape == shape:
        return named[HIGH_RES]
    fitting = [each for each in named.values() if each.shape == shape]
    if len(fitting) != 1:
        shapes = ", ".join(f"{name} {list(each.shape)}" for name, each in named.items())
        raise InputError(
            f"{path}: one of its arrays must be {list(shape)}, {count} classes on a picture "
            f"{size[0]} high and {size[1]} wide, not {shapes or 'none'}; check that it belongs to "
            "this picture, and save maps of the picture's size as high_res"
        )
    return fitting[0]


def _does_not_fit(shape: tuple[int, ...], size: tuple[int, int]) -> str:
    return (
        f"each map must be {list(size)}, [height, width] of the picture, not {list(shape)}; check "
        "that it belongs to this picture"
    )


def _numbers(path: Path, keys: Any) -> np.ndarray:
    """The classes, int64 `[K]`."""
    try:
        given = np.asarray(_array(keys))
        classes = given.astype(np.int64)
        whole = given.size == 0 or (given.dtype.kind in "iu" and (classes >= 0).all())
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole or (classes > UNSURE_INDEX - 2).any():
        raise InputError(
            f"{path}: classes must be whole numbers from 0 to {UNSURE_INDEX - 2}, not {keys!r:.80}"
        )
    return classes


def _array(value: Any) -> np.ndarray:
    """An array of an array, a tensor or a list."""
    return np.asarray(value.numpy() if hasattr(value, "numpy") else value)


def _load(path: Path) -> Mapping[Any, Any]:
    try:
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                with np.load(path, allow_pickle=False) as arrays:
                    return {name: arrays[name] for name in arrays.files}
            file.seek(0)
            if not _is_pickled_object(file):
                raise ValueError("it holds plain numbers, as of probabilities")
            array = _ArraysOnly(file, encoding="latin1").load()
        content = array.item() if isinstance(array, np.ndarray) and array.shape == () else array
        if not isinstance(content, Mapping):
            raise ValueError(f"it holds {type(content).__name__}")
        return content
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the name and the folder") from None
    except Exception as error:  # damaged files raise whatever their parsers meet
        raise InputError(
            f"{path}: cannot be read as CAMs ({str(error) or type(error).__name__:.200}); expected "
            "a dictionary of keys and high_res, or of a map for each class"
        ) from error


def _is_pickled_object(file: io.BufferedReader) -> bool:
    """Whether an .npy holds one Python object; the file is left at its pickle."""
    if file.read(len(MAGIC)) != MAGIC:
        return False
    file.seek(0)
    reader = {(1, 0): np.lib.format.read_array_header_1_0}
    reader |= {(2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    shape, _, dtype = reader[version](file)
    return shape == () and dtype.hasobject


class _ArraysOnly(pickle.Unpickler):
    """Unpickles arrays, tensors and plain containers, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may call."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in _MADE_BY:
            return _MADE_BY[name]
        plain = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("collections", "OrderedDict"): OrderedDict,
            ("_codecs", "encode"): _encode,
            ("torch.storage", "_load_from_bytes"): _storage,
        }
        if (module, name) in plain:
            return plain[module, name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            from torch._utils import _rebuild_tensor_v2

            return _rebuild_tensor_v2
        raise pickle.UnpicklingError(f"{module}.{name} could run code")


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as older pickles spell them."""
    return text.encode("latin1" if encoding == "latin1" else "ascii")


def _storage(content: bytes) -> Any:
    """The numbers of a tensor, which torch pickles as a file in the file."""
    import torch

    return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
