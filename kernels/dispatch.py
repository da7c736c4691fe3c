"""Which implementation of an operation runs, and why.

A public function names what is computed; its `impl` argument says how. `choose` turns that
argument into one implementation: an explicit name is taken at its word or refused with the reason,
`"auto"` is the first of the operation's table that runs on the device and dtype at hand.
"""

import functools
import importlib
import importlib.util
import logging
import os
from dataclasses import dataclass
from types import ModuleType

import torch

logger = logging.getLogger(__name__)

# Of operators whose host waits for the device: compilers must keep them out of CUDA graphs.
WAITS = (torch.Tag.cudagraph_unsafe,) if hasattr(torch.Tag, "cudagraph_unsafe") else ()

TRITON_INSTALLED = importlib.util.find_spec("triton") is not None


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
        dtypes: what it computes in; None for any floating dtype.
        automatic: whether `impl="auto"` may choose it.
        triton: whether it needs Triton. Such kernels also take CPU tensors in Triton's interpreter,
            where they are asked for by name.
    """

    name: str
    about: str
    device: str | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    automatic: bool = True
    triton: bool = False

    def refusal(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot run on this device and dtype; None where it can."""
        interpreted = self.triton and device.type == "cpu" and interpreting()
        if self.device is not None and device.type != self.device and not interpreted:
            return f"{self.name!r} runs on {self.device} only, the tensors are on {device.type}"
        if self.dtypes is not None and dtype not in self.dtypes:
            known = " and ".join(str(known) for known in self.dtypes)
            return f"{self.name!r} computes in {known} only, the tensors are {dtype}"
        if interpreted and dtype == torch.bfloat16:
            return f"Triton's interpreter cannot compute in {dtype}: it multiplies the raw bits"
        if self.triton and not TRITON_INSTALLED:
            return f"{self.name!r} needs Triton, which is not installed: pip install triton"
        return None


def on_cuda(
    about: str,
    name: str = "triton",
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
    automatic: bool = True,
) -> Implementation:
    """An implementation in Triton."""
    return Implementation(name, about, "cuda", dtypes, automatic, triton=True)


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def convolutions_allow_tf32() -> bool:
    """Whether PyTorch's own convolutions may compute float32 in TF32 on CUDA.

    The switch is torch.backends.cudnn.allow_tf32 (on by default), or what replaced it,
    torch.backends.cudnn.conv.fp32_precision.
    """
    convolutions = getattr(torch.backends.cudnn, "conv", None)
    if convolutions is None:
        return bool(torch.backends.cudnn.allow_tf32)
    return bool(convolutions.fp32_precision == "tf32")


OPERATIONS: dict[str, tuple[Implementation, ...]] = {}
"""The implementations of each operation, in the order in which "auto" tries them."""


def register(operation: str, *implementations: Implementation) -> None:
    """Make an operation known; its package `kernels.<operation>` calls this when imported."""
    OPERATIONS[operation] = implementations


def implementation(operation: str, name: str) -> ModuleType:
    """The module of an implementation, `kernels.<operation>.<name>`, imported when first used.

    "triton:shift" is one of several algorithms: the module `kernels.<operation>.triton.shift`.
    """
    return importlib.import_module(f"kernels.{operation}.{name.replace(':', '.')}")


def choose(
    operation: str, impl: str = "auto", *, device: torch.device, dtype: torch.dtype
) -> Choice:
    """The implementation of `operation` for tensors of this device and dtype, and why.

    Each distinct choice is logged once, at debug level, by the logger `kernels.dispatch`.

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
        return _automatic(table, device, dtype)
    for candidate in table:
        if candidate.name == impl:
            refusal = candidate.refusal(device, dtype)
            if refusal is not None:
                raise ValueError(f"impl={impl!r} cannot run {operation!r} here: {refusal}")
            return Choice(impl, f"asked for: {candidate.about}")
    names = ["auto", *(candidate.name for candidate in table)]
    raise ValueError(f"impl of {operation!r} must be one of {names}, not {impl!r}")


def _automatic(
    table: tuple[Implementation, ...], device: torch.device, dtype: torch.dtype
) -> Choice:
    refusals: list[str] = []
    for candidate in (each for each in table if each.automatic):
        refusal = candidate.refusal(device, dtype)
        if refusal is not None:
            refusals.append(refusal)
        elif candidate.device in (None, device.type):  # never for the interpreter
            return Choice(candidate.name, "; ".join([f"auto: {candidate.about}", *refusals]))
    raise ValueError(f"no implementation runs here: {'; '.join(refusals)}")


@functools.cache
def _log_once(operation: str, impl: str, choice: Choice) -> None:
    logger.debug("%s: impl=%r runs %r (%s)", operation, impl, choice.impl, choice.reason)
