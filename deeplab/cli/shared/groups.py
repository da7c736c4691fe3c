"""Options that stand together: a dataclass of them, which a command takes as one parameter.

    @takes_options
    def segment(photo: Path, views: ViewOptions) -> None: ...     # --scales, --flip

Every field is an option of that name, as if it stood in the command's own signature.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each parameter that is a dataclass replaced by the dataclass's fields.

    Raises ValueError where two of the options would have one name.
    """
    signature = inspect.signature(command, eval_str=True)
    annotations = {name: given.annotation for name, given in signature.parameters.items()}
    groups: dict[str, Any] = {n: a for n, a in annotations.items() if is_dataclass(a)}
    parameters: list[inspect.Parameter] = []
    for name, given in signature.parameters.items():
        own = given.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        parameters += _of_fields(groups[name]) if name in groups else [own]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        chosen = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **chosen)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {given.name: given.annotation for given in parameters}
    return run


def _of_fields(group: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        kind = inspect.Parameter.KEYWORD_ONLY
        yield inspect.Parameter(field.name, kind, default=default, annotation=hints[field.name])
