"""The Gaussian sum over all pairs: y_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j.

api.py        build_tiles, apply_tiles, filter: validate, choose, call
tiles.py      points sorted into tiles, and the pairs of tiles that a filter must not skip
reference.py  the sum in plain PyTorch, block by block: the oracle of everything here
tiled.py      the sum over kept pairs of tiles in plain PyTorch: the oracle of the kernels
triton.py     the same on a GPU
ops.py        the custom operators
"""

from kernels.dispatch import Implementation, on_cuda, register
from kernels.exact.api import apply_tiles, build_tiles, check_eps, filter
from kernels.exact.tiles import Tiles

__all__ = ["Tiles", "apply_tiles", "build_tiles", "check_eps", "filter"]

register(
    "exact",
    on_cuda("tiles of pairs, as flash attention"),
    Implementation("reference", "plain PyTorch, all pairs chunk by chunk"),
)
