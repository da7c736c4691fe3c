"""What a step computes in."""

from __future__ import annotations

import torch


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What autocast computes in on this device; None leaves float32."""
    if precision != "auto":
        named = {"bfloat16": torch.bfloat16, "float16": torch.float16}
        return named.get(precision)
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = bool(torch.cpu._is_avx512_bf16_supported())
    return torch.bfloat16 if fast else None
