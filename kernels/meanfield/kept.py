"""The smoothness term of one image, kept for the next image of its size.

Its lattice and normalisation depend on the size and sigma alone, and on a CPU their making takes a
tenth of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from kernels._numba import threads
from kernels.meanfield.term import Normalization, Term

MOST_KEPT = 2**20  # points of what is kept, in float32 some 50 bytes each


class KeptTerm:
    """At most one term, with the features that it was made of.

    It serves only where features, normalisation and number of threads are the same, bit for bit, so
    that it is never out of date. Threads may share it: one reads what another put there, or what
    was there before. A copy, also by pickle, is empty.
    """

    def __init__(self) -> None:
        self._last: tuple[np.ndarray[Any, Any], tuple[Any, ...], Term] | None = None

    def term(
        self,
        features: Tensor,
        compatibility: Tensor,
        normalization: Normalization,
        make: Callable[[], Term],
    ) -> Term:
        """What `make` gives for `features` `[N, D]` on a CPU, or what it gave for them before."""
        points, others = features.numpy(), (features.dtype, normalization, threads.number())
        last = self._last  # once: another thread may put another there meanwhile
        if last is not None and last[1] == others and np.array_equal(last[0], points):
            return replace(last[2], compatibility=compatibility)
        term = make()
        self._last = (points.copy(), others, term) if len(points) <= MOST_KEPT else None
        return term

    def clear(self) -> None:
        """Give back the memory."""
        self._last = None

    def __deepcopy__(self, memo: dict[int, Any]) -> KeptTerm:
        return KeptTerm()

    def __reduce__(self) -> tuple[type[KeptTerm], tuple[()]]:
        return KeptTerm, ()
