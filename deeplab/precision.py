"""What a network computes in, and where bfloat16 is the faster choice."""

from __future__ import annotations

from typing import Literal

import torch

PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
Precision = torch.dtype | Literal["auto"]


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions that multiply bfloat16: else it is slower than float32.

    Of a processor AVX512_BF16, which all with AMX have too, as PyTorch tells it.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has_onednn = torch.backends.mkldnn.is_available()
    return device.type == "cpu" and has_onednn and torch.cpu._is_avx512_bf16_supported()


def chosen(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype: of "auto" bfloat16 where the device computes in it, float32 elsewhere.

    Raises ValueError for another one.
    """
    if precision == "auto":
        return torch.bfloat16 if computes_bfloat16(device) else torch.float32
    if precision not in PRECISIONS:
        raise ValueError(
            'precision must be torch.float32, torch.bfloat16, torch.float16 or "auto", not '
            f"{precision!r}"
        )
    return precision
