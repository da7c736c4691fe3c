"""What most tests of training start from."""

from typing import Any

import pytest
from tiny_training import tiny_pictures


@pytest.fixture(scope="session")
def pictures() -> list[tuple[Any, ...]]:
    """Two generated scenes with their labels."""
    return tiny_pictures()
