from __future__ import annotations

import os

import child
import pytest


def test_a_child_gives_back_the_result_and_sees_the_environment() -> None:
    assert child.call("json:loads", {"s": "[1, null]"}) == [1, None]
    assert child.call("os:getenv", {"key": "MARK"}, {"MARK": "set"}) == "set"
    assert "MARK" not in os.environ


def test_what_a_child_prints_itself_does_not_disturb_its_result() -> None:
    assert child.call("builtins:print", {}) is None


def test_a_child_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)json:loads.*JSONDecodeError"):
        child.call("json:loads", {"s": "no JSON"})
