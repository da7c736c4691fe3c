"""A checkpoint of another project: where it lies, and the network whose weights it has."""

from pathlib import Path

import pytest
from checkpoints import small_network

from deeplab.model import DeepLab


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint"


@pytest.fixture
def theirs() -> DeepLab:
    return small_network(1)
