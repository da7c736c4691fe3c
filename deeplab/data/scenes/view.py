"""What scenes are painted with: shapes as polygons, and the view that they are painted into."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

DEFAULT_SIZE = 321
OVERSAMPLING = 4

Floats = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
Colour = npt.NDArray[np.float32]

RGB = tuple[int, int, int]


def colours(codes: str) -> tuple[RGB, ...]:
    """Colours by their hexadecimal codes, RRGGBB with spaces between."""
    return tuple((r, g, b) for r, g, b in map(bytes.fromhex, codes.split()))


# Shapes: polygons in world units, of which the shorter image side has 321.


def box(x0: float, y0: float, x1: float, y1: float) -> Points:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def trapezium(x: float, y0: float, half0: float, y1: float, half1: float) -> Points:
    """Two level sides about the same x, half as long as given."""
    return np.array([(x - half0, y0), (x + half0, y0), (x + half1, y1), (x - half1, y1)])


def ellipse(x: float, y: float, rx: float, ry: float, tilt: float = 0.0, n: int = 28) -> Points:
    t = np.linspace(0, 2 * math.pi, n, endpoint=False)
    px, py = rx * np.cos(t), ry * np.sin(t)
    c, s = math.cos(tilt), math.sin(tilt)
    return np.stack([x + c * px - s * py, y + s * px + c * py], axis=1)


def ring(x: float, y: float, rx: float, ry: float, thickness: float) -> Points:
    outer = ellipse(x, y, rx, ry, n=40)
    inner = ellipse(x, y, max(rx - thickness, 0.1), max(ry - thickness, 0.1), n=40)
    return np.concatenate([outer, outer[:1], inner[:1], inner[::-1]])


def line(x0: float, y0: float, x1: float, y1: float, width: float, end: float = -1.0) -> Points:
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
class View:
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
    ) -> View:
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

    def colour(self, *bases: RGB) -> Colour:
        """A random variant of one of ``bases``, brightness and tint both jittered."""
        base = np.array(bases[self.rng.integers(len(bases))], np.float32)
        tint = self.rng.normal(0, 9, 3) + self.rng.normal(0, 18)
        return np.clip(base + tint, 12, 245).astype(np.float32)

    def pick(self, bases: Sequence[RGB], x: float, y: float, radius: float) -> Colour:
        """Of three random variants of ``bases`` the one furthest from what is already there."""
        choices = [self.colour(*bases) for _ in range(3)]
        s = self.scale
        rows = slice(max(int((y - radius) * s), 0), max(int((y + radius) * s), 1))
        columns = slice(max(int((x - radius) * s), 0), max(int((x + radius) * s), 1))
        behind = self.image[rows, columns].reshape(-1, 3)
        if not len(behind):
            return choices[0]
        mean = behind.mean(0)
        return max(choices, key=lambda c: float(np.abs(c - mean).sum()))


def _fractal_noise(rng: np.random.Generator) -> Floats:
    """Three octaves of smooth cyclic noise [256, 256], zero mean, unit variance."""
    total = np.zeros((256, 256), np.float32)
    for cells, amplitude in ((16, 1.0), (32, 0.8), (64, 0.6)):
        grid = np.pad(rng.standard_normal((cells, cells), np.float32), 2, mode="wrap")
        step = 256 // cells
        fine = Image.fromarray(grid).resize((len(grid) * step,) * 2, Image.Resampling.BICUBIC)
        total += amplitude * np.asarray(fine)[2 * step :, 2 * step :][:256, :256]
    return (total - total.mean()) / total.std()
