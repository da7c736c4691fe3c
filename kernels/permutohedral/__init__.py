"""Gaussian filtering on the permutohedral lattice (Adams, Baek and Davis, 2010).

api.py        build_lattice, apply_lattice, repeat_lattice, filter: validate, choose, call
lattice.py    the lattice as data; limits.py, which points it can hold
batch.py      lattices of several images as one
reference.py  plain PyTorch: the oracle
cpu.py        threads, over compiled.py by numba
triton/       a GPU
ops.py        the custom operators
"""

import torch

from kernels.dispatch import Implementation, on_cuda, register
from kernels.permutohedral.api import (
    apply_lattice,
    build_lattice,
    build_lattices,
    filter,
    repeat_lattice,
)
from kernels.permutohedral.lattice import Lattice
from kernels.permutohedral.limits import UnplaceableError

__all__ = [
    "Lattice",
    "UnplaceableError",
    "apply_lattice",
    "build_lattice",
    "build_lattices",
    "filter",
    "repeat_lattice",
]

register(
    "permutohedral",
    Implementation("cpu", "compiled by numba, threaded", "cpu", (torch.float32,)),
    on_cuda("Triton kernels without atomics"),
    Implementation("reference", "plain PyTorch"),
)
