"""High-dimensional Gaussian filtering: y_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j."""

from kernels.gaussian.api import (
    PRECISIONS,
    Precision,
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
from kernels.gaussian.exact.tiles import Tiles
from kernels.gaussian.permutohedral.lattice import Lattice
from kernels.gaussian.separable.error import SeparableError
from kernels.gaussian.separable.factors import Separable
from kernels.gaussian.separable.landmarks import TOLERANCE, TOLERANCES, NotSeparable

__all__ = [
    "PRECISIONS",
    "TOLERANCE",
    "TOLERANCES",
    "Lattice",
    "NotSeparable",
    "Precision",
    "Separable",
    "SeparableError",
    "Tiles",
    "apply_lattice",
    "apply_separable",
    "apply_tiles",
    "build_lattice",
    "build_separable",
    "build_tiles",
    "gaussian_filter",
    "repeat_lattice",
    "separable_error",
]
