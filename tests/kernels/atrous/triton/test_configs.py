"""Tile sizes: which file serves a GPU, which entry a problem; PyTorch's switches."""

import json

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
from kernels.atrous.triton import configs


def entry(**changed):
    problem = {"kernel": "conv", "arithmetic": "half", "pixels": 1000, "outputs": 64, "inputs": 512}
    tile = {"block_m": 128, "block_n": 64, "block_k": 32, "warps": 4, "stages": 3}
    return {**problem, **tile, **changed}


def test_the_nearest_problem_wins_by_ratio():
    entries = [entry(warps=4), entry(pixels=100_000, warps=8)]
    assert configs.nearest(entries, "conv", "half", 5_000, 64, 512).warps == 4
    assert configs.nearest(entries, "conv", "half", 20_000, 64, 512).warps == 8
    assert configs.nearest(entries, "conv", "half", 0, 64, 512).warps == 4


def test_arithmetic_and_kernel_must_match():
    with pytest.raises(ValueError, match="no configuration of 'conv' in tf32 is listed"):
        configs.nearest([entry()], "conv", "tf32", 1, 1, 1)


@pytest.mark.parametrize("path", sorted(configs.FOLDER.glob("*.json")), ids=lambda p: p.stem)
def test_every_file_serves_both_kernels_in_every_arithmetic(path):
    content = json.loads(path.read_text())
    assert content["about"]
    for kernel in ("conv", "weight_grad"):
        for kind in ("half", "tf32", "ieee"):
            config = configs.nearest(content["configs"], kernel, kind, 4225, 704, 2048)
            assert all(
                size >= 16 and size & (size - 1) == 0
                for size in (config.block_m, config.block_n, config.block_k)
            )


class Properties:
    """What torch.cuda.get_device_properties gives."""

    def __init__(self, name, major, minor):
        self.name, self.major, self.minor = name, major, minor


@pytest.mark.parametrize(
    ("name", "major", "minor", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 9, 0, "sm_90"),
        ("NVIDIA A100-SXM4-40GB", 8, 0, "sm_80"),
        ("NVIDIA GeForce RTX 4090", 8, 9, "generic"),
    ],
)
def test_a_gpu_without_a_file_takes_its_family_s(monkeypatch, name, major, minor, expected):
    properties = Properties(name, major, minor)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert configs.name_of.__wrapped__(torch.device("cuda")) == expected


def test_a_tuned_file_goes_before_the_family_s(monkeypatch, tmp_path):
    monkeypatch.setattr(configs, "FOLDER", tmp_path)
    for name in ("sm_90", "nvidia_h100_80gb_hbm3"):
        (tmp_path / f"{name}.json").write_text("{}")
    properties = Properties("NVIDIA H100 80GB HBM3", 9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert configs.name_of.__wrapped__(torch.device("cuda")) == "nvidia_h100_80gb_hbm3"


def test_float32_follows_the_switch_of_convolutions():
    assert configs.precision(torch.float32) == "tf32"  # PyTorch's default
    assert configs.arithmetic(torch.float32) == "tf32"
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        assert configs.precision(torch.float32) == "ieee"
    assert configs.arithmetic(torch.bfloat16) == "half"


def test_the_newer_switch_counts_where_torch_has_it():
    convolutions = getattr(torch.backends.cudnn, "conv", None)
    if convolutions is None:
        pytest.skip("this torch has no torch.backends.cudnn.conv")
    before = convolutions.fp32_precision
    try:
        convolutions.fp32_precision = "ieee"
        assert configs.precision(torch.float32) == "ieee"
    finally:
        convolutions.fp32_precision = before
    assert configs.precision(torch.float32) == "tf32"
