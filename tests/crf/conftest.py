"""pydensecrf as the live reference, and its recorded results."""

from pathlib import Path
from types import ModuleType

import pytest

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
    return Path(__file__).parents[1] / "golden"
