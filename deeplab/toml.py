"""TOML texts from outside, whose only error is that of a text that cannot be read."""

from __future__ import annotations

import tomllib
from typing import Any

DEEPEST = 50  # tables and lists within each other; recipes, settings and class files have three
TOO_DEEP = "lists or tables are nested too deeply"


def loads(text: str) -> dict[str, Any]:
    """The tables of a TOML text; TOMLDecodeError, a ValueError, for what is none.

    A text that nests lists or tables a thousand deep would end in Python's RecursionError, in
    tomllib, which calls itself for each of them, or wherever they are walked through afterwards.
    """
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise tomllib.TOMLDecodeError(TOO_DEEP) from None
    level: list[Any] = [table]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return table
    raise tomllib.TOMLDecodeError(TOO_DEEP)


def _inside(value: Any) -> list[Any]:
    """The tables and lists in a table or list."""
    values = value.values() if isinstance(value, dict) else value
    return [inner for inner in values if isinstance(inner, dict | list)]
