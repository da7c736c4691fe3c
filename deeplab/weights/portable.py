"""Metadata that go with weights to others, without the folders of the machine that made them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any


def without_folders(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata, with absolute paths in the recipe as their last names.

    A recipe names its data and the weights that it started from: the names tell which they were,
    the folders would tell who made them and where.
    """
    return {k: _named(v) if k == "recipe" else v for k, v in metadata.items()}


def _named(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _named(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_named(one) for one in value]
    if isinstance(value, str):
        for kind in (PurePosixPath, PureWindowsPath):
            if (path := kind(value)).is_absolute() or value.startswith("~"):
                return path.name
    return value
