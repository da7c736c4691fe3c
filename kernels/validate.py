"""What several operations refuse, in one dialect: "NAME must be WHAT, not VALUE"."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Precision = Literal["ieee", "tf32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("ieee", "tf32", "bf16")


def check_pair(values: Tensor, features: Tensor, ndim: int) -> None:
    check_points("values", values, ndim)
    check_points("features", features, ndim)
    if features.shape[:-1] != values.shape[:-1]:
        raise ValueError(
            "features must have one row a point, as values have: values are "
            f"{tuple(values.shape)}, features {tuple(features.shape)}"
        )
    check_alike("features", features, "values", values)


def check_points(name: str, points: Tensor, ndim: int) -> None:
    layout = "[B, N, C]" if ndim == 3 else "[N, C]"
    if name == "features":
        layout = layout.replace("C", "D")
    if not isinstance(points, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(points).__name__}")
    if points.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{name} must be float32 or float64, not {points.dtype}: half precision does not hold "
            f"positions and sums; use {name}.float()"
        )
    if points.ndim != ndim or points.shape[-1] == 0:
        raise ValueError(
            f"{name} must have shape {layout} with a last dimension of at least 1, "
            f"not {tuple(points.shape)}"
        )


def check_alike(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.dtype != other.dtype or tensor.device != other.device:
        raise ValueError(
            f"{name} ({tensor.dtype} on {tensor.device}) must have the dtype and device of "
            f"{other_name} ({other.dtype} on {other.device})"
        )


def check_finite(features: Tensor) -> None:
    if not features.isfinite().all():
        raise ValueError("features must be finite, but hold NaN or Inf")


def check_precision(precision: str, impl: str, device: torch.device) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {list(PRECISIONS)}, not {precision!r}")
    if precision != "ieee" and impl != "triton":
        raise ValueError(
            f"precision={precision!r} needs impl='triton', which needs CUDA: impl={impl!r} "
            "computes in the dtype of the values"
        )
    if precision == "bf16" and device.type == "cpu":
        raise ValueError("Triton's interpreter cannot compute in bf16: it multiplies the raw bits")
