"""A legend below a picture: colours and names of the classes that occur in it.

It lies below, so that it hides nothing and every pixel of the picture stays where it was. The text
grows with the picture, since a large one is seen from afar.

Pillow's own font, the same everywhere, has the letters of ASCII alone. A name with others is
written in the first font of FONTS that the system has and that has them all; failing that without
its accents; failing that as the class's number.
"""

from __future__ import annotations

import math
import unicodedata
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deeplab.data.large import class_areas, reduced
from deeplab.data.outputs import NamedPalette, overlay, overlay_masks

FONTS = ("DejaVuSans.ttf", "Arial.ttf", "NotoSansCJK-Regular.ttc", "msyh.ttc", "PingFang.ttc")

SMALLEST = 12  # pixels of a line's letters: below that they run together
SHARE = 0.022  # of the geometric mean of the picture's sides
LONGEST = 40  # letters of a name

PAPER = (255, 255, 255)
INK = (25, 25, 25)
FRAME = (130, 130, 130)


def drawn(
    image: np.ndarray, labels: np.ndarray, classes: NamedPalette, legend: bool = True
) -> np.ndarray:
    """The overlay of a picture of any size, a `reduced` one if need be, and below it the legend.

    image: uint8 `[H, W, 3]`; labels: `[H, W]`, or masks `[C, H, W]` of 0 and 1. Returns uint8
    `[H', W', 3]`.
    """
    areas = class_areas(labels) if legend else None
    return drawn_small(*reduced(image, labels), areas, classes)


def drawn_small(
    image: np.ndarray, labels: np.ndarray, areas: np.ndarray | None, classes: NamedPalette
) -> np.ndarray:
    """The same of a picture that is small enough, with the legend of these areas, int64 `[C]`."""
    draw = overlay_masks if labels.ndim == 3 else overlay
    shown = draw(image, labels, classes.palette)
    return shown if areas is None else with_legend(shown, areas, classes)


def with_legend(picture: np.ndarray, areas: np.ndarray, classes: NamedPalette) -> np.ndarray:
    """The picture, and below it a strip with each class that occurs, the largest first.

    picture: uint8 `[H, W, 3]`; areas: pixels of each class, int64 `[C]`. Returns uint8
    `[H + strip, W', 3]`, the picture at its top left; W' is W unless one name takes more. A class
    whose colour is black, which `outputs.overlay` leaves unpainted, has an empty box. Where no
    class occurs there is nothing to add.
    """
    height, width, _ = picture.shape
    order = [int(index) for index in np.argsort(-areas, kind="stable") if areas[index]]
    if not order:
        return picture
    size = max(SMALLEST, round(SHARE * math.sqrt(height * width)))
    texts = [_text(classes, index, size) for index in order]
    box, gap, line = round(0.9 * size), round(0.5 * size), round(1.5 * size)
    widest = math.ceil(max(font.getlength(name) for name, font in texts))
    cell = box + gap + widest + 2 * gap
    columns = min(len(texts), max(1, (width - gap) // cell))
    strip = math.ceil(len(texts) / columns) * line + gap
    page = Image.new("RGB", (max(width, columns * cell + gap), height + strip), PAPER)
    page.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(page)
    for place, (index, (name, font)) in enumerate(zip(order, texts, strict=True)):
        row, column = divmod(place, columns)
        left, top = gap + column * cell, height + (gap + line - box) // 2 + row * line
        colour = tuple(classes.palette[index].tolist())
        corners = (left, top, left + box, top + box)
        draw.rectangle(corners, colour if any(colour) else PAPER, FRAME, max(1, size // 16))
        draw.text((left + box + gap, top + box / 2), name, INK, font, anchor="lm")
    return np.array(page)


def _text(classes: NamedPalette, index: int, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """What a class is called on one line, and a font that can write it."""
    name = " ".join(classes.name(index).split())
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 3].rstrip()}..."
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    for text, fonts in ((name, (None, *FONTS)), (plain, (None,))):
        for file in fonts:
            font = _own_font(size) if file is None else _system_font(file, size)
            if font is not None and text and all(_has(font, letter) for letter in text):
                return text, font
    return f"class {index}", _own_font(size)


@cache
def _own_font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # wherever Pillow has FreeType, as its wheels
    return font


@cache
def _system_font(file: str, size: int) -> ImageFont.FreeTypeFont | None:
    """The font that the system has in a file of that name, None where it has none."""
    try:
        return ImageFont.truetype(file, size)
    except OSError:
        return None


@lru_cache(4096)
def _has(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether the font has the letter, and not the box that stands for those it lacks."""
    return letter == " " or bytes(font.getmask(letter)) != _box_of_the_missing(font)


@cache
def _box_of_the_missing(font: ImageFont.FreeTypeFont) -> bytes:
    return bytes(font.getmask("\uffff"))  # no letter in any font
