"""Generated scenes: a seeded, unlimited, photo-like data set with exact masks.

A scene is a view over a ground plane: sky, hills, grass and a road in perspective, buildings and
trees, and in front of them poles and wires, fences, carts with spoked wheels, chairs and tables on
thin legs, animals and balls. Objects stand at a depth, so they shrink towards the horizon, hide
one another, cast shadows and fade in haze. Surfaces have texture and shading; the camera adds a
lighting gradient, vignetting, blur and sensor noise.

Every part is a set of polygons, drawn ``OVERSAMPLING`` times finer than the pixels. Its *coverage*
alpha (the share of a pixel that it hides) blends the image, so edges are anti-aliased:

    image <- (1 - alpha) * image + alpha * colour,        label <- class where alpha >= 1/2.

A mask is therefore exact to half a pixel, and nothing is left unlabelled. Structures of one to four
pixels (spokes, legs, wires, rails) are where a network of output stride 8 fails and a dense CRF
helps: the failure case of both DeepLab papers.

A seed fixes a scene bit for bit (for given versions of NumPy and Pillow); the same seed at another
size is the same scene, seen finer or coarser. Splits are ranges of seeds: training below ``VALIDATION_START``, validation from there,
test from ``TEST_START`` (never trained on, never tuned on).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter
from torch.utils.data import Dataset

CLASSES: tuple[str, ...] = (
    "sky",
    "grass",
    "road",
    "building",
    "tree",
    "pole",
    "fence",
    "cart",
    "chair",
    "animal",
    "ball",
)
TRAIN_START, VALIDATION_START, TEST_START = 0, 9_000_000, 10_000_000
MIN_SIZE, DEFAULT_SIZE = 16, 321
OVERSAMPLING = 4

_COLOURS = (
    (70, 130, 180),
    (107, 142, 35),
    (128, 64, 128),
    (190, 153, 153),
    (0, 100, 30),
    (220, 220, 0),
    (250, 170, 30),
    (220, 20, 60),
    (119, 11, 132),
    (160, 82, 45),
    (0, 220, 220),
)
PALETTE: npt.NDArray[np.uint8] = np.zeros((256, 3), np.uint8)
PALETTE[: len(_COLOURS)] = _COLOURS
PALETTE.flags.writeable = False

_SKY, _GRASS, _ROAD, _BUILDING, _TREE, _POLE, _FENCE, _CART, _CHAIR, _ANIMAL, _BALL = range(11)

Floats = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
Colour = npt.NDArray[np.float32]


class Scene(NamedTuple):
    """A generated photograph: ``image`` uint8 RGB [H, W, 3], ``labels`` uint8 [H, W]."""

    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]


def scene(seed: int, size: int | tuple[int, int] = DEFAULT_SIZE) -> Scene:
    """The scene of ``seed``, ``size`` pixels square or ``(height, width)``.

    Raises:
        ValueError: ``seed`` is negative, or a side is shorter than ``MIN_SIZE``.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < MIN_SIZE:
        raise ValueError(
            f"size: expected at least {MIN_SIZE} pixels a side, got {height}x{width}; "
            "generate a larger scene and crop it"
        )
    if seed < 0:
        raise ValueError(f"seed: expected a non-negative integer, got {seed}")
    layout, texture, sensor = (
        np.random.Generator(np.random.PCG64(s)) for s in np.random.SeedSequence(seed).spawn(3)
    )
    view = _View.random(layout, texture, height, width)
    _paint_sky(view)
    _paint_ground(view)
    _paint_objects(view)
    return Scene(_photograph(view, sensor), view.labels)


class ScenesDataset(Dataset[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]):
    """Scenes ``start .. start + length - 1`` as (image uint8 [H, W, 3], labels uint8 [H, W])."""

    classes = CLASSES
    palette = PALETTE

    def __init__(
        self, start: int = TRAIN_START, length: int = 1000, size: int | tuple[int, int] = 321
    ) -> None:
        if length < 0:
            raise ValueError(f"length: expected a non-negative number of scenes, got {length}")
        self.start, self.length, self.size = start, length, size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Scene:
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        return scene(self.start + index, self.size)


# Shapes: polygons in world units, of which the shorter image side has 321.


def _box(x0: float, y0: float, x1: float, y1: float) -> Points:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _ellipse(x: float, y: float, rx: float, ry: float, tilt: float = 0.0, n: int = 28) -> Points:
    t = np.linspace(0, 2 * math.pi, n, endpoint=False)
    px, py = rx * np.cos(t), ry * np.sin(t)
    c, s = math.cos(tilt), math.sin(tilt)
    return np.stack([x + c * px - s * py, y + s * px + c * py], axis=1)


def _ring(x: float, y: float, rx: float, ry: float, thickness: float) -> Points:
    outer = _ellipse(x, y, rx, ry, n=40)
    inner = _ellipse(x, y, max(rx - thickness, 0.1), max(ry - thickness, 0.1), n=40)
    return np.concatenate([outer, outer[:1], inner[:1], inner[::-1]])


def _line(x0: float, y0: float, x1: float, y1: float, width: float, end: float = -1.0) -> Points:
    """A bar from one point to another, ``width`` thick at the start and ``end`` at the end."""
    length = math.hypot(x1 - x0, y1 - y0) or 1.0
    nx, ny = (y0 - y1) / length / 2, (x1 - x0) / length / 2
    end = width if end < 0 else end
    return np.array(
        [
            (x0 + nx * width, y0 + ny * width),
            (x1 + nx * end, y1 + ny * end),
            (x1 - nx * end, y1 - ny * end),
            (x0 - nx * width, y0 - ny * width),
        ]
    )


@dataclass
class _View:
    """The picture so far, and the circumstances that every object shares."""

    rng: np.random.Generator
    noise: Floats
    image: Floats
    labels: npt.NDArray[np.uint8]
    scale: float
    horizon: float
    camera: float
    light: float
    haze: float
    sky: Colour = field(default_factory=lambda: np.zeros(3, np.float32))

    @classmethod
    def random(
        cls, rng: np.random.Generator, texture: np.random.Generator, height: int, width: int
    ) -> _View:
        scale = min(height, width) / DEFAULT_SIZE
        return cls(
            rng=rng,
            noise=_fractal_noise(texture),
            image=np.zeros((height, width, 3), np.float32),
            labels=np.zeros((height, width), np.uint8),
            scale=scale,
            horizon=height / scale * rng.uniform(0.3, 0.55),
            camera=rng.uniform(1.3, 2.0),
            light=rng.choice([-1.0, 1.0]) * rng.uniform(0.35, 1.0),
            haze=rng.uniform(0.0, 0.05),
        )

    @property
    def width(self) -> float:
        return self.image.shape[1] / self.scale

    @property
    def height(self) -> float:
        return self.image.shape[0] / self.scale

    @property
    def finest(self) -> float:
        """The thinnest line that still leaves an unbroken mask, in world units."""
        return 1.3 / self.scale

    def metre(self, base: float) -> float:
        """World units of one metre on an object that stands at ``base``."""
        return max(base - self.horizon, 1.0) / self.camera

    def coverage(self, shapes: Sequence[Points]) -> tuple[slice, slice, Floats] | None:
        """The rows, columns and coverage in [0, 1] of a union of shapes; None when unseen."""
        factor = self.scale
        low = np.min([s.min(0) for s in shapes], axis=0) * factor
        high = np.max([s.max(0) for s in shapes], axis=0) * factor
        rows, columns = self.labels.shape
        x0, y0 = max(math.floor(low[0]), 0), max(math.floor(low[1]), 0)
        x1, y1 = min(math.floor(high[0]) + 1, columns), min(math.floor(high[1]) + 1, rows)
        if x0 >= x1 or y0 >= y1:
            return None
        stencil = Image.new("L", ((x1 - x0) * OVERSAMPLING, (y1 - y0) * OVERSAMPLING))
        draw = ImageDraw.Draw(stencil)
        for s in shapes:
            # Pillow fills the samples on both edges: a part is up to one sample wider than drawn.
            finer = (s * factor - (x0, y0)) * OVERSAMPLING - 0.5
            draw.polygon(finer.ravel().tolist(), fill=255)
        alpha = np.asarray(stencil.reduce(OVERSAMPLING), np.float32) / np.float32(255)
        return slice(y0, y1), slice(x0, x1), alpha

    def texture(self, rows: slice, columns: slice, cell: float) -> Floats:
        """Zero-mean, unit-variance noise whose blobs are about ``cell`` world units wide."""
        step = 4.0 / (cell * self.scale)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        tall, wide = math.ceil(height * step), math.ceil(width * step)
        oy, ox = self.rng.integers(0, len(self.noise), 2)
        mask = len(self.noise) - 1
        y, x = (np.arange(tall) + oy) & mask, (np.arange(wide) + ox) & mask
        window = Image.fromarray(self.noise[np.ix_(y, x)])
        box = (0.0, 0.0, width * step, height * step)
        return np.asarray(window.resize((width, height), Image.Resampling.BILINEAR, box))

    def paint(
        self,
        label: int,
        shapes: Sequence[Points],
        colour: Colour,
        *,
        relief: float = 0.0,
        grain: float = 0.04,
        cell: float = 5.0,
        distance: float = 1.0,
        fall: float = 0.0,
    ) -> None:
        """Cover the picture with a part.

        ``relief`` shades it from the lit side to the other, ``fall`` from top to bottom, ``grain``
        is the amplitude of its texture of size ``cell``, ``distance`` (1 at the near edge of the
        ground) sets its haze.
        """
        seen = self.coverage(shapes)
        if seen is None:
            return
        rows, columns, alpha = seen
        shade = 1 + grain * self.texture(rows, columns, cell)
        if relief:
            shade += relief * self.light * np.linspace(-1, 1, alpha.shape[1], dtype=np.float32)
        if fall:
            shade += fall * np.linspace(1, -1, alpha.shape[0], dtype=np.float32)[:, None]
        fog = 1 - math.exp(-self.haze * (distance - 1))
        target = shade[..., None] * (colour * (1 - fog)) + self.sky * fog
        self.image[rows, columns] += alpha[..., None] * (target - self.image[rows, columns])
        self.labels[rows, columns][alpha >= 0.5] = label

    def shadow(self, x: float, base: float, reach: float, depth: float, strength: float) -> None:
        """Darken the ground beside an object, away from the light."""
        s, middle = self.scale, x - self.light * reach * 0.45
        height, width = self.labels.shape
        y0, y1 = max(int((base - depth) * s), 0), min(int((base + depth) * s) + 1, height)
        x0, x1 = max(int((middle - reach) * s), 0), min(int((middle + reach) * s) + 1, width)
        if x0 >= x1 or y0 >= y1:
            return
        v = ((np.arange(y0, y1, dtype=np.float32) + 0.5) / s - base) / depth
        u = ((np.arange(x0, x1, dtype=np.float32) + 0.5) / s - middle) / reach
        penumbra = np.clip(1.6 * (1 - v[:, None] ** 2 - u**2), 0, 1)
        self.image[y0:y1, x0:x1] *= 1 - strength * penumbra[..., None]

    def distance(self, base: float) -> float:
        """How far away an object stands: 1 at the near edge of the ground, more towards the sky."""
        return (self.height - self.horizon) / max(base - self.horizon, 4.0)

    def contrasting(self, colours: Sequence[Colour], x: float, y: float, radius: float) -> Colour:
        """Of some colours, the one furthest from what is already there."""
        s = self.scale
        rows = slice(max(int((y - radius) * s), 0), max(int((y + radius) * s), 1))
        columns = slice(max(int((x - radius) * s), 0), max(int((x + radius) * s), 1))
        behind = self.image[rows, columns].reshape(-1, 3)
        if not len(behind):
            return colours[0]
        mean = behind.mean(0)
        return max(colours, key=lambda c: float(np.abs(c - mean).sum()))

    def colour(self, *bases: tuple[int, int, int], spread: float = 18.0) -> Colour:
        """A random variant of one of ``bases``, brightness and tint both jittered."""
        base = np.array(bases[self.rng.integers(len(bases))], np.float32)
        tint = self.rng.normal(0, spread * 0.5, 3) + self.rng.normal(0, spread)
        return np.clip(base + tint, 12, 245).astype(np.float32)

    def pick(
        self, bases: Sequence[tuple[int, int, int]], x: float, y: float, radius: float
    ) -> Colour:
        """A random variant of ``bases`` that usually stands out from its surroundings."""
        return self.contrasting([self.colour(*bases) for _ in range(3)], x, y, radius)


def _fractal_noise(rng: np.random.Generator, side: int = 256) -> Floats:
    """Three octaves of smooth cyclic noise [side, side], zero mean, unit variance."""
    total = np.zeros((side, side), np.float32)
    for cells, amplitude in ((16, 1.0), (32, 0.8), (64, 0.6)):
        grid = np.pad(rng.standard_normal((cells, cells), np.float32), 2, mode="wrap")
        step = side // cells
        fine = Image.fromarray(grid).resize((len(grid) * step,) * 2, Image.Resampling.BICUBIC)
        total += (
            amplitude * np.asarray(fine)[2 * step : 2 * step + side, 2 * step : 2 * step + side]
        )
    return (total - total.mean()) / total.std()


# The stage: sky, hills, grass, road.

_SKIES = (
    ((70, 120, 200), (190, 212, 232)),
    ((100, 150, 215), (205, 220, 230)),
    ((150, 160, 175), (205, 208, 212)),
    ((185, 190, 198), (222, 222, 224)),
    ((90, 110, 160), (240, 190, 140)),
    ((60, 80, 130), (215, 150, 120)),
)
_GREENS = ((96, 138, 58), (120, 150, 70), (80, 115, 50), (150, 150, 80), (170, 155, 100))
_PAVINGS = ((110, 110, 115), (85, 88, 95), (150, 145, 138), (165, 140, 110), (130, 105, 80))


def _paint_sky(view: _View) -> None:
    rng = view.rng
    top, bottom = (
        np.array(c, np.float32) + rng.normal(0, 8, 3).astype(np.float32)
        for c in _SKIES[rng.integers(len(_SKIES))]
    )
    rows, columns = view.labels.shape
    down = np.clip(np.arange(rows, dtype=np.float32) / (view.horizon * view.scale), 0, 1)
    view.image[:] = (top + (bottom - top) * down[:, None])[:, None, :]
    view.sky = bottom
    clouds = view.texture(slice(0, rows), slice(0, columns), rng.uniform(25, 60))
    thickness = np.clip((clouds - rng.uniform(0.0, 1.5)) * 0.6, 0, 1) * rng.uniform(0.2, 0.8)
    white = np.full(3, rng.uniform(200, 248), np.float32)
    view.image += thickness[..., None] * (white - view.image)


def _ridge(view: _View, rise: float) -> Points:
    """A hilly skyline from edge to edge, ``rise`` above the horizon at most."""
    x = np.linspace(-5, view.width + 5, 40)
    waves = np.zeros_like(x)
    for frequency in (0.012, 0.03, 0.11):
        waves += view.rng.uniform(0.3, 1) * np.sin(x * frequency + view.rng.uniform(0, 6.3))
    y = view.horizon - rise * (waves - waves.min()) / max(float(np.ptp(waves)), 1e-6)
    return np.concatenate(
        [np.stack([x, y], 1), [(view.width + 5, view.horizon + 2), (-5, view.horizon + 2)]]
    )


def _paint_ground(view: _View) -> None:
    rng = view.rng
    if rng.random() < 0.6:
        hill = view.colour((90, 120, 90), (110, 125, 110), (130, 130, 90), (100, 115, 130))
        ridge = _ridge(view, rng.uniform(6, 40))
        view.paint(_GRASS, [ridge], hill, grain=0.06, cell=8, distance=6)
    grass = view.colour(*_GREENS)
    below = _box(-1, view.horizon, view.width + 1, view.height + 1)
    view.paint(_GRASS, [below], grass, grain=0.0)
    _roughen_ground(view)
    if rng.random() < 0.85:
        _paint_road(view)


def _roughen_ground(view: _View) -> None:
    """Grass in perspective: coarse at our feet, fine and hazy towards the horizon."""
    top = math.ceil(view.horizon * view.scale)
    rows, columns = view.labels.shape
    y = np.arange(top, rows) / view.scale
    depth = (view.height - view.horizon) / np.maximum(y - view.horizon, 2.0)
    x = np.arange(columns) / view.scale - view.width / 2
    u = (x[None, :] * depth[:, None] * 0.35).astype(np.int64) & 255
    v = (depth * 90).astype(np.int64)[:, None] & 255
    fade = np.minimum(1, 2.0 / depth).astype(np.float32)[:, None]
    blades = view.texture(slice(top, rows), slice(0, columns), 3.0)
    rough = 1 + fade * (view.rng.uniform(0.03, 0.09) * view.noise[v, u] + 0.05 * blades)
    fog = (1 - np.exp(-view.haze * (depth - 1))).astype(np.float32)[:, None, None]
    ground = view.image[top:] * rough[..., None]
    view.image[top:] = ground + fog * (view.sky - ground)


def _paint_road(view: _View) -> None:
    rng, h = view.rng, view.horizon
    vanish, foot = view.width * rng.uniform(0.2, 0.8), view.width * rng.uniform(0.1, 0.9)
    half = view.width * rng.uniform(0.18, 0.5)
    # A power of the depth bends the road; it narrows linearly, as perspective has it.
    t = np.linspace(0.015, 1.05, 30)
    middle = vanish + (foot - vanish) * t ** rng.uniform(0.8, 1.8)
    y = h + (view.height - h) * t
    edge = half * t
    if rng.random() < 0.25:  # a street that crosses the view
        far, near = h + (view.height - h) * np.sort(rng.uniform(0.08, 0.9, 2))
        near = max(near, far + 25)
        tilt = rng.uniform(-6, 6)
        w = view.width + 5
        strip = np.array([(-5, far), (w, far + tilt), (w, near + tilt), (-5, near)])
    else:
        strip = np.concatenate(
            [np.stack([middle - edge, y], 1), np.stack([middle + edge, y], 1)[::-1]]
        )
    colour = view.pick(_PAVINGS, foot, (h + view.height) / 2, 30)
    view.paint(_ROAD, [strip], colour, grain=0.035, cell=3, distance=1.6, relief=0.05)
    if len(strip) > 4 and rng.random() < 0.6:
        paint = view.colour((225, 225, 220), (220, 200, 90))
        dashes = [
            np.array(
                [
                    (middle[i] - 0.03 * edge[i], y[i]),
                    (middle[i] + 0.03 * edge[i], y[i]),
                    (middle[i + 1] + 0.03 * edge[i + 1], y[i + 1]),
                    (middle[i + 1] - 0.03 * edge[i + 1], y[i + 1]),
                ]
            )
            for i in range(4, 29, 2)
        ]
        view.paint(_ROAD, dashes, paint, distance=1.6)


# The objects. Each painter gets its place: centre x and the y where it stands.

_WOODS = ((120, 80, 45), (150, 105, 65), (90, 60, 40), (185, 150, 105))
_METALS = ((70, 72, 78), (150, 152, 158), (45, 45, 50), (200, 200, 200), (60, 90, 70))
_PAINTS = (
    (190, 45, 40),
    (45, 85, 165),
    (225, 190, 50),
    (50, 125, 75),
    (235, 235, 228),
    (35, 35, 40),
    (225, 120, 40),
    (120, 60, 130),
)
_WALLS = (
    (165, 85, 65),
    (205, 190, 160),
    (160, 160, 160),
    (225, 220, 210),
    (140, 120, 100),
    (120, 145, 165),
    (200, 160, 110),
    (95, 90, 90),
)
_LEAVES = ((55, 95, 40), (75, 120, 50), (40, 75, 45), (110, 120, 45), (180, 110, 40), (140, 60, 35))
_COATS = (
    (120, 75, 45),
    (60, 45, 38),
    (200, 170, 125),
    (225, 220, 210),
    (130, 125, 122),
    (165, 105, 60),
    (35, 33, 35),
)


def _paint_building(view: _View, x: float, base: float) -> None:
    rng, m, far = view.rng, view.metre(base), view.distance(base)
    width, height = m * rng.uniform(4, 9), m * rng.uniform(3, 7)
    left, right, top = x - width / 2, x + width / 2, base - height
    wall = view.pick(_WALLS, x, base - height / 2, width / 2)
    side = width * rng.uniform(0.15, 0.5)
    rise = (base - view.horizon) * 0.35
    view.shadow(x, base, width * 0.6, m * 0.3, 0.3)
    # The side wall recedes towards the horizon, so its edges close in on eye level.
    out = right + side if x < view.width / 2 else left - side
    near = right if x < view.width / 2 else left
    drop = (height - (base - view.horizon)) * 0.18
    receding = np.array([(near, base), (out, base - rise), (out, top + drop), (near, top)])
    lit = 0.75 if (out > near) == (view.light > 0) else 0.6
    view.paint(_BUILDING, [receding], wall * lit, grain=0.03, distance=far)
    front = _box(left, top, right, base)
    view.paint(_BUILDING, [front], wall, grain=0.035, cell=4, distance=far, relief=0.06, fall=0.05)
    if rng.random() < 0.6:
        peak = top - height * rng.uniform(0.12, 0.35)
        eaves = width * 0.04
        roof = np.array(
            [
                (left - eaves, top),
                (right + eaves, top),
                (x + width * 0.2, peak),
                (x - width * 0.2, peak),
            ]
        )
        tiles = view.colour((120, 60, 50), (80, 75, 78), (150, 95, 65), (60, 60, 70))
        view.paint(_BUILDING, [roof], tiles, grain=0.06, cell=3, distance=far, relief=0.05)
    _paint_windows(view, left, top, right, base, far)


def _paint_windows(
    view: _View, left: float, top: float, right: float, base: float, far: float
) -> None:
    rng = view.rng
    columns, storeys = int(rng.integers(2, 6)), int(rng.integers(1, 4))
    dx, dy = (right - left) / columns, (base - top) / storeys
    wide, tall = rng.uniform(0.3, 0.6), rng.uniform(0.4, 0.65)
    panes = [
        _box(
            left + (i + 0.5 - wide / 2) * dx,
            top + (j + 0.45 - tall / 2) * dy,
            left + (i + 0.5 + wide / 2) * dx,
            top + (j + 0.45 + tall / 2) * dy,
        )
        for i in range(columns)
        for j in range(storeys)
    ]
    frame = view.colour((230, 230, 225), (90, 70, 55), (150, 150, 150))
    glass = view.colour((60, 75, 95), (110, 135, 160), (45, 50, 55))
    view.paint(_BUILDING, [(p - p.mean(0)) * 1.18 + p.mean(0) for p in panes], frame, distance=far)
    view.paint(_BUILDING, panes, glass, distance=far, fall=0.15, cell=12, grain=0.08)
    middle = left + (int(rng.integers(columns)) + 0.5) * dx
    door = _box(middle - dx * 0.22, base - dy * 0.75, middle + dx * 0.22, base)
    view.paint(_BUILDING, [door], view.colour(*_WOODS, *_PAINTS), distance=far)


def _paint_tree(view: _View, x: float, base: float) -> None:
    rng, m, far = view.rng, view.metre(base), view.distance(base)
    height = m * rng.uniform(3, 6.5)
    kind = rng.choice(["round", "round", "conifer", "bare"])
    leaves = view.pick(_LEAVES, x, base - height * 0.7, height * 0.25)
    bark = view.colour((85, 62, 45), (110, 95, 80), (60, 48, 40))
    view.shadow(x, base, height * 0.4, m * 0.35, 0.35)
    trunk = max(height * rng.uniform(0.05, 0.09), view.finest)
    if kind == "bare":
        branches = _branches(rng, x, base, -math.pi / 2, height * 0.4, trunk, 5, view.finest)
        view.paint(_TREE, branches, bark, relief=0.1, distance=far)
        return
    stem = _line(x, base, x + rng.normal(0, height * 0.03), base - height * 0.7, trunk, trunk * 0.5)
    view.paint(_TREE, [stem], bark, relief=0.2, grain=0.1, cell=3, distance=far)
    if kind == "conifer":
        half = height * rng.uniform(0.18, 0.28)
        tiers = [
            np.array(
                [
                    (x, base - height * (1.02 - 0.18 * i)),
                    (x + half * (0.4 + 0.2 * i), b),
                    (x, b - height * 0.02),
                    (x - half * (0.4 + 0.2 * i), b),
                ]
            )
            for i in range(4)
            for b in (base - height * (0.68 - 0.18 * i),)
        ]
        view.paint(_TREE, tiers, leaves, grain=0.14, cell=4, relief=0.15, fall=0.1, distance=far)
        return
    radius = height * rng.uniform(0.24, 0.36)
    angle, reach = rng.uniform(0, 2 * math.pi, 30), np.sqrt(rng.uniform(0, 1, 30)) * radius
    crowns = [
        _ellipse(
            x + r * math.cos(a), base - height * 0.7 + 0.8 * r * math.sin(a), s, s * 0.85, n=11
        )
        for a, r, s in zip(angle, reach, rng.uniform(0.15, 0.4, 30) * radius, strict=True)
    ]
    view.paint(_TREE, crowns, leaves * 0.85, grain=0.16, cell=4, relief=0.1, distance=far)
    lit = [c * 0.55 + c.mean(0) * 0.45 + (view.light, -1.5) for c in crowns[::2]]
    view.paint(_TREE, lit, leaves * 1.08, grain=0.16, cell=4, relief=0.1, distance=far)


def _branches(
    rng: np.random.Generator,
    x: float,
    y: float,
    angle: float,
    length: float,
    width: float,
    levels: int,
    finest: float,
) -> list[Points]:
    """A bare tree: every branch ends in two or three thinner ones."""
    tip_x, tip_y = x + length * math.cos(angle), y + length * math.sin(angle)
    shapes = [_line(x, y, tip_x, tip_y, max(width, finest), max(width * 0.7, finest))]
    if levels > 1:
        for turn in rng.normal([-0.45, 0.45], 0.15):
            shapes += _branches(
                rng, tip_x, tip_y, angle + turn, length * 0.72, width * 0.62, levels - 1, finest
            )
    return shapes


def _paint_pole(view: _View, x: float, base: float) -> None:
    rng, m, far = view.rng, view.metre(base), view.distance(base)
    kind = rng.choice(["lamp", "sign", "wires"], p=[0.4, 0.4, 0.2])
    height = m * (rng.uniform(2.0, 2.8) if kind == "sign" else rng.uniform(3.5, 6))
    width = max(m * rng.uniform(0.07, 0.16), view.finest * 1.4)
    top = base - height
    colour = view.pick(_METALS if kind != "wires" else _WOODS, x, base - height / 2, 20)
    view.shadow(x, base, m * 0.5, m * 0.06, 0.3)
    parts = [_line(x, base, x, top, width, width * 0.8)]
    if kind == "lamp":
        reach = m * rng.uniform(0.5, 1.1) * rng.choice([-1, 1])
        thin = max(width * 0.7, view.finest)
        parts += [_line(x, top, x + reach, top - m * 0.15, thin)]
        parts += [_ellipse(x + reach, top - m * 0.1, m * 0.3, m * 0.12)]
        parts += [_box(x - width, base - m * 0.25, x + width, base)]
    if kind == "wires":
        arm, thin = m * rng.uniform(0.6, 0.9), max(width * 0.6, view.finest)
        parts += [_line(x - arm, top + m * 0.3, x + arm, top + m * 0.3, thin)]
        parts += _wires(view, x, top + m * 0.3, arm)
    view.paint(_POLE, parts, colour, relief=0.08, distance=far)
    if kind == "sign":
        r, board = m * rng.uniform(0.3, 0.45), view.pick(_PAINTS, x, top, m * 0.3)
        plate = (
            _ellipse(x, top + r, r, r)
            if rng.random() < 0.5
            else _ellipse(x, top + r, r * 1.2, r, n=int(rng.choice([3, 4, 8])))
        )
        view.paint(_POLE, [plate], board, distance=far, relief=0.05)
        mark = view.colour((240, 240, 235), (20, 20, 25))
        view.paint(_POLE, [_line(x - r * 0.45, top + r, x + r * 0.45, top + r, r * 0.3)], mark)


def _wires(view: _View, x: float, y: float, arm: float) -> list[Points]:
    """Sagging lines from the crossbar to both edges of the view."""
    shapes = []
    for start in (x - arm * 0.9, x + arm * 0.9):
        sag, slope = view.rng.uniform(8, 25), view.rng.uniform(-0.1, 0.1)
        for edge in (-5.0, view.width + 5):
            t = np.linspace(0, 1, 7)
            px, py = start + (edge - start) * t, y + slope * (edge - start) * t + sag * t * (2 - t)
            shapes += [
                _line(px[i], py[i], px[i + 1], py[i + 1], view.finest) for i in range(len(t) - 1)
            ]
    return shapes


def _paint_fence(view: _View, x: float, base: float) -> None:
    rng, m, far = view.rng, view.metre(base), view.distance(base)
    height, span = m * rng.uniform(0.8, 1.25), view.width * rng.uniform(0.3, 0.8)
    left, right = x - span / 2, x + span / 2
    tilt = rng.uniform(-0.04, 0.04)
    picket = rng.random() < 0.65
    gap = m * (rng.uniform(0.16, 0.26) if picket else rng.uniform(0.5, 0.9))
    width = max(gap * (rng.uniform(0.45, 0.6) if picket else 0.16), view.finest * 1.3)
    gap = max(gap, 2.2 * width)
    posts = np.arange(left, right, gap)
    rail = max(m * rng.uniform(0.06, 0.11), view.finest)
    colour = view.pick((*_WOODS, *_METALS, (238, 236, 230), (238, 236, 230)), x, base, span * 0.4)
    view.shadow(x, base, span * 0.5, m * 0.1, 0.25)

    def foot(px: float) -> float:
        return base + tilt * (px - x)

    bars = [_line(p, foot(p), p, foot(p) - height, width) for p in posts]
    if picket:
        bars += [_ellipse(p, foot(p) - height, width / 2, width * 0.7, n=4) for p in posts]
    levels = (0.3, 0.75) if picket else (0.3, 0.6, 0.9)
    bars += [
        _line(left, foot(left) - height * k, posts[-1], foot(posts[-1]) - height * k, rail)
        for k in levels
    ]
    view.paint(_FENCE, bars, colour, grain=0.05, fall=0.05, distance=far)


def _paint_cart(view: _View, x: float, base: float) -> None:
    rng, m, far = view.rng, view.metre(base), view.distance(base)
    radius, length = m * rng.uniform(0.4, 0.62), m * rng.uniform(1.5, 2.3)
    facing = rng.choice([-1.0, 1.0])
    axle, deck = base - radius, base - radius * rng.uniform(1.1, 1.5)
    body = view.pick((*_PAINTS, *_WOODS), x, deck, m * 0.6)
    wood = view.pick((*_WOODS, *_METALS), x, base - radius, m * 0.6)
    view.shadow(x, base, length * 0.6, m * 0.12, 0.4)
    bar = max(m * 0.06, view.finest)
    shaft = [_line(x, deck, x + facing * length * 0.95, deck - m * rng.uniform(-0.1, 0.25), bar)]
    view.paint(_CART, shaft, wood, distance=far)
    tall, flare = m * rng.uniform(0.35, 0.7), m * rng.uniform(0.0, 0.15)
    half = length / 2
    hull = np.array(
        [
            (x - half - flare, deck - tall),
            (x + half + flare, deck - tall),
            (x + half, deck),
            (x - half, deck),
        ]
    )
    view.paint(_CART, [hull], body, relief=0.1, fall=0.1, grain=0.05, distance=far)
    planks = [
        _line(x - half, deck - tall * k, x + half, deck - tall * k, bar * 0.5) for k in (0.33, 0.66)
    ]
    view.paint(_CART, planks, body * 0.75, distance=far)
    if rng.random() < 0.4:
        cover = deck - tall - m * rng.uniform(0.6, 0.9)
        posts = [_line(x + s * half * 0.9, deck - tall, x + s * half, cover, bar) for s in (-1, 1)]
        view.paint(_CART, posts, wood, distance=far)
        awning = np.array(
            [
                (x - half * 1.15, cover + m * 0.2),
                (x + half * 1.15, cover + m * 0.2),
                (x + half * 0.8, cover - m * 0.1),
                (x - half * 0.8, cover - m * 0.1),
            ]
        )
        cloth = view.pick(_PAINTS, x, cover, m * 0.4)
        view.paint(_CART, [awning], cloth, relief=0.1, fall=0.08, distance=far)
    wheels = [x - half * 0.55, x + half * 0.55] if rng.random() < 0.6 else [x - facing * half * 0.2]
    spokes, phase = int(rng.integers(6, 13)), rng.uniform(0, 1)
    for centre in wheels:
        view.paint(
            _CART,
            _wheel(centre, axle, radius, spokes, phase, view.finest),
            wood,
            relief=0.08,
            distance=far,
        )


def _wheel(x: float, y: float, r: float, spokes: int, phase: float, finest: float) -> list[Points]:
    rim, bar = max(r * 0.13, finest * 1.3), max(r * 0.07, finest)
    turns = (np.arange(spokes) + phase) * 2 * math.pi / spokes
    parts = [_ring(x, y, r, r, rim), _ellipse(x, y, r * 0.16, r * 0.16)]
    return parts + [_line(x, y, x + r * math.cos(t), y + r * math.sin(t), bar) for t in turns]


def _paint_chair(view: _View, x: float, base: float) -> None:
    rng, m, far = view.rng, view.metre(base), view.distance(base)
    table = rng.random() < 0.4
    width = m * (rng.uniform(0.9, 1.6) if table else rng.uniform(0.45, 0.6))
    height = m * (rng.uniform(0.65, 0.8) if table else rng.uniform(0.45, 0.55))
    # Seen at three quarters: the far edge is shifted up and aside.
    dx, dy = width * rng.uniform(-0.35, 0.35), m * rng.uniform(0.12, 0.25)
    leg, slab = max(m * rng.uniform(0.035, 0.06), view.finest), max(m * 0.05, view.finest * 1.5)
    colour = view.pick((*_WOODS, *_PAINTS, *_METALS), x, base - height, m * 0.5)
    view.shadow(x, base - dy / 2, width * 0.65, m * 0.12, 0.35)
    left, right, top = x - width / 2, x + width / 2, base - height
    feet = ((left, base), (right, base), (left + dx, base - dy), (right + dx, base - dy))
    legs = [_line(px, py, px + 0.06 * (x - px), py - height, leg) for px, py in feet]
    view.paint(_CHAIR, legs, colour * 0.85, distance=far, relief=0.05)
    seat = np.array([(left, top), (right, top), (right + dx, top - dy), (left + dx, top - dy)])
    if not table:
        back = m * rng.uniform(0.45, 0.6)
        ends = [(left + dx, top - dy), (right + dx, top - dy)]
        rails = [_line(px, py, px, py - back, leg) for px, py in ends]
        count = int(rng.integers(0, 5))
        rails += [
            _line(
                left + dx + width * k, top - dy, left + dx + width * k, top - dy - back, leg * 0.8
            )
            for k in (np.arange(count) + 1) / (count + 1)
        ]
        for k in (1.0, 0.25):
            y = top - dy - back * k
            rails += [_line(left + dx, y, right + dx, y, slab * (1.6 if k == 1.0 else 0.8))]
        view.paint(_CHAIR, rails, colour * 0.95, distance=far, relief=0.05)
    view.paint(_CHAIR, [seat, _box(left, top, right, top + slab)], colour, fall=0.1, distance=far)


def _paint_animal(view: _View, x: float, base: float) -> None:
    rng, m, far = view.rng, view.metre(base), view.distance(base)
    height, facing = m * rng.uniform(0.6, 1.5), rng.choice([-1.0, 1.0])
    long, deep = height * rng.uniform(0.55, 0.75), height * rng.uniform(0.2, 0.28)
    legs = height * rng.uniform(0.4, 0.52)
    middle = base - legs - deep * 0.7
    coat = view.pick(_COATS, x, middle, height * 0.4)
    view.shadow(x, base, long * 1.0, height * 0.1, 0.4)
    thick = max(height * rng.uniform(0.06, 0.1), view.finest)
    limbs = [
        _line(
            x + k * long * 0.8, middle, x + k * long * 0.8 + rng.normal(0, height * 0.05), base, t
        )
        for k, t in zip((-0.95, -0.7, 0.7, 0.95), (thick,) * 4, strict=True)
    ]
    tail = x - facing * long * 0.95
    limbs += [
        _line(tail, middle, tail - facing * height * 0.15, middle + height * 0.2, thick * 0.5)
    ]
    view.paint(_ANIMAL, limbs, coat * 0.82, distance=far, relief=0.05)
    neck, head = x + facing * long * 0.8, (x + facing * long * 1.25, middle - height * 0.42)
    size = height * rng.uniform(0.12, 0.17)
    parts = [
        _ellipse(x, middle, long, deep),
        _line(neck, middle, head[0], head[1], deep * 1.3, size * 1.2),
        _ellipse(head[0] + facing * size * 0.6, head[1], size * 1.4, size, facing * 0.35),
        _line(head[0], head[1], head[0] - facing * size * 0.3, head[1] - size * 1.8, size * 0.5),
    ]
    view.paint(_ANIMAL, parts, coat, grain=0.07, cell=4, fall=0.16, relief=0.06, distance=far)
    if rng.random() < 0.35:
        patch = view.colour(*_COATS)
        spots = [
            _ellipse(
                x + k * long, middle + rng.uniform(-0.35, 0.35) * deep, long * 0.17, deep * 0.4
            )
            for k in rng.uniform(-0.6, 0.6, 3)
        ]
        view.paint(_ANIMAL, spots, patch, grain=0.07, cell=4, distance=far)


def _paint_ball(view: _View, x: float, base: float) -> None:
    rng, m, far = view.rng, view.metre(base), view.distance(base)
    r = max(m * rng.uniform(0.16, 0.36), 4 * view.finest)
    y = base - r
    colour = view.pick(_PAINTS, x, y, r)
    view.shadow(x, base, r * 1.3, r * 0.3, 0.45)
    view.paint(_BALL, [_ellipse(x, y, r, r, n=40)], colour, relief=0.18, fall=0.2, distance=far)
    if rng.random() < 0.6:
        band, tilt = view.colour(*_PAINTS), rng.uniform(0, 3.14)
        stripe = _ellipse(x, y, r, r * rng.uniform(0.2, 0.4), tilt)
        view.paint(_BALL, [stripe], band, relief=0.15, fall=0.15, distance=far)
    shine = np.minimum(colour + 60, 250)
    spot = _ellipse(x + view.light * r * 0.35, y - r * 0.4, r * 0.16, r * 0.12)
    view.paint(_BALL, [spot], shine, distance=far)


class _Kind(NamedTuple):
    painter: Callable[[_View, float, float], None]
    mean: float  # expected number in a scene
    near: float  # depth range: 1 is the bottom edge of the view, 0 the horizon
    far: float


_KINDS = (
    _Kind(_paint_building, 1.0, 0.3, 0.06),
    _Kind(_paint_tree, 2.0, 0.5, 0.1),
    _Kind(_paint_pole, 1.2, 0.9, 0.25),
    _Kind(_paint_fence, 0.8, 0.75, 0.25),
    _Kind(_paint_cart, 0.9, 0.95, 0.4),
    _Kind(_paint_chair, 1.1, 1.02, 0.5),
    _Kind(_paint_animal, 1.1, 1.0, 0.35),
    _Kind(_paint_ball, 1.1, 1.02, 0.45),
)


def _paint_objects(view: _View) -> None:
    """Place the objects and paint them from far to near."""
    rng, ground = view.rng, view.height - view.horizon
    places = [
        (view.horizon + ground * rng.uniform(k.far, k.near), rng.uniform(0.02, 0.98), k.painter)
        for k in _KINDS
        for _ in range(min(int(rng.poisson(k.mean)), 4))
    ]
    for base, across, painter in sorted(places, key=lambda p: p[0]):
        painter(view, across * view.width, base)


def _photograph(view: _View, sensor: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Light falling off across the picture, white balance, blur, sensor noise, 8 bits."""
    rng = view.rng
    rows, columns = view.labels.shape
    y, x = np.linspace(-1, 1, rows, dtype=np.float32), np.linspace(-1, 1, columns, dtype=np.float32)
    slope_x, slope_y = rng.uniform(-0.1, 0.1), rng.uniform(-0.06, 0.06)
    vignette = rng.uniform(0, 0.1)
    light = (1 + slope_y * y - vignette * y * y)[:, None] + (slope_x * x - vignette * x * x)
    balance = (rng.uniform(0.85, 1.15) * rng.uniform(0.94, 1.06, 3)).astype(np.float32)
    exposed = view.image * (light[..., None].astype(np.float32) * balance)
    developed = Image.fromarray(np.clip(exposed + 0.5, 0, 255).astype(np.uint8))
    blurred = np.asarray(developed.filter(ImageFilter.GaussianBlur(rng.uniform(0.25, 0.6))))
    # Photon noise grows as the root of the signal; read-out noise does not.
    read, photon = rng.uniform(0.5, 2.0), rng.uniform(0.0, 0.2)
    signal = blurred.astype(np.float32)
    sigma = np.sqrt(read**2 + photon**2 * signal)
    noisy = signal + sigma * sensor.standard_normal(signal.shape, np.float32)
    return np.clip(noisy + 0.5, 0, 255).astype(np.uint8)
