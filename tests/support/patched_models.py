"""Pyramids before and after deeplab.patch, held against each other."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deeplab.patch import patch

RATES = (1, 3, 12)  # the last reaches beyond most of the map
MODES = pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])


def randomise(model: Any) -> Any:
    """Statistics and affines that leave no BatchNorm an identity, and no dropout."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.2, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def patched_copy(model: nn.Module, impl: str = "auto") -> Any:
    twin = copy.deepcopy(model)
    assert patch(twin, impl) == 1
    return twin


def run(model: Any, image: Tensor, gradients: bool = True) -> dict[str, Tensor]:
    """Output, and gradients of the input and of every parameter, by name."""
    image = image.detach().clone(memory_format=torch.preserve_format).requires_grad_(gradients)
    output = model(image)
    found = {"output": output.detach()}
    if gradients:
        named = {"input": image, **dict(model.named_parameters())}
        cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
        grads = torch.autograd.grad(output, list(named.values()), cotangent.to(output))
        found |= dict(zip(named, grads, strict=True))
    return found


def assert_within_budget(
    found: dict[str, Tensor], unpatched: dict[str, Tensor], exact: dict[str, Tensor], eps: float
) -> None:
    """At most twice the unpatched model's error against float64, plus one rounding."""
    assert list(found) == list(unpatched)
    for name, reference in exact.items():
        assert found[name].dtype == unpatched[name].dtype, name
        allowed = 2 * (unpatched[name].double() - reference).abs().max()
        allowed += eps * reference.abs().max()
        error = (found[name].double() - reference).abs().max()
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def compare(model: nn.Module, image: Tensor, impl: str = "auto", *, gradients: bool = True) -> Any:
    """Hold a patched copy against the model, output and gradients; the copy."""
    exact = run(copy.deepcopy(model).double(), image.double(), gradients)
    twin = patched_copy(model, impl)
    unpatched = run(model, image, gradients)
    eps = torch.finfo(image.dtype).eps
    assert_within_budget(run(twin, image, gradients), unpatched, exact, eps)
    return twin


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
