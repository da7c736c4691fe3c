"""High-dimensional Gaussian filtering: y_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j."""

from kernels.gaussian.api import (
    PRECISIONS,
    Precision,
    apply_lattice,
    apply_tiles,
    build_lattice,
    build_tiles,
    gaussian_filter,
)
from kernels.gaussian.exact.tiles import Tiles
from kernels.gaussian.permutohedral.lattice import Lattice

__all__ = [
    "PRECISIONS",
    "Lattice",
    "Precision",
    "Tiles",
    "apply_lattice",
    "apply_tiles",
    "build_lattice",
    "build_tiles",
    "gaussian_filter",
]
