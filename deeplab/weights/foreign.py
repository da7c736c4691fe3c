"""Kinds of files that hold no weights, recognised by their first bytes."""

from __future__ import annotations

import codecs
from pathlib import Path

BEGINNINGS = {
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x89PNG\r\n\x1a\n": "a PNG picture",
    b"\x89HDF\r\n\x1a\n": (
        "an HDF5 file; load a .caffemodel.h5 in Caffe and save it with snapshot_format: BINARYPROTO"
    ),
    b"\x1f\x8b": "a gzip archive; unpack it first",
}
TAR = slice(257, 262)  # where a tar archive says "ustar"


def kind(path: Path) -> str:
    """The kind of file in a phrase, with what to do about it; empty where it may be weights.

    Raises OSError where it cannot be read.
    """
    with path.open("rb") as file:
        first = file.read(512)
    if not first:
        return "an empty file"
    for beginning, phrase in BEGINNINGS.items():
        if first.startswith(beginning):
            return phrase
    if first[TAR] == b"ustar":
        return "a tar archive; unpack it first"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(first)  # its last letter may be cut
    except UnicodeDecodeError:
        return ""
    if not all(letter.isprintable() or letter.isspace() for letter in text):
        return ""
    if text.startswith("version https://git-lfs"):
        return "a pointer of Git LFS in place of the file; fetch it with git lfs pull"
    if text.lstrip().lower().startswith(("<!doctype html", "<html")):
        return "a web page in place of the file; fetch it again"
    return "a text; a .prototxt describes a network and holds no weights"
