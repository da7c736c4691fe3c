"""The Gaussian sum over all pairs: y_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j.

eager.py   the sum, block by block: the oracle of everything here
tiles.py   points sorted into tiles, and the pairs of tiles that a filter must not skip
tiled.py   the sum over those pairs in plain PyTorch: the oracle of the kernels
triton.py  the same on a GPU
ops.py     the custom operators
"""

from __future__ import annotations

import importlib
from types import ModuleType


def implementation(name: str) -> ModuleType:
    """The module that computes over tiles for `impl="eager"` or `"triton"`, imported if used.

    Each has `masses`, `apply` and `feature_gradient`.
    """
    return importlib.import_module(f"{__name__}.{'tiled' if name == 'eager' else name}")
