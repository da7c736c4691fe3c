"""pydensecrf as the live reference, its photographs, and the bar that the drop-in is held to."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "pydensecrf"
MISSING = "pydensecrf2 is not installed (pip install '.[reference]'); the goldens still run"


@pytest.fixture(scope="session")
def pydensecrf() -> ModuleType:
    """`pydensecrf.densecrf`."""
    return pytest.importorskip("pydensecrf.densecrf", reason=MISSING)


@pytest.fixture(scope="session")
def pydensecrf_utils() -> ModuleType:
    """`pydensecrf.utils`."""
    return pytest.importorskip("pydensecrf.utils", reason=MISSING)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of recorded results."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def photograph() -> Callable[[int], tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """(image, scribbles) `[H, W, 3]` uint8 of pydensecrf's example number 1 or 3."""

    def read(number: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        if not PHOTOGRAPHS.is_dir():
            pytest.skip(f"pydensecrf's example photographs are not at {PHOTOGRAPHS}")
        image = Image.open(PHOTOGRAPHS / f"im{number}.png").convert("RGB")
        scribbles = Image.open(PHOTOGRAPHS / f"anno{number}.png").convert("RGB")
        return np.array(image), np.array(scribbles)

    return read


@pytest.fixture(scope="session")
def assert_meets_bar() -> Callable[[Any, Any], None]:
    """Marginals `[labels, points]` within 2e-3, and labels equal, for 99.9% of them."""

    def check(marginals: Any, reference: Any) -> None:
        marginals, reference = np.asarray(marginals), np.asarray(reference)
        assert marginals.shape == reference.shape
        near = np.abs(marginals - reference) <= 2e-3
        assert near.mean() >= 0.999, f"largest difference {np.abs(marginals - reference).max()}"
        same = marginals.argmax(axis=0) == reference.argmax(axis=0)
        assert same.mean() >= 0.999, f"{np.count_nonzero(~same)} of {same.size} labels differ"

    return check


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
