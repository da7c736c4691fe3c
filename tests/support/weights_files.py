"""Small models and what is said of their files: what the tests of deeplab.weights start from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deeplab.errors import InputError
from deeplab.model import DeepLab, deeplab_v2_small


def small(num_classes: int = 2, seed: int = 0, **options: Any) -> DeepLab:
    torch.manual_seed(seed)
    return deeplab_v2_small(num_classes, **options)


def assert_same_state(model: DeepLab, other: DeepLab) -> None:
    state = other.state_dict()
    assert model.state_dict().keys() == state.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


class Dangerous:
    """What writes a file where it is unpickled by a reader that runs code."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def refused(action: Callable[..., object], *arguments: Any) -> str:
    """The message of the InputError that the action raises: one line."""
    with pytest.raises(InputError) as caught:
        action(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    return message
