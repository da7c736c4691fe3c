"""Where the tests of the page want a browser and there is none."""

import shutil
from pathlib import Path

import app_browser
import pytest

CI = Path(__file__).parents[3] / ".ci" / "run"


@pytest.fixture(autouse=True)
def no_chromium(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.delenv(app_browser.REQUIRED, raising=False)


def test_they_are_skipped_with_the_reason() -> None:
    with pytest.raises(pytest.skip.Exception, match="no Chromium here"), app_browser.browser():
        pass


def test_they_fail_where_a_browser_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(app_browser.REQUIRED, "required")
    with pytest.raises(pytest.fail.Exception, match="no Chromium here"), app_browser.browser():
        pass


def test_it_is_required_in_ci() -> None:
    assert f"\nexport {app_browser.REQUIRED}=required\n" in CI.read_text()
