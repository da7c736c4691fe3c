"""Whole networks, with and without a CRF behind them."""

from collections.abc import Iterator

import torch
from fake_cuda import Case, tensor

import crf
from deeplab.model import DeepLab, build
from fake_cuda_cases.alike import CHANNELS_LAST, expect, staged

C, SIZE = 21, 321


@staged
def infer(name: str, *, with_crf: bool = False, channels_last: bool = False) -> Iterator[None]:
    model = build(name, C, crf=crf.DenseCRF(C) if with_crf else None).eval()
    layout = CHANNELS_LAST if channels_last else torch.contiguous_format
    x, image = (tensor(1, 3, SIZE, SIZE, memory_format=layout) for _ in range(2))
    yield
    with torch.no_grad():
        found = model(x, image=image if with_crf else None)
    assert found.shape == (1, C, SIZE, SIZE)


@staged
def train() -> Iterator[None]:
    """Forward and backward of the network and the CRF behind it."""
    behind = crf.DenseCRF(C, iterations=5, learnable=True, learn_sigmas=False)
    model: DeepLab = build("deeplab_v2_small", C, crf=behind).train()
    x, image = tensor(2, 3, SIZE, SIZE), tensor(2, 3, SIZE, SIZE)
    yield
    found = model(x, image=image)
    expect(found, 2, C, SIZE, SIZE)
    found.sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


CASES: dict[str, Case] = {
    "deeplab_v2_resnet101": infer("deeplab_v2_resnet101"),
    "deeplab_v2_resnet101, channels_last": infer("deeplab_v2_resnet101", channels_last=True),
    "deeplab_v2_vgg16": infer("deeplab_v2_vgg16"),
    "deeplab_v3_resnet50": infer("deeplab_v3_resnet50"),
    "deeplab_v2_small with a CRF": infer("deeplab_v2_small", with_crf=True),
    "deeplab_v2_small with a CRF, training": train(),
}
