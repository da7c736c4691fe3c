"""The stage of a scene: sky, hills, grass, road."""

from __future__ import annotations

import math

import numpy as np

from deeplab.data.scenes.classes import GRASS, ROAD
from deeplab.data.scenes.view import Points, View, box

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


def paint_sky(view: View) -> None:
    rng = view.rng
    sky = np.array(_SKIES[rng.integers(len(_SKIES))], np.float32)
    top, bottom = sky + rng.normal(0, 8, (2, 3)).astype(np.float32)
    rows, columns = view.labels.shape
    down = np.clip(np.arange(rows, dtype=np.float32) / (view.horizon * view.scale), 0, 1)
    view.image[:] = (top + (bottom - top) * down[:, None])[:, None, :]
    view.sky = bottom
    clouds = view.texture(slice(0, rows), slice(0, columns), rng.uniform(25, 60))
    thickness = np.clip((clouds - rng.uniform(0.0, 1.5)) * 0.6, 0, 1) * rng.uniform(0.2, 0.8)
    white = np.full(3, rng.uniform(200, 248), np.float32)
    view.image += thickness[..., None] * (white - view.image)


def _ridge(view: View, rise: float) -> Points:
    """A hilly skyline from edge to edge, ``rise`` above the horizon at most."""
    x = np.linspace(-5, view.width + 5, 40)
    waves = np.zeros_like(x)
    for frequency in (0.012, 0.03, 0.11):
        waves += view.rng.uniform(0.3, 1) * np.sin(x * frequency + view.rng.uniform(0, 6.3))
    y = view.horizon - rise * (waves - waves.min()) / max(float(np.ptp(waves)), 1e-6)
    return np.concatenate(
        [np.stack([x, y], 1), [(view.width + 5, view.horizon + 2), (-5, view.horizon + 2)]]
    )


def paint_ground(view: View) -> None:
    rng = view.rng
    if rng.random() < 0.6:
        hill = view.colour((90, 120, 90), (110, 125, 110), (130, 130, 90), (100, 115, 130))
        ridge = _ridge(view, rng.uniform(6, 40))
        view.paint(GRASS, [ridge], hill, grain=0.06, cell=8, distance=6)
    grass = view.colour(*_GREENS)
    below = box(-1, view.horizon, view.width + 1, view.height + 1)
    view.paint(GRASS, [below], grass, grain=0.0)
    _roughen_ground(view)
    if rng.random() < 0.85:
        _paint_road(view)


def _roughen_ground(view: View) -> None:
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


def _paint_road(view: View) -> None:
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
    view.paint(ROAD, [strip], colour, grain=0.035, cell=3, distance=1.6, relief=0.05)
    if len(strip) > 4 and rng.random() < 0.6:
        paint = view.colour((225, 225, 220), (220, 200, 90))
        left = np.stack([middle - 0.03 * edge, y], 1)
        right = np.stack([middle + 0.03 * edge, y], 1)
        dashes = [np.array([left[i], right[i], right[i + 1], left[i + 1]]) for i in range(4, 29, 2)]
        view.paint(ROAD, dashes, paint, distance=1.6)
