"""How much memory a prediction takes, asked before any work.

Linux would grant memory that is not there, and then end the process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from deeplab.errors import InputError
from deeplab.model import DeepLab
from kernels import memory

BYTES_A_PIXEL = 130  # in `deeplab_v2_small`, the smallest network, of the largest view


def least_memory(
    model: DeepLab,
    size: Sequence[int],
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    refines: bool = False,
) -> int:
    """Bytes for a picture of `size` (height, width), less than any that were measured.

    Weights are not counted: the model's are there already, and those of a folded copy, which are as
    large, from its first picture on.

    The network, what follows it, and the CRF do not lie in memory together. At most twice as many
    were measured in the small network; with a CRF of 11 classes 640 to 770 bytes a pixel on
    photographs, and 1900 on noise, whose lattice is the largest.
    """
    classes, area = model.num_classes, max(scales) ** 2
    several = 4 * classes if len(scales) > 1 or flip else 0  # the sum of the views so far
    a_pixel = max(  # in the network, after it, in the CRF
        BYTES_A_PIXEL * area + several,
        70 * min(1.0, area) + 8 * classes + several,
        300 + 16 * classes if refines else 0,
    )
    return round(size[0] * size[1] * a_pixel)


def fits(
    model: DeepLab,
    size: Sequence[int],
    scales: Sequence[float],
    flip: bool,
    refines: bool,
    at_once: int = 1,
) -> bool:
    """Whether twice the least memory for a picture is free, `at_once` times, as far as the system
    tells."""
    free = memory.available(next(model.parameters()).device)
    needed = 2 * at_once * least_memory(model, size, scales, flip, refines)
    return free is None or needed <= free


@contextmanager
def enough_memory(
    model: DeepLab,
    size: Sequence[int],
    scales: Sequence[float],
    flip: bool,
    refines: bool,
    count: int = 1,
) -> Iterator[None]:
    """Memory that cannot be enough, or runs out, for `count` pictures of `size`: InputError.

    Pictures that cannot fit on the CPU are refused before any work.
    """
    device = next(model.parameters()).device
    try:
        if device.type == "cpu":
            needed = count * least_memory(model, size, scales, flip, refines)
            memory.require(needed, device, "the network", "make the picture smaller")
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        height, width = size
        several = f"{count} pictures of " if count > 1 else ""
        fewer = "give fewer at a time, " if count > 1 else ""
        raise InputError(
            f"not enough memory for {several}{width} x {height} pixels; {fewer}make the picture "
            "smaller, or take it in tiles, or in smaller ones (tile, or --tile, of 512 pixels)"
        ) from error
