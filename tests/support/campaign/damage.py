"""Damage to the bytes of a valid file: what disks, networks, editors and adversaries do to it."""

import random
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Damage = Callable[[bytes, random.Random], bytes]


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def _cut_a_little(content: bytes, chance: random.Random) -> bytes:
    return content[: len(content) - chance.randint(1, min(16, len(content)))]


def _flip(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _flip_in_front(content: bytes, chance: random.Random) -> bytes:
    head = min(len(content), 200)
    return _flip(content[:head], chance) + content[head:]


def _without_a_piece(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(content))
    return content[:start] + content[start + chance.randint(1, 64) :]


def _zeroed(content: bytes, chance: random.Random) -> bytes:
    """A block that never reached the disk."""
    start, length = chance.randrange(len(content)), chance.choice((4, 64, 512, 4096))
    gone = content[start : start + length]
    return content[:start] + bytes(len(gone)) + content[start + length :]


def _swapped(content: bytes, chance: random.Random) -> bytes:
    a, b = sorted(chance.randrange(len(content)) for _ in range(2))
    return content[:a] + content[b:] + content[a:b]


def _doubled(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(content))
    length = chance.randint(1, 64)
    return content[: start + length] + content[start:]


def _huge_number(content: bytes, chance: random.Random) -> bytes:
    """Four bytes somewhere in front claim the most that they can."""
    at = chance.randrange(max(1, min(len(content), 128) - 4))
    number = chance.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"))
    return content[:at] + number + content[at + 4 :]


def _wrong_magic(content: bytes, chance: random.Random) -> bytes:
    return chance.choice(MAGICS) + content[8:]


def _as_text(content: bytes, _chance: random.Random) -> bytes:
    """Sent as text: line ends of another system."""
    return content.replace(b"\n", b"\r\n")


def _junk_in_front(content: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(chance.randint(1, 32)) + content


MAGICS = (
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\0\x10JF", b"GIF89a\x01\0", b"BM\0\0\0\0\0\0"),
    *(b"II*\0\x08\0\0\0", b"RIFF\0\0\0\0", b"PK\x03\x04\x14\0\0\0", b"\x93NUMPY\x01\0"),
    *(b"%PDF-1.7", b"P6 9 9 25", b"\x7fELF\x02\x01\x01\0", bytes(8)),
)
LOSSY: dict[str, Damage] = {
    "bits flipped": _flip,
    "bits flipped in front": _flip_in_front,
    "a piece left out": _without_a_piece,
    "a block of zeros": _zeroed,
    "two parts swapped": _swapped,
    "a part twice": _doubled,
    "a huge number": _huge_number,
    "another kind's first bytes": _wrong_magic,
    "line ends changed": _as_text,
    "junk in front": _junk_in_front,
}
CUTS: dict[str, Damage] = {"cut off": _cut, "cut off near the end": _cut_a_little}
DAMAGES = LOSSY | CUTS

OTHER_FILES = {  # what people name by mistake
    "nothing": b"",
    "a byte": b"\0",
    "zeros": bytes(4096),
    "text": b"# a text\nkey = value\n",
    "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "json": b'{"a": [1, 2, 3]}',
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "elf": b"\x7fELF\x02\x01\x01" + bytes(64),
    "gzip": bytes.fromhex("1f8b08000000000000034b4c4a0600c241243503000000"),
    "zip": b"PK\x05\x06" + bytes(18),
    "utf-16": "key = 1\n".encode("utf-16"),
    "pickle": b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x05hello\x94.",
}


class Dangerous:
    """Whose pickle calls a function."""

    def __reduce__(self) -> Any:
        return open, ("executed", "w")


def seeds() -> st.SearchStrategy[int]:
    return st.integers(0, 2**32 - 1)


def damaged(content: bytes, kind: str, seed: int) -> bytes:
    return DAMAGES[kind](content, random.Random(seed))


def harm(draw: Any, content: bytes) -> tuple[str, bytes]:
    """(what was done, what came of it)"""
    how = draw(st.sampled_from(sorted(DAMAGES)))
    return how, damaged(content, how, draw(seeds()))
