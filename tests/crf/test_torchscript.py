"""TorchScript cannot hold a CRF: torch.jit says so in words."""

import pytest
import torch
from networks import tiny

import crf

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{category}")
    for category in ("DeprecationWarning", "torch.jit.TracerWarning")
]

LOGITS = torch.zeros(1, 3, 4, 5)
IMAGES = torch.zeros(1, 3, 4, 5)


def _layer() -> crf.DenseCRF:
    return crf.DenseCRF(3, iterations=1)


def test_tracing_is_refused_and_torch_export_named() -> None:
    for traced in (_layer(), lambda *args: _layer().refine_logits(*args)):
        with pytest.raises(RuntimeError, match=r"torch\.jit\.trace cannot take .*torch\.export"):
            torch.jit.trace(traced, (LOGITS, IMAGES))


def test_scripting_is_refused_and_torch_export_named() -> None:
    for module in (_layer(), torch.nn.Sequential(_layer())):
        with pytest.raises(RuntimeError, match=r"torch\.jit\.script cannot take .*torch\.export"):
            torch.jit.script(module)


def test_a_network_that_ends_in_a_crf_is_refused_in_the_same_words() -> None:
    network = tiny(crf=_layer()).eval()
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace cannot take"):
        torch.jit.trace(network, torch.zeros(1, 3, 33, 33))
    with pytest.raises(RuntimeError, match=r"torch\.jit\.script cannot take"):
        torch.jit.script(network)
