"""Recipes: a `TrainConfig` from a TOML file and from single `key=value` settings.

    model = "deeplab_v2_resnet101"         # keys are the fields of TrainConfig
    steps = 20_000

    [model_options]                        # tables are its tables
    scales = [1.0, 0.75, 0.5]

    [data]
    name = "voc2012"

A value remembers where it came from, so that an error names the file, or the option, and the key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deeplab import toml
from deeplab.errors import InputError
from deeplab.training.config import TrainConfig
from deeplab.training.config_errors import ConfigError

RECIPES = Path(__file__).parent / "recipes"

Settings = dict[str, tuple[Any, str]]
"""Values by key, each with where it comes from; tables are flat: "data.root"."""


def shipped_recipes() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read_recipe(name: str) -> Settings:
    """The settings of a recipe: a TOML file by its path, or a shipped one by its name."""
    path = Path(name)
    if not path.is_file():
        path = RECIPES / f"{name.removesuffix('.toml')}.toml"
        if path.parent != RECIPES or not path.is_file():
            raise InputError(
                f"{name}: no such recipe; expected a TOML file, or one of "
                f"{', '.join(shipped_recipes())}"
            )
    try:
        table = toml.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable TOML file ({error}); correct it") from error
    return flat_settings(table, str(path))


def one_setting(key: str, value: Any) -> Settings:
    """What --set gives: a key, with its table in front, or a whole table."""
    return {name: (v, f"--set {name}") for name, v in _flat({key: value}).items()}


def flat_settings(table: Mapping[str, Any], where: str) -> Settings:
    """A table, such as `dataclasses.asdict` of a configuration, as settings."""
    return {key: (value, f"{where}: {key}") for key, value in _flat(table).items()}


def make_config(settings: Settings) -> TrainConfig:
    """The configuration of these settings, the defaults where there are none.

    Raises InputError: an unknown key, a wrong type, a value without sense. Each names its origin.
    """
    values: dict[str, Any] = {}
    for key, (value, where) in settings.items():
        *tables, name = key.split(".")
        table = values
        for inner in tables:
            table = table.setdefault(inner, {})
            if not isinstance(table, dict):
                raise InputError(f"{where}: {inner} is a table, but was given {table!r:.200}")
        table[name] = value
    try:
        return TrainConfig(**values)
    except ConfigError as error:
        inside = [key for key in settings if key == error.key or key.startswith(f"{error.key}.")]
        where = settings[inside[0]][1] if inside else error.key
        raise InputError(f"{where}{error.problem}") from error


def differences(stored: Mapping[str, Any], now: TrainConfig, free: frozenset[str]) -> list[str]:
    """How a stored configuration (`dataclasses.asdict`) differs from `now`, beyond what is free."""
    before, after = _flat(stored), _flat(dataclasses.asdict(now))
    defaults = _flat(dataclasses.asdict(TrainConfig()))  # an older state lacks newer fields
    return [
        f"{key} {_shown(before.get(key, defaults.get(key)))} then, {_shown(after.get(key))} now"
        for key in sorted(before.keys() | after.keys())
        if key not in free and _plain(before.get(key, defaults.get(key))) != _plain(after.get(key))
    ]


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _shown(value: Any) -> str:
    return "absent" if value is None else repr(_plain(value))
