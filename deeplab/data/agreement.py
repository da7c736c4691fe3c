"""Whether two sides mean the same by class i: weights and a data set, or two data sets.

    class counts differ                  an error
    the same names, in the same order    they agree; case, white space, "_" and "-" do not matter
    a name of both, at two places        an error: one class would silently be taken for another
    other names, each of one side        taken for the same, such as a translation, with a note

Ignored pixels, which every data set gives as 255, are no class.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deeplab.errors import InputError

SHOWN = 3  # names, or pairs of names, in a message


@dataclass(frozen=True)
class Classes:
    """The classes of weights or of a data set.

    Attributes:
        owner: who has them, for messages: a weights file, the name of a data set.
        count: how many there are.
        names: theirs, in the order of their indices; empty where they are not known.
    """

    owner: str
    count: int
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, owner: object, names: Sequence[str]) -> Classes:
        """Those of a data set."""
        return cls(str(owner), len(names), tuple(names))

    @classmethod
    def stored(cls, weights: object, metadata: dict[str, Any], count: int) -> Classes:
        """Those of a network with `count` classes, whose weights file says `metadata`."""
        return cls(str(weights), count, tuple(metadata.get("class_names") or ()))


def compare_classes(theirs: Classes, ours: Classes, advice: str) -> str:
    """A note on classes that are named differently; empty where they agree, or are not named.

    Raises InputError where the counts differ, or a name of both stands at two places.
    """
    left, right = _comparable(theirs.names, ours.names)
    if theirs.count != ours.count:
        alone = [
            f"only {side.owner} has {_some(names)}"
            for side, keys, others in ((theirs, left, right), (ours, right, left))
            if (names := [n for n, key in zip(side.names, keys, strict=True) if key not in others])
        ]
        shared = f"; {', '.join(alone)}" if set(left) & set(right) else ""
        raise InputError(
            f"{theirs.owner}: has {_counted(theirs)}, {ours.owner} has {_counted(ours)}{shared}; "
            f"{advice}"
        )
    if not left or not right:
        return ""
    moved = [
        f"{theirs.names[i]} is class {i} there and class {right.index(key)} here"
        for i, key in enumerate(left)
        if key in right and right.index(key) != left.index(key)
    ]
    if moved:
        raise InputError(
            f"{theirs.owner}: has classes of {ours.owner} in another order: {_some(moved)}; "
            f"{advice}"
        )
    pairs = zip(theirs.names, ours.names, left, right, strict=True)
    differing = [f"{theirs} and {ours}" for theirs, ours, key, other in pairs if key != other]
    if not differing:
        return ""
    return (
        f"{theirs.owner} and {ours.owner} name {len(differing)} of {ours.count} classes "
        f"differently ({_some(differing)}); they are taken for the same"
    )


def _comparable(theirs: Sequence[str], ours: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names without what does not matter, unless two of a side would be one then."""
    plain = [[_plain(name) for name in names] for names in (theirs, ours)]
    if any(len(set(a)) < len(set(b)) for a, b in zip(plain, (theirs, ours), strict=True)):
        return list(theirs), list(ours)
    return plain[0], plain[1]


def _plain(name: str) -> str:
    letters = unicodedata.normalize("NFKC", name).casefold()
    return "".join(c for c in letters if not c.isspace() and c not in "_-")


def _counted(classes: Classes) -> str:
    names = f" ({_some(classes.names)})" if classes.names else ""
    return f"{classes.count} {'class' if classes.count == 1 else 'classes'}{names}"


def _some(parts: Sequence[str]) -> str:
    more = f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
    return f"{', '.join(parts[:SHOWN])}{more}"
