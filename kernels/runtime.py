"""Which implementation of an operation runs, and why.

A public function names what is computed; its `impl` argument says how. `choose` turns that
argument into one implementation: an explicit name is taken at its word or refused with the reason,
`"auto"` is the first of the operation's table that runs on the device and dtype at hand.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """The implementation that an operation uses, and the reason in one sentence."""

    impl: str
    reason: str


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation, and where it runs.

    Attributes:
        name: the value of `impl` that selects it.
        about: what it is, for `Choice.reason`.
        device: the only device type that it runs on; None for any.
        dtype: the only dtype that it computes in; None for any floating dtype.
        automatic: whether `impl="auto"` may choose it.
    """

    name: str
    about: str
    device: str | None = None
    dtype: torch.dtype | None = None
    automatic: bool = True

    def refusal(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot run on this device and dtype; None where it can."""
        if self.device is not None and device.type != self.device:
            return f"{self.name!r} runs on {self.device} only, the tensors are on {device.type}"
        if self.dtype is not None and dtype != self.dtype:
            return f"{self.name!r} computes in {self.dtype} only, the tensors are {dtype}"
        return None


_NUMBA = Implementation("cpu", "compiled by numba, threaded", device="cpu", dtype=torch.float32)

# By operation, in the order in which "auto" tries them.
OPERATIONS: Mapping[str, tuple[Implementation, ...]] = {
    "atrous": (
        Implementation("eager", "plain PyTorch, one convolution a rate; no fused kernel yet"),
        Implementation("op", "the same convolutions behind one custom operator", automatic=False),
    ),
    "exact": (Implementation("eager", "plain PyTorch, all pairs chunk by chunk"),),
    "permutohedral": (_NUMBA, Implementation("eager", "plain PyTorch")),
    "mean_field": (_NUMBA, Implementation("eager", "plain PyTorch")),
}


def choose(
    operation: str, impl: str = "auto", *, device: torch.device, dtype: torch.dtype
) -> Choice:
    """The implementation of `operation` for tensors of this device and dtype, and why.

    Each distinct choice is logged once, at debug level, by the logger `kernels.runtime`.

    Args:
        operation: a key of `OPERATIONS`.
        impl: the name of an implementation, or `"auto"`.
        device: where the tensors are.
        dtype: what is computed in (under autocast, the dtype that it casts to).

    Raises:
        ValueError: no such operation or implementation, or an explicit `impl` that cannot run
            on this device or dtype. An explicit name never falls back to another.
    """
    choice = _choose(operation, impl, device, dtype)
    if not torch.compiler.is_compiling():
        _log_once(operation, impl, choice)
    return choice


def _choose(operation: str, impl: str, device: torch.device, dtype: torch.dtype) -> Choice:
    if operation not in OPERATIONS:
        raise ValueError(f"operation must be one of {sorted(OPERATIONS)}, not {operation!r}")
    table = OPERATIONS[operation]
    if impl == "auto":
        return _first_that_runs(table, device, dtype)
    for candidate in table:
        if candidate.name == impl:
            refusal = candidate.refusal(device, dtype)
            if refusal is not None:
                raise ValueError(f"impl={impl!r} cannot run {operation!r} here: {refusal}")
            return Choice(impl, f"asked for: {candidate.about}")
    names = ["auto", *(candidate.name for candidate in table)]
    raise ValueError(f"impl of {operation!r} must be one of {names}, not {impl!r}")


def _first_that_runs(
    table: tuple[Implementation, ...], device: torch.device, dtype: torch.dtype
) -> Choice:
    refusals: list[str] = []
    for candidate in table:
        refusal = candidate.refusal(device, dtype)
        if refusal is None and candidate.automatic:
            return Choice(candidate.name, "; ".join([f"auto: {candidate.about}", *refusals]))
        if refusal is not None:
            refusals.append(refusal)
    raise ValueError(f"no implementation runs here: {'; '.join(refusals)}")


@functools.cache
def _log_once(operation: str, impl: str, choice: Choice) -> None:
    logger.debug("%s: impl=%r runs %r (%s)", operation, impl, choice.impl, choice.reason)
