"""What several tests of deeplab start from."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def torchvision() -> Iterator[Any]:
    """torchvision's resnet, vgg and deeplabv3 modules, beside any build of torch."""
    library = None
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        pytest.skip(f"torchvision is not installed: {error}")
    except RuntimeError:
        # PyPI's wheel is built for CUDA. Beside a CPU build of torch its library does not load, and
        # the import fails for want of two operators' schemas. None of these models calls them.
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield SimpleNamespace(
        resnet=importlib.import_module("torchvision.models.resnet"),
        vgg=importlib.import_module("torchvision.models.vgg"),
        deeplabv3=importlib.import_module("torchvision.models.segmentation.deeplabv3"),
    )
    del library  # until here it keeps the schemas defined
