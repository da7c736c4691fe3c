"""`deeplab demo`: generated scenes as a table and a picture, and a scribbled photograph as another.

The scenes are the first three of the test split, which no training has seen, as they come. Each is
segmented by the shipped weights, refined by the dense CRF, and both are scored against the exact
mask. The fourth case needs no network: a few strokes of a pen on the next scene, spread by the CRF;
and so it does on a real photograph, for which there is no exact mask to score by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from rich.console import Console
from rich.table import Table

from deeplab import photographs
from deeplab.crf_settings import CRFSettings
from deeplab.data import outputs
from deeplab.data.annotations import Annotation
from deeplab.data.scenes import CLASSES, PALETTE, TEST_START, scene
from deeplab.evaluation.metrics import ConfusionMatrix
from deeplab.predict import predict
from deeplab.refine import refine_scribbles
from deeplab.weights import SHIPPED, load_model, read_metadata

SCENES = tuple(range(TEST_START, TEST_START + 3))
SCRIBBLED = TEST_START + 3

Colour = tuple[int, int, int]
WRONG: Colour = (230, 40, 40)
MENDED: Colour = (40, 190, 70)
BROKEN: Colour = (255, 165, 0)
INK: Colour = (25, 25, 25)
PAPER: Colour = (255, 255, 255)


@dataclass(frozen=True)
class Example:
    """One row: a picture, its exact labels, and the labels before and after the CRF.

    before: `[H, W]`, the network's labels, or a pen's strokes with 255 where there is none.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    before: np.ndarray
    after: np.ndarray


def run(out: Path, console: Console) -> None:
    """Do all of it: the table on `console`, two pictures and the scribbles' files in `out`.

    Raises InputError if `out` cannot be written or the shipped weights are missing.
    """
    outputs.check_writable(out)
    scenes = segmented_scenes()
    scribbled = scribbled_scene()
    console.print(table(scenes))
    marked = scribbled.before != 255
    after = miou([(scribbled.truth, scribbled.after)])
    console.print(
        f"Scribbles on {100 * marked.mean():.1f}% of the pixels of scene {SCRIBBLED}, no network: "
        f"mIoU {100 * after:.1f} after the CRF",
        soft_wrap=True,
    )
    photo, marks = out / "scribbles" / "photo.png", out / "scribbles" / "marks.png"
    outputs.write_picture(photo, scribbled.image)
    outputs.write_picture(marks, _strokes_picture(scribbled.before))
    outputs.write_picture(out / "demo.png", picture(scenes, scribbled))
    outputs.write_picture(out / "photograph.png", photographs.picture())
    for line in (
        f"Pictures: {out / 'demo.png'}, {out / 'photograph.png'}",
        f"Try: deeplab refine {photo} {marks}",
    ):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def segmented_scenes(seeds: Sequence[int] = SCENES) -> list[Example]:
    """The scenes with the labels of the shipped weights, alone and refined."""
    network = load_model()
    settings = CRFSettings.stored(read_metadata(SHIPPED))
    layer = settings.layer(network.num_classes)
    cases = []
    for seed in seeds:
        image, truth = scene(seed)
        before = predict(network, image).labels
        after = predict(network, image, layer).labels
        cases.append(Example(f"scene {seed}", image, truth, before, after))
    return cases


def scribbled_scene(seed: int = SCRIBBLED) -> Example:
    """A scene with strokes of a pen through its larger regions, spread by the CRF."""
    image, truth = scene(seed)
    strokes = scribbles(truth, np.random.default_rng(seed))
    classes = np.unique(strokes[strokes != 255])
    labels = np.where(strokes == 255, 0, np.searchsorted(classes, strokes) + 1)
    found = refine_scribbles(Annotation(labels, len(classes)), image).labels
    return Example(f"scene {seed}, scribbles", image, truth, strokes, classes[found])


def scribbles(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Strokes as a hand draws them: each wanders through one region and may slip over its edge.

    Returns uint8 `[H, W]`: the class under the pen, 255 where it was not.
    """
    page = Image.new("L", truth.shape[::-1], 255)
    pen = ImageDraw.Draw(page)
    for label in np.unique(truth):
        mask = truth == label
        inner = np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MinFilter(7))) > 0
        free = np.argwhere(inner if inner.any() else mask)
        drawn = np.empty((0, 2))
        for _ in range(3 + round(mask.sum() ** 0.5 / 30)):
            path = _stroke(mask, _away_from(drawn, free, rng), rng)
            drawn = np.concatenate([drawn, path])
            pen.line([(float(x), float(y)) for y, x in path], fill=int(label), width=3)
    return np.array(page)


def _away_from(drawn: np.ndarray, free: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Of 50 free points the one farthest from what is drawn, so that every part gets a stroke."""
    points = free[rng.integers(len(free), size=50)]
    if not len(drawn):
        return points[0]
    distances = np.linalg.norm(points[:, None] - drawn[None], axis=-1).min(axis=1)
    return points[distances.argmax()]


def _stroke(mask: np.ndarray, start: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Points 4 pixels apart, in a direction that drifts, for as long as they stay in the mask."""
    point, angle = start.astype(float), rng.uniform(0, 2 * np.pi)
    path = [point]
    for _ in range(20):
        for turn in rng.normal(0, (0.2, 0.2, 1.0, 2.0)):  # turns more sharply where it is blocked
            step = point + 4 * np.array([np.sin(angle + turn), np.cos(angle + turn)])
            y, x = step.round().astype(int)
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x]:
                point, angle = step, angle + turn
                path.append(point)
                break
        else:
            break
    return path if len(path) > 1 else [start, start + 1]


def miou(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Mean IoU of (truth, labels) pairs, from one confusion matrix over all of them."""
    matrix = ConfusionMatrix(len(CLASSES))
    for truth, labels in pairs:
        matrix.update(truth, labels)
    return float(matrix.miou())


def table(cases: Sequence[Example]) -> Table:
    """mIoU before and after the CRF: a line for each scene, and one over all their pixels."""
    result = Table(title="mIoU (%) before and after the CRF")
    result.add_column("scene")
    for name in ("before", "after", "gain"):
        result.add_column(name, justify="right")
    groups = [(case.name, [case]) for case in cases] + [("total", list(cases))]
    for name, group in groups:
        before = 100 * miou([(case.truth, case.before) for case in group])
        after = 100 * miou([(case.truth, case.after) for case in group])
        if name == "total":
            result.add_section()
        result.add_row(name, f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}")
    return result


GAP, HEAD, CAPTION, LEGEND = 14, 40, 26, 84


def picture(scenes: Sequence[Example], scribbled: Example) -> np.ndarray:
    """All cases in rows: image, truth, network, network + CRF, error. RGB uint8 `[H, W, 3]`."""
    height, width = scribbled.truth.shape
    row = height + CAPTION + GAP
    size = (5 * (width + GAP) + GAP, 2 * HEAD + (len(scenes) + 1) * row + LEGEND)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    lefts = [GAP + i * (width + GAP) for i in range(5)]
    top = 0
    heads = ("image", "truth", "network", "network + CRF", "error")
    _centred(draw, heads, lefts, width, top)
    top += HEAD
    for case in scenes:
        _paste_row(canvas, case, lefts, top)
        top += row
    _centred(draw, ("image", "truth", "scribbles", "scribbles + CRF", "error"), lefts, width, top)
    top += HEAD
    _paste_row(canvas, scribbled, lefts, top)
    _draw_legend(draw, top + row, size[0])
    return np.array(canvas)


def _centred(
    draw: ImageDraw.ImageDraw, texts: Sequence[str], lefts: Sequence[int], width: int, top: int
) -> None:
    for text, left in zip(texts, lefts, strict=True):
        position = (left + width / 2, top + HEAD / 2)
        draw.text(position, text, fill=INK, font=ImageFont.load_default(24), anchor="mm")


def _paste_row(canvas: Image.Image, case: Example, lefts: Sequence[int], top: int) -> None:
    height, width = case.truth.shape
    strokes = bool((case.before == 255).any())
    cells = (
        case.image,
        PALETTE[case.truth],
        _strokes_picture(case.before, case.image) if strokes else PALETTE[case.before],
        PALETTE[case.after],
        _errors(case),
    )
    if strokes:
        before = f"{100 * (case.before != 255).mean():.1f}% of the pixels marked"
    else:
        before = f"mIoU {100 * miou([(case.truth, case.before)]):.1f}"
    after = f"mIoU {100 * miou([(case.truth, case.after)]):.1f}"
    wrong = f"{100 * (case.after != case.truth).mean():.1f}% of the pixels wrong"
    captions = (case.name.split(",")[0], "", before, after, wrong)
    draw = ImageDraw.Draw(canvas)
    for cell, caption, left in zip(cells, captions, lefts, strict=True):
        canvas.paste(Image.fromarray(cell), (left, top))
        draw.rectangle((left - 1, top - 1, left + width, top + height), outline=(150, 150, 150))
        position = (left + width / 2, top + height + CAPTION / 2 + 2)
        draw.text(position, caption, fill=INK, font=ImageFont.load_default(18), anchor="mm")


def _strokes_picture(strokes: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
    """The strokes in their classes' colours on black (unsure), or on the picture, faded."""
    ground = np.zeros((*strokes.shape, 3), np.uint8) if image is None else _faded(image)
    return np.where((strokes == 255)[..., None], ground, PALETTE[strokes])


def _errors(case: Example) -> np.ndarray:
    shown = _faded(case.image)
    wrong_before, wrong_after = case.before != case.truth, case.after != case.truth
    if not (case.before == 255).any():
        shown[wrong_before & ~wrong_after] = MENDED
        shown[~wrong_before & wrong_after] = BROKEN
        wrong_after &= wrong_before
    shown[wrong_after] = WRONG
    return shown


def _faded(image: np.ndarray) -> np.ndarray:
    """The picture as a pale grey ground on which colours stand out."""
    grey = image.mean(axis=-1, keepdims=True) * 0.35 + 160
    return np.repeat(grey, 3, axis=-1).round().astype(np.uint8)


def _draw_legend(draw: ImageDraw.ImageDraw, top: int, width: int) -> None:
    classes = [(name, tuple(PALETTE[i].tolist())) for i, name in enumerate(CLASSES)]
    errors = [("wrong", WRONG), ("mended by the CRF", MENDED), ("broken by the CRF", BROKEN)]
    font = ImageFont.load_default(20)
    for entries, y in ((classes, top + 22), (errors, top + 58)):
        lengths = [30 + draw.textlength(name, font=font) for name, _ in entries]
        gap = min(36.0, (width - 2 * GAP - sum(lengths)) / max(1, len(entries) - 1))
        x = (width - sum(lengths) - gap * (len(entries) - 1)) / 2
        for (name, colour), length in zip(entries, lengths, strict=True):
            draw.rectangle((x, y - 10, x + 20, y + 10), fill=colour, outline=INK)
            draw.text((x + 28, y), name, fill=INK, font=font, anchor="lm")
            x += length + gap
