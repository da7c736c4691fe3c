"""torchvision beside a build of torch that its library is not made for.

PyPI's wheel is built for CUDA. Beside a CPU build of torch its library does not load, and importing
it fails for want of two operators' schemas. None of the networks here calls them. What imports
torchvision, such as timm and segmentation_models_pytorch, needs them too.
"""

from __future__ import annotations

import importlib.machinery
import sys
from typing import Any


class BeforeTorchvision:
    """A finder that finds nothing: it is asked when torchvision is imported, and defines them."""

    library: Any = None  # keeps the schemas defined

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.submodule_search_locations:
            self._define(spec.submodule_search_locations[0])

    def _define(self, folder: str) -> None:
        from pathlib import Path

        import torch

        try:
            torch.ops.load_library(next(Path(folder).glob("_C.*")))
        except (OSError, StopIteration):
            self.library = torch.library.Library("torchvision", "DEF")
            self.library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self.library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


FINDER = BeforeTorchvision()


def define_on_import() -> None:
    """Define the operators once torchvision is imported, where its library does not."""
    if FINDER not in sys.meta_path and "torchvision" not in sys.modules:
        sys.meta_path.insert(0, FINDER)  # type: ignore[arg-type]
