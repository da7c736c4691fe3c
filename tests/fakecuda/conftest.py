"""`pytest tests/fakecuda --renew-launches` writes the table of launches anew."""

import pytest

RENEW = "--renew-launches"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(RENEW, action="store_true", help="write tests/fakecuda/launches.json anew")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption(RENEW, False) and getattr(config.option, "dist", "no") != "no":
        raise pytest.UsageError(f"{RENEW} writes one file: leave out -n")


@pytest.fixture
def renewing(pytestconfig: pytest.Config) -> bool:
    # A run of all tests reads this file too late to know the option.
    return bool(pytestconfig.getoption(RENEW, False))
