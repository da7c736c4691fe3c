"""Pictures: in every form, odd and damaged, through `segment`.

Oracles: the same pixels in any lossless form give the labels that the network gives for the pixels
in memory. A file that was cut off gives those of the whole file, or is refused. Other damage may
leave another picture: then the labels are those of the pixels that Pillow alone finds in the file.
"""

import io
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from picture_files import chunk
from PIL import Image

from campaign import damage
from campaign.case import Case, Check, Command, Ended, require
from campaign.network import WEIGHTS, check_labels, labels_of, stored_crf, write_weights
from campaign.rasters import LOSSLESS, LOSSY, Raster, decoded, encoded, png, raster, rasters, saved
from campaign.runner import Family
from deeplab.crf_settings import CRFSettings
from deeplab.data.images import read_image

NAMES = (
    *("a", "photo 1", "-dash", "ünïcode", "emoji😀", "a.b.c", "[x]", "UPPER", "q'uote"),
    *("semi;colon", "x" * 120),
)


def segment(name: str, *more: str) -> list[str]:
    given = f"./{name}" if name.startswith("-") else name
    return ["segment", given, "--weights", WEIGHTS, "--out", "out", *more]


def shows(rgb: Raster, stem: str = "a", crf: CRFSettings | None = None) -> Check:
    """The labels are those that the network, and the CRF if there is one, give for these pixels."""
    return lambda folder, _ended: check_labels(
        folder / "out" / f"{stem}_labels.png", labels_of(rgb, crf)
    )


@st.composite
def lossless(draw: Any) -> Case:
    rgb, kind = draw(rasters()), draw(st.sampled_from(sorted(LOSSLESS)))
    suffix, content = encoded(rgb, kind)
    name = draw(st.sampled_from(NAMES)) + suffix
    refined = draw(st.integers(0, 3)) == 0
    args = segment(name, *([] if refined else ["--no-crf"]))
    check = shows(rgb, Path(name).stem, stored_crf() if refined else None)
    said = f"{kind}, {rgb.shape[1]} x {rgb.shape[0]}"
    return Command(said, args, {name: content}, "result", check=check)


@st.composite
def lossy(draw: Any) -> Case:
    rgb, kind = draw(rasters()), draw(st.sampled_from(sorted(LOSSY)))
    suffix, content = encoded(rgb, kind)
    name, check = f"a{suffix}", shows(decoded(content))
    return Command(kind, segment(name, "--no-crf"), {name: content}, "result", check=check)


@st.composite
def harmed(draw: Any) -> Case:
    rgb, kind = draw(rasters(24)), draw(st.sampled_from(sorted(LOSSLESS | LOSSY)))
    suffix, content = encoded(rgb, kind)
    how, broken = damage.harm(draw, content)
    name = f"a{suffix}"

    def check(folder: Path, ended: Ended) -> None:
        if how in damage.CUTS:
            expected = rgb if kind in LOSSLESS else decoded(content)
        elif broken == content:
            return
        else:
            expected = as_found(broken, ended.stderr)
        shows(expected)(folder, ended)

    args = segment(name, "--no-crf")
    return Command(f"{kind}, {how}", args, {name: broken}, names=[name], check=check)


def as_found(content: bytes, notes: str) -> Raster:
    """The pixels of a damaged file that reads: Pillow's own, and none where checksums forbid."""
    if content.startswith(b"\x89PNG"):
        require(png_is_whole(content), "a PNG whose checksums are wrong was read without a word")
    with Image.open(io.BytesIO(content)) as image:
        plain = re.sub(r"Note: .* converted to RGB\n?", "", notes)
        if "Note: " in plain:  # turned, laid on white, of 16 bits: not what Pillow alone makes
            return np.asarray(read_by_the_product(content))  # of size and end only
        return np.asarray(image.convert("RGB"))


def read_by_the_product(content: bytes) -> Raster:
    Path("again.bin").write_bytes(content)
    return read_image("again.bin")[0]


def png_is_whole(content: bytes) -> bool:
    """Whether the chunks before IEND have their checksums, ancillary ones left out."""
    at = 8
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        name, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        critical = bool(name[:1].isupper())
        stored = content[at + 8 + length : at + 12 + length]
        if name == b"IEND":
            return True  # it holds nothing to be wrong
        if critical and stored != struct.pack(">I", zlib.crc32(name + body)):
            return False
        at += 12 + length
    return True  # cut off, which is another matter


@st.composite
def several(draw: Any) -> Case:
    """The same pixels in two forms in one folder: the same labels, under two names."""
    rgb = draw(rasters(24))
    kinds = draw(st.lists(st.sampled_from(sorted(LOSSLESS)), min_size=2, max_size=3, unique=True))
    files = {}
    for number, kind in enumerate(kinds):
        suffix, content = encoded(rgb, kind)
        if suffix != ".tga":  # no suffix that a folder is searched for
            files[f"in/{number}{suffix}"] = content
    broken = draw(st.integers(0, 3)) == 0
    if broken:
        files["in/z.png"] = damage.damaged(png(rgb, 2), "cut off", draw(damage.seeds()))

    def check(folder: Path, ended: Ended) -> None:
        for path in (folder / "in").iterdir():
            if path.name != "z.png":
                shows(rgb, path.stem)(folder, ended)

    what = f"a folder of {', '.join(kinds)}{' and a broken picture' if broken else ''}"
    return Command(what, segment("in", "--no-crf"), files, check=check)


def cases(_shared: Path) -> st.SearchStrategy[Case]:
    return st.one_of(lossless(), harmed(), harmed(), several(), lossy())


def handmade(_shared: Path) -> list[Case]:
    rgb = raster("noise", 9, 11, 0)
    whole = png(rgb, 2)
    headers = {
        "a bomb of 60000 x 60000": struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0),
        "no width": struct.pack(">IIBBBBB", 0, 9, 8, 2, 0, 0, 0),
        "a depth that is none": struct.pack(">IIBBBBB", 11, 9, 7, 2, 0, 0, 0),
    }
    bad = bytearray(whole)
    bad[-16] ^= 1  # in IDAT's checksum
    contents = {
        **damage.OTHER_FILES,
        **{
            f"a PNG of {what}": whole[:8] + chunk(b"IHDR", header) + whole[33:]
            for what, header in headers.items()
        },
        "a PNG with a wrong checksum": bytes(bad),
        "32-bit floating point": saved(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"),
        "32-bit integers": saved(Image.fromarray(np.full((9, 9), 70000, np.int32)), "TIFF"),
    }
    made: list[Case] = [
        Command(f"{what} as a picture", segment("a.png"), {"a.png": content}, "refused", ["a.png"])
        for what, content in contents.items()
    ]
    places = {
        "a folder": lambda folder: (folder / "a.png").mkdir(),
        "a pipe": lambda folder: os.mkfifo(folder / "a.png"),
        "a link to itself": lambda folder: (folder / "a.png").symlink_to("a.png"),
        "a link to nowhere": lambda folder: (folder / "a.png").symlink_to("nowhere"),
        "a device": lambda folder: (folder / "a.png").symlink_to("/dev/zero"),
    }
    for what, lay in places.items():
        made.append(Command(f"{what} as a picture", segment("a.png"), {}, "refused", prepare=lay))
    for name in ("", ".", "\n", "no\nfile", "\udcff.png", "a" * 300, "*.png", "[", "~"):
        args = ["segment", "--weights", WEIGHTS, "--", name]
        made.append(Command(f"the name {name[:20]!a}", args, {}, "refused"))
    made += [
        Command(f"a picture called {name!a}", segment(name, "--no-crf"), {name: whole})
        for name in ("line\nbreak.png", "\udcff.png", "tab\t.png", "\x1b[31mred.png")
    ]
    for side in ("is an input", "is a file"):
        out = "in" if side == "is an input" else "in/a_labels.png"
        files = {"in/a.png": whole, "in/a_labels.png": whole}
        args = ["segment", "in", "--weights", WEIGHTS, "--out", out]
        made.append(Command(f"an output folder that {side}", args, files, "refused"))
    return made


FAMILY = Family(
    "pictures", "pictures in every form, odd and damaged", write_weights, cases, handmade
)
