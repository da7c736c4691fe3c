"""What several operations refuse, in one dialect: "NAME must be WHAT, not VALUE".

What is not of the type or dtype asked for is a TypeError, all else a ValueError.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["ieee", "tf32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("ieee", "tf32", "bf16")


def check_tensor(name: str, value: object, dtypes: Sequence[torch.dtype]) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, not {type(value).__name__}")
    if value.dtype not in dtypes:
        *most, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} must be {', '.join(most)} or {last}, not {value.dtype}")


def check_shape(name: str, tensor: Tensor, layout: str, fits: bool, **sizes: object) -> None:
    """`layout` is what the shape must be, in words, with places for `sizes`; `fits` whether it is.

    Sizes are filled in where the shape is refused: compilers cannot trace them into a text.
    """
    if not fits:
        wanted = layout.format(**sizes)
        raise ValueError(f"{name} must have shape {wanted}, not {list(tensor.shape)}")


def check_alike(
    name: str,
    tensor: Tensor,
    other_name: str,
    other: Tensor,
    dtype_of: Callable[[Tensor], torch.dtype] = lambda tensor: tensor.dtype,
) -> None:
    """`dtype_of` tells the dtype that a tensor is computed in, where that is not its own."""
    if dtype_of(tensor) != dtype_of(other) or tensor.device != other.device:
        raise ValueError(
            f"{name} must have the dtype and device of {other_name} ({other.dtype} on "
            f"{other.device}), not {tensor.dtype} on {tensor.device}"
        )


def check_option(name: str, value: object, options: Collection[object]) -> None:
    if value not in options:
        raise ValueError(f"{name} must be one of {list(options)}, not {value!r}")


def check_integer(name: str, value: object, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if value < least or (most is not None and value > most):
        bound = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name} must be {bound}, not {value}")


def check_points(name: str, points: Tensor, ndim: int) -> None:
    """Values `[N, C]` or features `[N, D]`, of several images `[B, N, C]`, `[B, N, D]`."""
    # Half precision does not hold positions and sums.
    check_tensor(name, points, (torch.float32, torch.float64))
    layout = ", ".join(["B", "N", "D" if name == "features" else "C"][-ndim:])
    fits = points.ndim == ndim and points.shape[-1] > 0
    check_shape(name, points, f"[{layout}] with a last dimension of at least 1", fits)


def check_pair(values: Tensor, features: Tensor, ndim: int) -> None:
    check_points("values", values, ndim)
    check_points("features", features, ndim)
    fits = features.shape[:-1] == values.shape[:-1]
    layout = "[..., D] with one row a point, as values {points} have"
    check_shape("features", features, layout, fits, points=list(values.shape))
    check_alike("features", features, "values", values)


def check_rows(values: Tensor, count: int, of: str) -> None:
    """One row of values for each of the `count` points of what filters them."""
    layout = "[{count}, C], one row for each point of {of}"
    check_shape("values", values, layout, len(values) == count, count=count, of=of)


def check_finite(features: Tensor) -> None:
    if not features.isfinite().all():
        raise ValueError("features must be finite, but hold NaN or Inf")


def check_no_gradient(features: Tensor, refusal: str) -> None:
    if features.requires_grad and torch.is_grad_enabled():
        raise ValueError(refusal)


def check_precision(precision: str, impl: str, device: torch.device) -> None:
    check_option("precision", precision, PRECISIONS)
    if precision != "ieee" and impl != "triton":
        raise ValueError(
            f"precision must be 'ieee' with impl={impl!r}, which computes in the dtype of the "
            f"values, not {precision!r}: that needs impl='triton', and so CUDA"
        )
    if precision == "bf16" and device.type == "cpu":
        raise ValueError("Triton's interpreter cannot compute in bf16: it multiplies the raw bits")
