"""Mean field of a fully connected CRF (Krähenbühl and Koltun, 2011, algorithm 1).

api.py        mean_field: validate, choose, call
term.py       one pairwise term: a filter, its normalisation, the compatibility of labels
filters.py    the Gaussian filters that a term may have
reference.py  plain PyTorch over any filters, with the divergence and the gradients: the oracle
cpu.py        over lattices: fused slice - softmax - splat; compiled.py by numba;
              small.py, for small images, in fewer steps of Python
triton/       the same on a GPU: splat, blur, one fused pass; stack.py, all terms as one;
              composed.py, one fused pass between filters of any kind
build.py      the terms of a batch from features; kept.py, one from image to image
ops.py        mean field from features, and the custom operator that compilers see
"""

import torch

from kernels.dispatch import Implementation, on_cuda, register
from kernels.meanfield.api import mean_field
from kernels.meanfield.filters import (
    Filter,
    GridFilter,
    LatticeFilter,
    PairFilter,
    SeparableFilter,
    TileFilter,
)
from kernels.meanfield.term import NORMALIZATIONS, Normalization, Term

__all__ = [
    "NORMALIZATIONS",
    "Filter",
    "GridFilter",
    "LatticeFilter",
    "Normalization",
    "PairFilter",
    "SeparableFilter",
    "Term",
    "TileFilter",
    "mean_field",
]

register(
    "meanfield",
    Implementation("cpu", "compiled by numba, threaded", "cpu", (torch.float32,)),
    on_cuda("Triton kernels without atomics"),
    Implementation("reference", "plain PyTorch, over filters of any kind"),
)
