"""pydantic's errors as one line each: "key must be X, not Y"."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypeVar

from pydantic import ValidationError

EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text",
    "string_unicode": "a text of valid Unicode",
    "tuple_type": "a list of numbers",
    "dict_type": "a table",
    "dataclass_exact_type": "a table",
    "literal_error": "{expected}",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "at most {le}",
    "value_error": "{error}",
}
"""What was expected, by the type of pydantic's error."""

T = TypeVar("T")


class ConfigError(ValueError):
    """A value that a configuration refuses: its key, such as "data.root", and what is wrong.

    Attributes: `key`, and `problem`, which follows it: " must be X, not Y".
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}{problem}")
        self.key, self.problem = key, problem


def one_line_errors(cls: type[T]) -> type[T]:
    """Class decorator: construction raises a ConfigError in place of pydantic's many lines."""
    validate = cls.__init__

    @functools.wraps(validate)
    def construct(self: Any, /, *args: Any, **values: Any) -> None:
        try:
            validate(self, *args, **values)
        except ValidationError as error:
            raise _first_problem(error, cls) from error

    cls.__init__ = construct  # type: ignore[assignment, method-assign]
    return cls


def _first_problem(error: ValidationError, cls: type) -> ConfigError:
    found = error.errors()[0]
    path = [part for part in found["loc"] if isinstance(part, str)]
    context = found.get("ctx", {})
    inner = context.get("error")
    if isinstance(inner, ConfigError):  # of a table inside, or of a rule over several fields
        return ConfigError(".".join([*path, inner.key]), inner.problem)
    key = ".".join(path)
    if found["type"] == "unexpected_keyword_argument":
        known = ", ".join(sorted(field.name for field in dataclasses.fields(cls)))
        return ConfigError(key, f": unknown key; the known ones are {known}")
    expected = EXPECTED.get(found["type"], found["msg"]).format(**context).replace("'", "")
    return ConfigError(key, f" must be {expected}, not {found['input']!r:.200}")
