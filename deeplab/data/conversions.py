"""What reading changed in pictures, reported once for each kind of change.

A conversion belongs to a file and has a kind. Whoever reads pictures collects them, from other
processes too, as they are plain values; `counted` makes the lines, one a kind.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from deeplab.errors import printable

FRAMES = "several frames"
DEEP = "16 bits"
TWELVE_BITS = "12 bits"
TURNED = "EXIF turn"
BANDS = "bands beside the colours"
TRANSPARENT = "transparency"

NEAR_ZERO = "16-bit values near 0"
INVISIBLE = "alpha 0 everywhere"
VEILED = "alpha in between nearly everywhere"

SPOILING = (NEAR_ZERO, INVISIBLE, VEILED)
"""Kinds that leave little of the picture: nearly black, or veiled by white."""


@dataclass(frozen=True, order=True)
class Conversion:
    """What was done to the picture in `file`: `kind` is the same for many, `text` tells of this."""

    file: str
    kind: str
    text: str

    def __str__(self) -> str:
        return printable(f"{self.file}: {self.text}")


def by_kind(conversions: Iterable[Conversion]) -> dict[str, list[Conversion]]:
    """The conversions of each kind, each once, in the order of the files' names."""
    kinds: dict[str, list[Conversion]] = {}
    for conversion in sorted(set(conversions)):
        kinds.setdefault(conversion.kind, []).append(conversion)
    return kinds


def counted(conversions: Iterable[Conversion], examples: int = 1) -> list[str]:
    """A line for each kind: the picture's own where it is alone, else how many, and `examples`."""
    lines = []
    for group in by_kind(conversions).values():
        many = f"{len(group)} pictures, such as " if len(group) > 1 else ""
        others = ", ".join(printable(conversion.file) for conversion in group[1:examples])
        lines.append(f"{many}{group[0]}" + (f"; also {others}" if others else ""))
    return lines
