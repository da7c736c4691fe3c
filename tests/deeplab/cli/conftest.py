"""What most tests of the command line start from."""

from pathlib import Path

import pytest
from commands import random_weights


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of generated scenes, with settings of a CRF."""
    return random_weights(tmp_path_factory.mktemp("weights") / "random.safetensors")
