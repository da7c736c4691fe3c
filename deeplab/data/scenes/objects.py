"""The objects of a scene. Each painter gets its place: centre x, and the y where it stands."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from deeplab.data.scenes.classes import ANIMAL, BALL, BUILDING, CART, CHAIR, FENCE, POLE, TREE
from deeplab.data.scenes.view import Points, View, box, colours, ellipse, line, ring, trapezium

_WOODS = colours("78502d 966941 5a3c28 b99669")
_METALS = colours("46484e 96989e 2d2d32 c8c8c8 3c5a46")
_PAINTS = colours("be2d28 2d55a5 e1be32 327d4b ebebe4 232328 e17828 783c82")
_WALLS = colours("a55541 cdbea0 a0a0a0 e1dcd2 8c7864 7891a5 c8a06e 5f5a5a")
_LEAVES = colours("375f28 4b7832 284b2d 6e782d b46e28 8c3c23")
_COATS = colours("784b2d 3c2d26 c8aa7d e1dcd2 827d7a a5693c 232123")


def _paint_building(view: View, x: float, base: float) -> None:
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
    view.paint(BUILDING, [receding], wall * lit, grain=0.03, distance=far)
    front = box(left, top, right, base)
    view.paint(BUILDING, [front], wall, grain=0.035, cell=4, distance=far, relief=0.06, fall=0.05)
    if rng.random() < 0.6:
        peak = top - height * rng.uniform(0.12, 0.35)
        roof = trapezium(x, top, width * 0.54, peak, width * 0.2)
        tiles = view.colour((120, 60, 50), (80, 75, 78), (150, 95, 65), (60, 60, 70))
        view.paint(BUILDING, [roof], tiles, grain=0.06, cell=3, distance=far, relief=0.05)
    _paint_windows(view, left, top, right, base, far)


def _paint_windows(
    view: View, left: float, top: float, right: float, base: float, far: float
) -> None:
    rng = view.rng
    columns, storeys = int(rng.integers(2, 6)), int(rng.integers(1, 4))
    dx, dy = (right - left) / columns, (base - top) / storeys
    wide, tall = rng.uniform(0.3, 0.6), rng.uniform(0.4, 0.65)
    panes = [
        box(
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
    view.paint(BUILDING, [(p - p.mean(0)) * 1.18 + p.mean(0) for p in panes], frame, distance=far)
    view.paint(BUILDING, panes, glass, distance=far, fall=0.15, cell=12, grain=0.08)
    middle = left + (int(rng.integers(columns)) + 0.5) * dx
    door = box(middle - dx * 0.22, base - dy * 0.75, middle + dx * 0.22, base)
    view.paint(BUILDING, [door], view.colour(*_WOODS, *_PAINTS), distance=far)


def _paint_tree(view: View, x: float, base: float) -> None:
    rng, m, far = view.rng, view.metre(base), view.distance(base)
    height = m * rng.uniform(3, 6.5)
    kind = rng.choice(["round", "round", "conifer", "bare"])
    leaves = view.pick(_LEAVES, x, base - height * 0.7, height * 0.25)
    bark = view.colour((85, 62, 45), (110, 95, 80), (60, 48, 40))
    view.shadow(x, base, height * 0.4, m * 0.35, 0.35)
    trunk = max(height * rng.uniform(0.05, 0.09), view.finest)
    if kind == "bare":
        branches = _branches(view, x, base, -math.pi / 2, height * 0.4, trunk, 5)
        view.paint(TREE, branches, bark, relief=0.1, distance=far)
        return
    stem = line(x, base, x + rng.normal(0, height * 0.03), base - height * 0.7, trunk, trunk * 0.5)
    view.paint(TREE, [stem], bark, relief=0.2, grain=0.1, cell=3, distance=far)
    if kind == "conifer":
        half = height * rng.uniform(0.18, 0.28)
        tiers = []
        for i in range(4):
            peak, low = (base - height * (y - 0.18 * i) for y in (1.02, 0.68))
            wide = half * (0.4 + 0.2 * i)
            corners = [(x, peak), (x + wide, low), (x, low - height * 0.02), (x - wide, low)]
            tiers.append(np.array(corners))
        view.paint(TREE, tiers, leaves, grain=0.14, cell=4, relief=0.15, fall=0.1, distance=far)
        return
    radius = height * rng.uniform(0.24, 0.36)
    angle, reach = rng.uniform(0, 2 * math.pi, 30), np.sqrt(rng.uniform(0, 1, 30)) * radius
    crowns = [
        ellipse(x + r * math.cos(a), base - height * 0.7 + 0.8 * r * math.sin(a), s, s * 0.85, n=11)
        for a, r, s in zip(angle, reach, rng.uniform(0.15, 0.4, 30) * radius, strict=True)
    ]
    view.paint(TREE, crowns, leaves * 0.85, grain=0.16, cell=4, relief=0.1, distance=far)
    lit = [c * 0.55 + c.mean(0) * 0.45 + (view.light, -1.5) for c in crowns[::2]]
    view.paint(TREE, lit, leaves * 1.08, grain=0.16, cell=4, relief=0.1, distance=far)


def _branches(
    view: View, x: float, y: float, angle: float, length: float, width: float, levels: int
) -> list[Points]:
    """A bare tree: every branch ends in two thinner ones."""
    tip_x, tip_y = x + length * math.cos(angle), y + length * math.sin(angle)
    shapes = [line(x, y, tip_x, tip_y, max(width, view.finest), max(width * 0.7, view.finest))]
    if levels > 1:
        for turn in view.rng.normal([-0.45, 0.45], 0.15):
            thinner = length * 0.72, width * 0.62, levels - 1
            shapes += _branches(view, tip_x, tip_y, angle + turn, *thinner)
    return shapes


def _paint_pole(view: View, x: float, base: float) -> None:
    rng, m, far = view.rng, view.metre(base), view.distance(base)
    kind = rng.choice(["lamp", "sign", "wires"], p=[0.4, 0.4, 0.2])
    height = m * (rng.uniform(2.0, 2.8) if kind == "sign" else rng.uniform(3.5, 6))
    width = max(m * rng.uniform(0.07, 0.16), view.finest * 1.4)
    top = base - height
    colour = view.pick(_METALS if kind != "wires" else _WOODS, x, base - height / 2, 20)
    view.shadow(x, base, m * 0.5, m * 0.06, 0.3)
    parts = [line(x, base, x, top, width, width * 0.8)]
    if kind == "lamp":
        reach = m * rng.uniform(0.5, 1.1) * rng.choice([-1, 1])
        thin = max(width * 0.7, view.finest)
        parts += [line(x, top, x + reach, top - m * 0.15, thin)]
        parts += [ellipse(x + reach, top - m * 0.1, m * 0.3, m * 0.12)]
        parts += [box(x - width, base - m * 0.25, x + width, base)]
    if kind == "wires":
        arm, thin = m * rng.uniform(0.6, 0.9), max(width * 0.6, view.finest)
        parts += [line(x - arm, top + m * 0.3, x + arm, top + m * 0.3, thin)]
        parts += _wires(view, x, top + m * 0.3, arm)
    view.paint(POLE, parts, colour, relief=0.08, distance=far)
    if kind == "sign":
        r, board = m * rng.uniform(0.3, 0.45), view.pick(_PAINTS, x, top, m * 0.3)
        plate = ellipse(x, top + r, r, r)
        if rng.random() >= 0.5:
            plate = ellipse(x, top + r, r * 1.2, r, n=int(rng.choice([3, 4, 8])))
        view.paint(POLE, [plate], board, distance=far, relief=0.05)
        mark = view.colour((240, 240, 235), (20, 20, 25))
        view.paint(POLE, [line(x - r * 0.45, top + r, x + r * 0.45, top + r, r * 0.3)], mark)


def _wires(view: View, x: float, y: float, arm: float) -> list[Points]:
    """Sagging lines from the crossbar to both edges of the view."""
    shapes = []
    for start in (x - arm * 0.9, x + arm * 0.9):
        sag, slope = view.rng.uniform(8, 25), view.rng.uniform(-0.1, 0.1)
        for edge in (-5.0, view.width + 5):
            t = np.linspace(0, 1, 7)
            px, py = start + (edge - start) * t, y + slope * (edge - start) * t + sag * t * (2 - t)
            pieces = zip(pairwise(px), pairwise(py), strict=True)
            shapes += [line(x0, y0, x1, y1, view.finest) for (x0, x1), (y0, y1) in pieces]
    return shapes


def _paint_fence(view: View, x: float, base: float) -> None:
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

    bars = [line(p, foot(p), p, foot(p) - height, width) for p in posts]
    if picket:
        bars += [ellipse(p, foot(p) - height, width / 2, width * 0.7, n=4) for p in posts]
    levels = (0.3, 0.75) if picket else (0.3, 0.6, 0.9)
    bars += [
        line(left, foot(left) - height * k, posts[-1], foot(posts[-1]) - height * k, rail)
        for k in levels
    ]
    view.paint(FENCE, bars, colour, grain=0.05, fall=0.05, distance=far)


def _paint_cart(view: View, x: float, base: float) -> None:
    rng, m, far = view.rng, view.metre(base), view.distance(base)
    radius, length = m * rng.uniform(0.4, 0.62), m * rng.uniform(1.5, 2.3)
    facing = rng.choice([-1.0, 1.0])
    axle, deck = base - radius, base - radius * rng.uniform(1.1, 1.5)
    body = view.pick((*_PAINTS, *_WOODS), x, deck, m * 0.6)
    wood = view.pick((*_WOODS, *_METALS), x, base - radius, m * 0.6)
    view.shadow(x, base, length * 0.6, m * 0.12, 0.4)
    bar = max(m * 0.06, view.finest)
    shaft = [line(x, deck, x + facing * length * 0.95, deck - m * rng.uniform(-0.1, 0.25), bar)]
    view.paint(CART, shaft, wood, distance=far)
    tall, flare = m * rng.uniform(0.35, 0.7), m * rng.uniform(0.0, 0.15)
    half = length / 2
    hull = trapezium(x, deck - tall, half + flare, deck, half)
    view.paint(CART, [hull], body, relief=0.1, fall=0.1, grain=0.05, distance=far)
    planks = [
        line(x - half, deck - tall * k, x + half, deck - tall * k, bar * 0.5) for k in (0.33, 0.66)
    ]
    view.paint(CART, planks, body * 0.75, distance=far)
    if rng.random() < 0.4:
        cover = deck - tall - m * rng.uniform(0.6, 0.9)
        posts = [line(x + s * half * 0.9, deck - tall, x + s * half, cover, bar) for s in (-1, 1)]
        view.paint(CART, posts, wood, distance=far)
        awning = trapezium(x, cover + m * 0.2, half * 1.15, cover - m * 0.1, half * 0.8)
        cloth = view.pick(_PAINTS, x, cover, m * 0.4)
        view.paint(CART, [awning], cloth, relief=0.1, fall=0.08, distance=far)
    wheels = [x - half * 0.55, x + half * 0.55] if rng.random() < 0.6 else [x - facing * half * 0.2]
    spokes, phase = int(rng.integers(6, 13)), rng.uniform(0, 1)
    for centre in wheels:
        wheel = _wheel(centre, axle, radius, spokes, phase, view.finest)
        view.paint(CART, wheel, wood, relief=0.08, distance=far)


def _wheel(x: float, y: float, r: float, spokes: int, phase: float, finest: float) -> list[Points]:
    rim, bar = max(r * 0.13, finest * 1.3), max(r * 0.07, finest)
    turns = (np.arange(spokes) + phase) * 2 * math.pi / spokes
    parts = [ring(x, y, r, r, rim), ellipse(x, y, r * 0.16, r * 0.16)]
    return parts + [line(x, y, x + r * math.cos(t), y + r * math.sin(t), bar) for t in turns]


def _paint_chair(view: View, x: float, base: float) -> None:
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
    legs = [line(px, py, px + 0.06 * (x - px), py - height, leg) for px, py in feet]
    view.paint(CHAIR, legs, colour * 0.85, distance=far, relief=0.05)
    seat = np.array([(left, top), (right, top), (right + dx, top - dy), (left + dx, top - dy)])
    if not table:
        back = m * rng.uniform(0.45, 0.6)
        ends = [(left + dx, top - dy), (right + dx, top - dy)]
        rails = [line(px, py, px, py - back, leg) for px, py in ends]
        count = int(rng.integers(0, 5))
        rails += [
            line(left + dx + width * k, top - dy, left + dx + width * k, top - dy - back, leg * 0.8)
            for k in (np.arange(count) + 1) / (count + 1)
        ]
        for k in (1.0, 0.25):
            y = top - dy - back * k
            rails += [line(left + dx, y, right + dx, y, slab * (1.6 if k == 1.0 else 0.8))]
        view.paint(CHAIR, rails, colour * 0.95, distance=far, relief=0.05)
    view.paint(CHAIR, [seat, box(left, top, right, top + slab)], colour, fall=0.1, distance=far)


def _paint_animal(view: View, x: float, base: float) -> None:
    rng, m, far = view.rng, view.metre(base), view.distance(base)
    height, facing = m * rng.uniform(0.6, 1.5), rng.choice([-1.0, 1.0])
    long, deep = height * rng.uniform(0.55, 0.75), height * rng.uniform(0.2, 0.28)
    legs = height * rng.uniform(0.4, 0.52)
    middle = base - legs - deep * 0.7
    coat = view.pick(_COATS, x, middle, height * 0.4)
    view.shadow(x, base, long * 1.0, height * 0.1, 0.4)
    thick = max(height * rng.uniform(0.06, 0.1), view.finest)
    limbs = [
        line(x + k * long * 0.8, middle, x + k * long * 0.8 + rng.normal(0, height * 0.05), base, t)
        for k, t in zip((-0.95, -0.7, 0.7, 0.95), (thick,) * 4, strict=True)
    ]
    tail = x - facing * long * 0.95
    limbs += [line(tail, middle, tail - facing * height * 0.15, middle + height * 0.2, thick * 0.5)]
    view.paint(ANIMAL, limbs, coat * 0.82, distance=far, relief=0.05)
    neck, head = x + facing * long * 0.8, (x + facing * long * 1.25, middle - height * 0.42)
    size = height * rng.uniform(0.12, 0.17)
    parts = [
        ellipse(x, middle, long, deep),
        line(neck, middle, head[0], head[1], deep * 1.3, size * 1.2),
        ellipse(head[0] + facing * size * 0.6, head[1], size * 1.4, size, facing * 0.35),
        line(head[0], head[1], head[0] - facing * size * 0.3, head[1] - size * 1.8, size * 0.5),
    ]
    view.paint(ANIMAL, parts, coat, grain=0.07, cell=4, fall=0.16, relief=0.06, distance=far)
    if rng.random() < 0.35:
        patch = view.colour(*_COATS)
        spots = [
            ellipse(x + k * long, middle + rng.uniform(-0.35, 0.35) * deep, long * 0.17, deep * 0.4)
            for k in rng.uniform(-0.6, 0.6, 3)
        ]
        view.paint(ANIMAL, spots, patch, grain=0.07, cell=4, distance=far)


def _paint_ball(view: View, x: float, base: float) -> None:
    rng, m, far = view.rng, view.metre(base), view.distance(base)
    r = max(m * rng.uniform(0.16, 0.36), 4 * view.finest)
    y = base - r
    colour = view.pick(_PAINTS, x, y, r)
    view.shadow(x, base, r * 1.3, r * 0.3, 0.45)
    view.paint(BALL, [ellipse(x, y, r, r, n=40)], colour, relief=0.18, fall=0.2, distance=far)
    if rng.random() < 0.6:
        band, tilt = view.colour(*_PAINTS), rng.uniform(0, 3.14)
        stripe = ellipse(x, y, r, r * rng.uniform(0.2, 0.4), tilt)
        view.paint(BALL, [stripe], band, relief=0.15, fall=0.15, distance=far)
    shine = np.minimum(colour + 60, 250)
    spot = ellipse(x + view.light * r * 0.35, y - r * 0.4, r * 0.16, r * 0.12)
    view.paint(BALL, [spot], shine, distance=far)


class _Kind(NamedTuple):
    painter: Callable[[View, float, float], None]
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


def paint_objects(view: View) -> None:
    """Place the objects and paint them from far to near."""
    rng, ground = view.rng, view.height - view.horizon
    places = [
        (view.horizon + ground * rng.uniform(k.far, k.near), rng.uniform(0.02, 0.98), k.painter)
        for k in _KINDS
        for _ in range(min(int(rng.poisson(k.mean)), 4))
    ]
    for base, across, painter in sorted(places, key=lambda p: p[0]):
        painter(view, across * view.width, base)
