"""The CRF layer over each filter: inference, learning, and the operator that compilers see."""

from collections.abc import Iterator
from typing import Any

import torch
from fake_cuda import Case, tensor

import crf
from fake_cuda_cases.alike import expect, staged
from kernels.meanfield import ops
from kernels.meanfield.build import FilterSettings

H, W, C = 375, 500, 21
OPTIONS: dict[str, dict[str, Any]] = {
    "permutohedral": {},
    "exact": {"precision": "bf16", "eps": 1e-3},
    "separable": {"precision": "bf16"},
    "auto": {},
}


def layer(method: str, matrix: bool = False, **options: Any) -> crf.DenseCRF:
    return crf.DenseCRF(
        C,
        bilateral=crf.Bilateral(4.0, sigma_xy=80.0, sigma_rgb=13.0),
        method=method,
        compatibility=torch.ones(C, C) if matrix else "potts",
        **OPTIONS[method],
        **options,
    )


@staged
def infer(
    method: str,
    batch: int = 1,
    *,
    matrix: bool = False,
    size: tuple[int, int] = (H, W),
    dtype: torch.dtype = torch.float32,
) -> Iterator[None]:
    """10 iterations without gradients."""
    model = layer(method, matrix)
    logits = tensor(batch, C, *size, dtype=dtype)
    images = tensor(batch, 3, *size, dtype=torch.uint8)
    yield
    with torch.no_grad():
        expect(model(logits, images), batch, C, *size)


@staged
def divergence(method: str) -> Iterator[None]:
    model, logits = layer(method), tensor(2, C, H, W)
    images = tensor(2, 3, H, W)
    yield
    marginals, found = model(logits, images, return_kl=True)
    expect(marginals, 2, C, H, W)
    expect(found, 11, 2, dtype=torch.float64)


@staged
def learn(method: str) -> Iterator[None]:
    """One step: forward, and the gradients to logits and parameters."""
    sigmas = method == "exact"
    model = layer(method, learnable=True, learn_sigmas=sigmas, iterations=5)
    logits = tensor(2, C, H, W, requires_grad=True)
    images = tensor(2, 3, H, W)
    yield
    model.refine_logits(logits, images).sum().backward()
    assert logits.grad is not None
    expect(logits.grad, 2, C, H, W)
    for parameter in model.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad


@staged
def operator(method: str) -> Iterator[None]:
    """What a compiled program calls, forward and backward."""
    unary = tensor(1, C, H * W, requires_grad=True)
    features = [tensor(1, H * W, 2), tensor(1, H * W, 5)]
    compatibilities = [tensor(C, requires_grad=True), tensor(C, C, requires_grad=True)]
    settings = FilterSettings(method, "symmetric", 5, "ieee", 0.0, 0.1, W, True, 2, True)
    yield
    found = ops.mean_field_operator(unary, features, compatibilities, *vars(settings).values())
    expect(found, 1, C, H * W)
    gradients = torch.autograd.grad(found.sum(), [unary, *compatibilities])
    expect(gradients[0], 1, C, H * W)
    expect(gradients[1], C)
    expect(gradients[2], C, C)


FILTERS = ("permutohedral", "exact", "separable")
CASES: dict[str, Case] = {
    **{
        f"CRF, {method}, {images}, {'matrix' if matrix else 'potts'}": infer(
            method, batch, matrix=matrix
        )
        for method in FILTERS
        for batch, images in ((1, "1 image"), (3, "3 images"))
        for matrix in (False, True)
    },
    "CRF, auto, 1 image, potts": infer("auto"),
    "CRF, auto, 2 images, potts": infer("auto", 2),
    "CRF, auto, 2 small images, potts": infer("auto", 2, size=(60, 64)),
    "CRF, permutohedral, 3 images of 90x101, potts": infer("permutohedral", 3, size=(90, 101)),
    "CRF, permutohedral, 1 image, float16 logits": infer("permutohedral", dtype=torch.float16),
    **{f"CRF, {method}, 2 images, divergence": divergence(method) for method in FILTERS},
    **{f"CRF, {method}, 2 images, 5 iterations, learning": learn(method) for method in FILTERS},
    **{f"mean field operator, {method}, 5 iterations": operator(method) for method in FILTERS},
}
