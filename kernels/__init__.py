"""Fused atrous convolution and high-dimensional Gaussian filtering: tensors in, tensors out."""

from __future__ import annotations

import importlib
from typing import Any

DISTRIBUTION = "deeplab-triton"  # tells this package from others of the same import name

_HOMES = {
    "multi_rate_atrous_conv2d": "kernels.atrous",
    "gaussian_filter": "kernels.gaussian",
    "build_lattice": "kernels.gaussian",
    "apply_lattice": "kernels.gaussian",
    "Lattice": "kernels.gaussian",
    "mean_field": "kernels.meanfield",
    "Term": "kernels.meanfield",
}
__all__ = ["DISTRIBUTION", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kernels' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
