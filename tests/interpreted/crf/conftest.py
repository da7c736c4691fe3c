"""The GPU's path of DenseCRF on CPU tensors, in the interpreter."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _as_on_a_gpu(large_lattice_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lattices and mean field by Triton wherever "auto" chooses, images of a batch together."""
    import torch

    from kernels import dispatch
    from kernels.meanfield import build, triton  # once configured
    from kernels.meanfield.triton import stack

    kernels = dispatch.Implementation(
        "triton", "Triton's interpreter", device="cpu", dtypes=(torch.float32,), triton=True
    )
    for operation in ("permutohedral", "meanfield"):
        monkeypatch.setitem(dispatch.OPERATIONS, operation, (kernels,))
    monkeypatch.setattr(build, "images_together", lambda features, batch, labels: max(1, batch))
    monkeypatch.setattr(triton, "TILE", 2**12)
    monkeypatch.setattr(stack, "BLOCK", 1024)
