"""Multi-rate atrous convolution: one call of kernels beside one F.conv2d for each rate.

On a CPU: the heads of DeepLab v2, ResNet's (2048 -> 21 at four rates, summed) and one stage of
VGG's ASPP-L (512 -> 1024 at four rates with ReLU, concatenated), batch 1, float32, on the maps of
321 and 513 pixel crops. On a GPU also the branches of DeepLab v3 (2048 -> 256 at three rates), and
batch 1, 4 and 16, bfloat16 and float32 with TF32, everything channels_last.

The gate is an error budget: ours may be off from float64 by twice what PyTorch's own convolution in
the same dtype is, plus one rounding of the largest value.
"""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import switches
import torch
from atrous_heads import (
    Head,
    Operands,
    call,
    compiled,
    cost,
    one_convolution_a_rate,
    operands,
    ours,
)
from frame import Candidate, Case, Check, Comparison, Prepared, Settings
from machine import BF16_PEAK, TF32_PEAK

OURS, PEER, COMPILED = "kernels", "F.conv2d a rate", "torch.compile"

# The graph that times the peer must not hold graphs of inductor's own, which "max-autotune" makes.
GPU_MODE = "max-autotune-no-cudagraphs"
GPU_NOTE = (
    f"torch.compile: mode {GPU_MODE}, captured like the others; its wall time is without CUDA "
    "graphs. It is timed where a bar is set, elsewhere eager PyTorch alone: compiling takes long"
)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
BATCHES = (1, 4, 16)
GPU_HEADS = {
    "v2 head 41x41": Head(2048, 21, 41, "sum"),
    "v2 head 65x65": Head(2048, 21, 65, "sum"),
    "VGG ASPP-L 41x41": Head(512, 1024, 41, "concat"),
    "v3 branches 65x65": Head(2048, 256, 65, "concat", rates=(12, 24, 36), normalised=True),
}
# Times as fast as the fastest peer, forward alone and with the backward.
BARS = {
    "v2 head 65x65 bf16 batch 1": (5.0, 3.0),
    "v2 head 65x65 bf16 batch 16": (2.0, 2.0),
    "VGG ASPP-L 41x41 bf16 batch 4": (1.2, 1.1),
    "v3 branches 65x65 bf16 batch 4": (1.1, 1.0),
}
FLOOR_BARS = {"v2 head 65x65 bf16 batch 16": 2.0}  # times the floor at most, forward alone
QUICK = (
    "v2 head 65x65 bf16 batch 1",
    "v2 head 65x65 bf16 batch 1 + backward",
    "v2 head 65x65 bf16 batch 16",
    "v3 branches 65x65 bf16 batch 4",
    "VGG ASPP-L 41x41 fp32 batch 1 + backward",
)
BACKWARD = " + backward"
CPU_COMPILED = Head(2048, 21, 41, "sum")  # compiling takes long: one head has this peer too


def cases(settings: Settings) -> list[Case]:
    """Each head forward alone, then with its backward."""
    if settings.device == "cuda":
        return _gpu_cases(settings.quick)
    if settings.quick:
        small = {
            "256->21 x4 41x41": Head(256, 21, 41, "sum"),
            "64->64 x4 41x41": Head(64, 64, 41, "concat"),
        }
        return [_cpu_case(name, head) for name, head in small.items()]
    heads = {
        "2048->21 x4 41x41": CPU_COMPILED,
        "2048->21 x4 65x65": Head(2048, 21, 65, "sum"),
        "512->1024 x4 41x41": Head(512, 1024, 41, "concat"),
    }
    return [
        _cpu_case(name, replace(head, backward=backward))
        for name, head in heads.items()
        for backward in (False, True)
    ]


COMPARISON = Comparison(
    "aspp",
    " ".join(__doc__.split("\n\n")[0].split()),
    ("cpu", "cuda"),
    cases,
    most_seconds={"cuda": 330.0},
)


def prepare(head: Head, device: str, with_compiled: bool = False) -> Prepared:
    """Inputs, candidates and gate of one case; `with_compiled`: torch.compile is a peer too."""
    on_gpu = device == "cuda"
    around = switches.tuned if on_gpu else nullcontext
    stacked = operands(head, device)
    apart = stacked.apart()
    candidates: dict[str, Candidate] = {
        OURS: call(head, ours, stacked),
        PEER: call(head, one_convolution_a_rate, apart),
    }
    notes = []
    with around():
        facts = switches.state() if on_gpu else {}
        if with_compiled:
            peer = call(head, compiled(GPU_MODE if on_gpu else None), apart)
            failure = _failure(peer)
            if failure is None:
                candidates[COMPILED] = peer
                notes = [GPU_NOTE] if on_gpu else []
            else:
                notes = [f"NOT COMPILED, so eager PyTorch is the only peer: {failure}"]
    return Prepared(
        candidates=candidates,
        gate=partial(_gate, head, apart),
        cost=cost(head, _peak(head)) if on_gpu else cost(head),
        facts={**vars(head), "dtype": str(head.dtype).removeprefix("torch."), **facts},
        notes=notes,
        around=around,
    )


def _failure(candidate: Candidate) -> str | None:
    """Why torch.compile cannot do it here, such as for want of a C++ compiler; None where it can.

    The other candidates are worth timing without it.
    """
    try:
        candidate()
    except Exception as error:
        return f"{type(error).__name__}: {''.join(str(error).splitlines()[:1])}"
    return None


def _cpu_case(name: str, head: Head) -> Case:
    return Case(
        name + BACKWARD if head.backward else name,
        partial(prepare, head, "cpu", head == CPU_COMPILED),
        memory=head.backward,
    )


def _gpu_cases(quick: bool) -> list[Case]:
    """Every head, dtype and batch; those with a bar first, lest time run out before them."""
    heads = {
        f"{name} {dtype} batch {batch}": replace(head, dtype=DTYPES[dtype], batch=batch)
        for name, head in GPU_HEADS.items()
        for dtype in DTYPES
        for batch in BATCHES
    }
    listed = [
        _gpu_case(name, head, backward, quick)
        for name, head in heads.items()
        for backward in (False, True)
    ]
    if quick:
        return [case for case in listed if case.name in QUICK]
    return sorted(listed, key=lambda case: case.bar is None)


def _gpu_case(name: str, head: Head, backward: bool, quick: bool) -> Case:
    """One case; quick, only the first bars have all their peers, and so only they are judged."""
    judged = name in BARS and (not quick or name == QUICK[0])
    if backward:
        # In training a normalisation takes the batch's statistics: nothing is folded, and the
        # branches have a bias, on both sides.
        head = replace(head, backward=True, normalised=False)
    return Case(
        name + BACKWARD if backward else name,
        partial(prepare, head, "cuda", judged),
        bar=BARS[name][backward] if judged else None,
        floor_bar=None if backward else FLOOR_BARS.get(name),
    )


def _peak(head: Head) -> str:
    return BF16_PEAK if head.dtype == torch.bfloat16 else TF32_PEAK


def _gate(head: Head, apart: Operands, outputs: Mapping[str, Any]) -> list[Check]:
    """Each candidate but the peer against float64, within a budget that the peer's error sets."""
    with switches.without_cudnn():
        exact = _named(call(head, one_convolution_a_rate, apart.double())())
    found = {name: _named(output) for name, output in outputs.items()}
    eps = _eps(head.dtype, apart.input.device.type)
    checks = []
    for name in (name for name in found if name != PEER):
        for what, truth in exact.items():
            rounding = eps * truth.abs().max().item()
            limit = 2 * _error(found[PEER][what], truth) + rounding
            value = _error(found[name][what], truth)
            checks.append(Check(f"largest error of {what} ({name})", value, limit))
    return checks


def _eps(dtype: torch.dtype, device: str) -> float:
    """One rounding: of the dtype, or of TF32 where it stands in for float32.

    cuDNN chooses between kernels with and without TF32 by their speed, so its error alone does not
    tell what the switches allow.
    """
    if dtype == torch.float32 and device == "cuda" and torch.backends.cudnn.allow_tf32:
        return switches.TF32_EPS
    return torch.finfo(dtype).eps


def _named(output: Any) -> dict[str, torch.Tensor]:
    """The output and its gradients by name, each one tensor, where there are any."""
    outputs = output if isinstance(output, dict) else {"output": output}
    return {name: _joined(value) for name, value in outputs.items() if len(value) > 0}


def _joined(value: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach()
    return value[0] if len(value) == 1 else torch.stack(value)


def _error(value: torch.Tensor, truth: torch.Tensor) -> float:
    if value.shape != truth.shape:  # a difference would broadcast
        return math.inf
    return (value.double() - truth).abs().max().item()
