"""High-dimensional Gaussian filtering: y_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j."""

from kernels.gaussian.api import apply_lattice, build_lattice, gaussian_filter
from kernels.gaussian.permutohedral.lattice import Lattice

__all__ = ["Lattice", "apply_lattice", "build_lattice", "gaussian_filter"]
