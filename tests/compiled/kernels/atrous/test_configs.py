"""Every configuration that ships compiles to what its target has: registers, memory, instructions.

Compiled is each mode in which a kernel is launched, in every dtype that the configuration is for:
in float16, whose conversions take no more instructions than those of bfloat16, some of the modes.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
from targets import KB, SHARED_MEMORY

from kernels.atrous.triton import configs

SMALLEST_SHARED_MEMORY = 64 * KB  # what a configuration for any GPU may take
TARGETS = tuple(SHARED_MEMORY)
DTYPES = {
    "half": (torch.bfloat16, torch.float16),
    "tf32": (torch.float32,),
    "ieee": (torch.float32,),
}
HEAD = {"fuse": "sum", "inputs": 2048, "outputs": 21, "size": 65, "algorithm": "triton:shift"}
MODES: dict[str, dict[str, dict[str, Any]]] = {
    "conv": {
        "concat, epilogue": {},
        "sum": {"fuse": "sum"},
        "sum, uneven": {"fuse": "sum", "inputs": 528},
        "input": {"gradient": "input"},
        "input, uneven": {"gradient": "input", "outputs": 528},
        "product": HEAD | {"batch": 1},
        "product, input": HEAD | {"batch": 1, "gradient": "input"},
    },
    "weight_grad": {
        "direct": {"gradient": "weight"},
        "split": {"gradient": "weight", "fuse": "sum", "outputs": 32},
        # More images than one group holds: what the second finds is added to what the first did.
        "product, add": HEAD | {"batch": 24, "gradient": "weight"},
    },
}
MODES_IN_FLOAT16 = ("concat, epilogue", "input", "direct")
BRANCHES = {
    "conv": {
        "FUSE": {"sum", "concat"},
        "RELU": {True, False},
        "EVEN_K": {True, False},
        "DIRECTION": {1, -1},
        "KERNEL": {1, 3},
    },
    "weight_grad": {"ADD": {True, False}, "KERNEL": {1, 3}},
}


def cases():
    """Each configuration once for a file and target, in each dtype and mode."""
    seen = {}
    for path in sorted(configs.FOLDER.glob("*.json")):
        if path.stem == "interpreter":
            continue
        content = json.loads(path.read_text())
        if "target" not in content:
            raise ValueError(
                f"{path.name} must say what it compiles for: a target, or null for any"
            )
        named = content["target"]
        for target, entry in itertools.product([named] if named else TARGETS, content["configs"]):
            kernel, kind = entry["kernel"], entry["arithmetic"]
            config = configs.nearest([entry], kernel, kind, 1, 1, 1)
            shared = SHARED_MEMORY[target] if named else SMALLEST_SHARED_MEMORY
            for dtype, mode in itertools.product(DTYPES[kind], MODES[kernel]):
                tile = f"{config.block_m}x{config.block_n}x{config.block_k}"
                tile += f"-{config.warps}w{config.stages}s"
                if "uneven" in mode and config.block_k == 16:
                    continue  # channels are padded to 16: none is uneven
                if dtype == torch.float16 and mode not in MODES_IN_FLOAT16:
                    continue
                name = f"{path.stem}-{target}-{kernel}-{kind}-{tile}-{str(dtype)[6:]}-{mode}"
                seen[name] = target, kernel, kind, config, dtype, mode, shared
    return [pytest.param(*case, id=name) for name, case in seen.items()]


def choose(monkeypatch, config, arithmetic):
    """Every kernel takes this configuration, and float32 is computed so."""
    monkeypatch.setattr(configs, "select", lambda *problem: config)
    exact = "ieee" if arithmetic == "half" else arithmetic
    monkeypatch.setattr(configs, "precision", lambda dtype: exact)


def multiplied(target, arithmetic, dtype):
    """What matrix instructions should take. Those of AMD also take float32 as it is."""
    if arithmetic == "half":
        return {"bf16" if dtype == torch.bfloat16 else "f16"}
    if target == "gfx942":
        return {"xf32" if arithmetic == "tf32" else "f32"}
    return {"tf32"} if arithmetic == "tf32" else set()


@pytest.mark.parametrize(
    ("target", "kernel", "arithmetic", "config", "dtype", "mode", "shared"), cases()
)
def test_a_configuration_compiles_to_what_its_target_has(
    monkeypatch, binaries, call, target, kernel, arithmetic, config, dtype, mode, shared
):
    choose(monkeypatch, config, arithmetic)
    options = MODES[kernel][mode]
    found = binaries(target, lambda: call(dtype, **options), {f"{kernel}_kernel"})
    assert found
    for binary in found:
        assert not binary.spills, binary
        assert binary.shared <= shared
        assert binary.multiplies == multiplied(target, arithmetic, dtype)


@pytest.mark.parametrize("kernel", MODES)
def test_the_modes_reach_every_branch_of_the_kernel(monkeypatch, launches, call, kernel):
    choose(monkeypatch, configs.ConvConfig(64, 64, 32, 4, 3), "half")
    found = [
        launch.kwargs
        for options in MODES[kernel].values()
        for launch in launches(lambda options=options: call(torch.bfloat16, **options))
        if launch.name == f"{kernel}_kernel"
    ]
    for name, values in BRANCHES[kernel].items():
        assert {kwargs[name] for kwargs in found} == values, name


@pytest.mark.parametrize("name", ["sm_80", "sm_90", "gfx942", configs.FALLBACK])
@pytest.mark.parametrize("kernel", MODES)
@pytest.mark.parametrize("arithmetic", DTYPES)
def test_every_target_has_a_configuration_of_every_kernel(name, kernel, arithmetic):
    config = configs.nearest(configs.table(name), kernel, arithmetic, 4225, 704, 2048)
    assert min(config.block_m, config.block_n, config.block_k) >= 16  # what tl.dot takes
