"""Fused atrous convolution, Gaussian filtering and mean field: tensors in, tensors out.

An operation is a folder: `atrous`, `permutohedral`, `exact`, `separable`, `meanfield`. Importing
registers the operators `torch.ops.kernels.*`, which exported programs need. Compiled
implementations (numba, Triton) are imported when first used.
"""

from kernels.atrous import multi_rate_atrous_conv2d
from kernels.exact import Tiles, apply_tiles, build_tiles
from kernels.gaussian import gaussian_filter
from kernels.meanfield import Term, mean_field
from kernels.permutohedral import Lattice, apply_lattice, build_lattice, repeat_lattice
from kernels.separable import (
    NotSeparable,
    Separable,
    SeparableError,
    apply_separable,
    build_separable,
    separable_error,
)

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
