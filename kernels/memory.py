"""Whether a computation fits: refused before anything is allocated, with the size it would need.

Linux grants memory that is not there and ends the process when it is used; so the free memory is
asked first.
"""

from pathlib import Path

import torch

from kernels import cgroups

ASK_FROM = 2**30  # bytes on a GPU: to ask its driver takes longer than a small filter


def require(
    needed: int, device: torch.device, what: str, mend: str = "take the image in parts"
) -> None:
    """Refuse what needs more bytes than `device` has free.

    Args:
        needed: bytes, at least: an estimate that errs on the low side refuses nothing that fits.
        what: what needs them, the subject of the message.
        mend: what to do about it, in the imperative.

    Raises:
        MemoryError: it cannot fit.
    """
    if device.type == "cuda" and needed < ASK_FROM:
        return
    free = available(device)
    if free is not None and needed > free:
        raise MemoryError(
            f"{what} needs at least {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free on "
            f"{device}; {mend}"
        )


def available(device: torch.device) -> int | None:
    """Bytes to be had on `device` without swapping; None where the system does not tell.

    On a CPU the free memory of the machine, or what the control groups of the process leave of it.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + kept
    if device.type != "cpu":
        return None
    return cgroups.left(_of_machine())


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None
