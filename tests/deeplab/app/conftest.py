"""The page's server, where starlette and uvicorn are installed."""

from collections.abc import Iterator

import pytest

pytest.importorskip("starlette", reason="starlette is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from running_app import Client, running

from deeplab.app.server import Server


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Server, int]]:
    """A server, and the port that it listens at."""
    server = Server(max_megapixels=1.0)
    with running(server) as port:
        yield server, port


@pytest.fixture
def client(served: tuple[Server, int]) -> Client:
    return Client(served[1])
