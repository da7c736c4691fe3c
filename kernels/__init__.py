"""Fused atrous convolution and high-dimensional Gaussian filtering: tensors in, tensors out.

Importing registers the operators `torch.ops.kernels.*`, which exported programs need. Compiled
implementations (numba) are imported when first used.
"""

from kernels.atrous import multi_rate_atrous_conv2d
from kernels.gaussian import (
    Lattice,
    NotSeparable,
    Separable,
    SeparableError,
    Tiles,
    apply_lattice,
    apply_separable,
    apply_tiles,
    build_lattice,
    build_separable,
    build_tiles,
    gaussian_filter,
    repeat_lattice,
    separable_error,
)
from kernels.meanfield import Term, mean_field

DISTRIBUTION = "deeplab-triton"  # tells this package from others of the same import name

__all__ = [
    "DISTRIBUTION",
    "Lattice",
    "NotSeparable",
    "Separable",
    "SeparableError",
    "Term",
    "Tiles",
    "apply_lattice",
    "apply_separable",
    "apply_tiles",
    "build_lattice",
    "build_separable",
    "build_tiles",
    "gaussian_filter",
    "mean_field",
    "multi_rate_atrous_conv2d",
    "repeat_lattice",
    "separable_error",
]
