"""How weights lie in memory: packed once, for a network that does not train, and their gradients.

Without `pack` a call packs its weights itself: they cannot go stale, and the time counts. A
`PackedWeight` is a snapshot: it saves that time and sees no later change of the weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ALIGNMENT = 16  # elements, of rows in memory


@dataclass(frozen=True)
class PackedWeight:
    """What `pack` made of a weight; hand it to `multi_rate_atrous_conv2d` in its place.

    Attributes:
        weight: a copy, `[R, Cout, Cin, k, k]` with Cin contiguous, as the implicit algorithm reads.
        rows: `[tap blocks * Cout, Cin]`, as the shift algorithm reads it, padded to 16.
        fuse: what it was packed for.
    """

    weight: Tensor
    rows: Tensor
    fuse: Literal["sum", "concat"]


def pack(weight: Tensor, *, fuse: Literal["sum", "concat"] = "sum") -> PackedWeight:
    """Pack `weight` `[R, Cout, Cin, k, k]` for `multi_rate_atrous_conv2d(..., fuse=fuse)`.

    A snapshot without gradient: change or train the weight, and pack again. Takes twice the
    weight's memory.

    Raises:
        TypeError, ValueError: `weight` is no such tensor, or `fuse` is unknown.
    """
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a torch.Tensor, not {type(weight).__name__}")
    if weight.dim() != 5 or 0 in weight.shape or weight.shape[3] != weight.shape[4]:
        raise ValueError(
            f"weight must be [R, Cout, Cin, k, k] and not empty, not {list(weight.shape)}"
        )
    if fuse not in ("sum", "concat"):
        raise ValueError(f"fuse must be 'sum' or 'concat', not {fuse!r}")
    weight = weight.detach()
    last = weight.permute(0, 1, 3, 4, 2).clone(memory_format=torch.contiguous_format)
    return PackedWeight(last.permute(0, 1, 4, 2, 3), rows_of(weight, fuse == "sum"), fuse)


def rows_of(weight: Tensor, sum_rates: bool) -> Tensor:
    """The columns of multiply-then-shift as rows; see kernels/atrous/triton/shift.py."""
    rates, outputs, inputs, kernel, _ = weight.shape
    taps = kernel * kernel
    by_tap = weight.permute(0, 3, 4, 1, 2).reshape(rates, taps, outputs, inputs)
    if sum_rates:
        exact = torch.promote_types(weight.dtype, torch.float32)
        centre = by_tap[:, taps // 2].sum(0, dtype=exact).to(weight.dtype)
        others = torch.cat([by_tap[:, : taps // 2], by_tap[:, taps // 2 + 1 :]], dim=1)
        by_tap = torch.cat([centre[None], others.flatten(0, 1)])
    rows = by_tap.reshape(-1, inputs)
    padded = weight.new_zeros(*(-(-size // ALIGNMENT) * ALIGNMENT for size in rows.shape))
    padded[: len(rows), :inputs] = rows
    return padded


def empty_weight_gradient(weight: Tensor) -> Tensor:
    """An unset gradient `[R, Cout, Cin, k, k]` with Cin contiguous, whatever weight's own strides.

    Compiled kernels write it in one go; autograd gives `.grad` the parameter's strides.
    """
    rates, outputs, inputs, kernel, _ = weight.shape
    return weight.new_empty(rates, outputs, kernel, kernel, inputs).permute(0, 1, 4, 2, 3)
