"""TOML texts from outside, whose only error is that of a text that cannot be read."""

from __future__ import annotations

import tomllib
from typing import Any


def loads(text: str) -> dict[str, Any]:
    """The tables of a TOML text; TOMLDecodeError, a ValueError, for what is none.

    tomllib follows tables and lists within each other by calling itself, and so a text that nests
    them a thousand deep ends in Python's RecursionError, as no text of TOML's own does.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise tomllib.TOMLDecodeError("lists or tables are nested too deeply") from None
