"""The separable bilateral filter: landmark colours times a coarse grid, all in matrix products.

api.py        build_separable, apply_separable, separable_error, filter: validate, choose, call
landmarks.py  which colours stand for all, and the kernel between them
grid.py       positions on a grid
band.py       a Gaussian along one axis of it: a short convolution
factors.py    `Separable`, the filter as data, and how it is built
error.py      how far from all pairs
reference.py  plain PyTorch: the oracle
triton.py     splat and slice on a GPU
ops.py        the custom operators
"""

from kernels.dispatch import Implementation, on_cuda, register
from kernels.separable.api import apply_separable, build_separable, filter, separable_error
from kernels.separable.error import SeparableError
from kernels.separable.factors import Separable
from kernels.separable.landmarks import TOLERANCE, TOLERANCES, NotSeparable

__all__ = [
    "TOLERANCE",
    "TOLERANCES",
    "NotSeparable",
    "Separable",
    "SeparableError",
    "apply_separable",
    "build_separable",
    "filter",
    "separable_error",
]

register(
    "separable",
    on_cuda("splat and slice over landmarks and a grid"),
    Implementation("reference", "plain PyTorch, matrix products cell by cell"),
)
