"""The page's server, where starlette and uvicorn are installed, and the page in a browser."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from app_browser import browser
from app_page import COLOURS, DONE, IMAGE, MARKS, NAMES
from running_app import SETTINGS, Client, running

from deeplab.app.inputs import Photograph
from deeplab.app.refining import Problem, Wish, refined
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


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[Server, str]]:
    refined(Problem(IMAGE, MARKS), Wish.of(SETTINGS))  # compiles, which no page need wait for
    page = Server(Photograph("halves.png", IMAGE, MARKS, NAMES, COLOURS))
    with running(page) as port:
        yield page, f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.fixture
def visit(chromium: Any, address: tuple[Server, str]) -> Iterator[Callable[..., Any]]:
    """Opens the page; at the end no page may have said anything on its console.

    refusal: answers of the server that are expected, as a pattern; Chromium notes them there.
    """
    contexts: list[Any] = []
    said: list[str] = []

    def note(text: str, refusal: str) -> None:
        if not (refusal and re.search(f"status of ({refusal})", text)):
            said.append(text)

    def opened(refusal: str = "", **options: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: note(message.text, refusal))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address[1])
        page.wait_for_selector(DONE)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
