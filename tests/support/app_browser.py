"""A real browser for the page of `deeplab app`: Playwright with a Chromium of the system."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
REQUIRED = "BROWSER_TESTS"  # "required" where a missing browser is a failure, as .ci/run sets it


@contextmanager
def browser() -> Iterator[Any]:
    """A browser; where there is none the test is skipped, or fails if `REQUIRED` says so."""
    try:
        from playwright import sync_api
    except ImportError:
        _missing("playwright is not installed")
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if found is None:
        _missing("there is no Chromium here: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        # --no-sandbox: Chromium refuses to run as root with its sandbox, as in containers
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


def _missing(what: str) -> NoReturn:
    if os.environ.get(REQUIRED) == "required":
        pytest.fail(what)
    pytest.skip(what)
