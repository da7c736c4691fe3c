"""What the drop-in takes as an array, a number or an option, and how it refuses the rest."""

from enum import IntEnum
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Kind = TypeVar("Kind", bound=IntEnum)


def array_of(name: str, value: Any) -> NDArray[Any]:
    """`value` as an array, if it is one: not a list, None or a string."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if not isinstance(value, np.ndarray | memoryview) and not hasattr(value, "__array__"):
        raise TypeError(
            f"{name} must be an array (NumPy, torch, or with __array__), not "
            f"{type(value).__name__}; np.array(...) makes one"
        )
    return np.asarray(value)


def floats(name: str, value: Any, ndims: tuple[int, ...], copy: bool = False) -> FloatArray:
    """An array of real numbers as contiguous float32: the array itself if it is, or a copy."""
    array = array_of(name, value)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} must hold real numbers (float32), not {array.dtype}")
    if array.ndim not in ndims:
        wanted = " or ".join(map(str, ndims))
        raise ValueError(f"{name} must have {wanted} dimensions, not {array.ndim}: {array.shape}")
    if copy:
        return np.array(array, np.float32, order="C")
    return np.require(array, np.float32, ["C", "W"])  # torch warns about read-only arrays


def integer(name: str, value: Any, least: int) -> int:
    """An integer, or a float without fraction (pydensecrf truncates others)."""
    if type(value) is int and value >= least:
        return value
    if isinstance(value, str | bytes) or not hasattr(value, "__int__") or np.ndim(value) > 0:
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}")
    if not float(value).is_integer() or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")
    return int(value)


def standard_deviations(name: str, value: Any, count: int) -> list[np.float32]:
    """`count` standard deviations from a number or a sequence; entries beyond are not used."""
    axes = 0 if isinstance(value, int | float) else np.ndim(value)
    if isinstance(value, str | bytes) or value is None or axes > 1:
        raise TypeError(f"{name} must be a number or {count} numbers, not {value!r}")
    values: list[Any] = [value] * count if axes == 0 else list(value)[:count]
    sigmas = [np.float32(sigma) for sigma in values]
    if len(sigmas) < count or not all(sigma > 0 for sigma in sigmas):
        raise ValueError(f"{name} must be a positive number or {count} of them, not {value!r}")
    return sigmas


def member(name: str, value: int, kinds: type[Kind]) -> Kind:
    if isinstance(value, kinds):
        return value
    if np.ndim(value) > 0 or value not in list(kinds):
        names = ", ".join(f"{kind.name} ({kind.value})" for kind in kinds)
        raise ValueError(f"{name} must be one of {names}, not {value!r}")
    return kinds(value)
