"""Make the pictures of the documentation by the package's own functions: docs/pictures/*.png.

python docs/make_pictures.py [NAME ...]      # needs matplotlib; without names all of them

The photograph is the cup of deeplab/photographs (CC0). Nothing is random but the generated scene,
whose seed is fixed; every picture lies on white, so that it reads on a dark page too.
"""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from PIL import Image

import crf
import kernels
from deeplab import photographs
from deeplab.crf_settings import CRFSettings
from deeplab.data import outputs
from deeplab.data.scenes import PALETTE, TEST_START, scene
from deeplab.predict import predict
from deeplab.refine import refine_probabilities, refine_scribbles
from deeplab.weights import SHIPPED, load_model, read_metadata
from kernels.exact.tiles import TILE

FOLDER = Path(__file__).parent / "pictures"
DPI = 110
INK, QUIET, RED, BLUE = "#202428", "#9aa4ad", "#d7263d", "#1b6ca8"
RATES = (6, 12, 18, 24)
RATE_COLOURS = ("#f2c14e", "#4d9de0", "#7768ae", "#d7263d")
STRIDE = 8  # of the map on which the pyramid works
PIXEL = (165, 165)  # row and column on the saucer, of the photograph at half its size
CENTRE = (205, 290)  # of the pyramid, on the whole photograph


def atrous() -> Figure:
    """Figure 3 of the v2 paper: one filter on a shrunk picture, and with a rate on the whole."""
    image, _ = photographs.coffee()
    grey = torch.from_numpy(image).float().mean(2)[None, None]
    rate = 8
    across = torch.tensor([1.0, 2.0, 0.0, -2.0, -1.0])
    along = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0])
    weight = (along[:, None] * across)[None, None, None]  # [rates, out, in, 5, 5]: upright edges
    small = F.interpolate(grey, scale_factor=1 / rate, mode="area")
    sparse = kernels.multi_rate_atrous_conv2d(small, weight, rates=(1,))
    sparse = F.interpolate(sparse, scale_factor=rate, mode="nearest")
    dense = kernels.multi_rate_atrous_conv2d(grey, weight, rates=(rate,))
    figure, axes = panels(3, 10, 2.75)
    show(axes[0], image, "photograph")
    for ax, answer, title in (
        (axes[1], sparse, f"5x5 filter on the picture shrunk to 1/{rate}"),
        (axes[2], dense, f"the same filter at rate {rate} on the whole picture"),
    ):
        values = answer[0, 0].numpy()
        bound = float(np.quantile(np.abs(values), 0.995))
        show(ax, values, title, cmap="RdBu", vmin=-bound, vmax=bound)
    return figure


def aspp() -> Figure:
    """The 33 places that the pyramid's four rates see, as its answer to a single point of light."""
    image, _ = photographs.coffee()
    side = 2 * RATES[-1] + 1
    impulse = torch.zeros(1, 1, side, side)
    impulse[..., side // 2, side // 2] = 1
    weight = torch.ones(4, 1, 1, 3, 3)
    figure = Figure((10, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    show(left, image, f"on a photograph, at an output stride of {STRIDE}")
    for rate, colour in zip(RATES, RATE_COLOURS, strict=True):
        answer = kernels.multi_rate_atrous_conv2d(impulse, weight[:1], rates=(rate,))[0, 0]
        rows, columns = (answer.nonzero() - side // 2).T.numpy()
        right.scatter(columns, rows, s=48, color=colour, label=f"rate {rate}", zorder=3)
        y, x = CENTRE[0] + STRIDE * rows, CENTRE[1] + STRIDE * columns
        reach = STRIDE * rate
        corner = (CENTRE[1] - reach, CENTRE[0] - reach)
        box = Rectangle(corner, 2 * reach, 2 * reach, fill=False, edgecolor=colour, linewidth=1.2)
        left.add_patch(box)
        left.scatter(x, y, s=34, color=colour, edgecolor="white", linewidth=0.8, zorder=3)
    left.set_xlim(-0.5, image.shape[1] - 0.5)
    left.set_ylim(image.shape[0] - 0.5, -0.5)
    right.set_title("on the map: 33 places, the centre shared", fontsize=10, color=INK)
    right.set_aspect("equal")
    right.invert_yaxis()
    right.grid(color="#e8ebee")
    right.tick_params(labelsize=8)
    right.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncol=4, frameon=False)
    return figure


def mean_field() -> Figure:
    """Scribbles on the cup after 0 to 10 updates; paler where the CRF is less certain."""
    image, annotation = photographs.coffee()
    assert annotation.colours is not None  # which read_colours has
    steps = (0, 1, 2, 3, 5, 10)
    figure, axes = panels(3, 10, 5.1, rows=2)
    grey = image.mean(2, keepdims=True) * 0.35 + 165
    for ax, iterations in zip(axes, steps, strict=True):
        settings = CRFSettings(iterations, crf.Gaussian(3.0, 3.0), photographs.SETTINGS.bilateral)
        found = refine_scribbles(annotation, image, settings)
        assert found.probabilities is not None
        least = 1 / annotation.num_labels
        sure = (found.probabilities.max(0) - least) / (1 - least)
        picture = grey + (annotation.colours[found.labels] - grey) * sure[..., None]
        show(ax, picture.clip(0, 255).astype(np.uint8), f"after {iterations} updates")
    axes[0].set_title("before: the strokes of a pen", fontsize=10, color=INK)
    axes[1].set_title("after 1 update", fontsize=10, color=INK)
    return figure


def weights() -> Figure:
    """How much one pixel listens to the others: all pairs, rows and columns, lattice, landmarks."""
    image = small_photograph()
    sigma_xy, sigma_rgb = 40.0, 20.0
    points = features(image, sigma_xy, sigma_rgb)
    impulse = torch.zeros(len(points), 1)
    index = pixel_index(image)
    impulse[index] = 1
    lattice = kernels.gaussian_filter(impulse[None], points[None], method="permutohedral")[0]
    few = kernels.build_separable(points, tolerance=0.3)
    many = kernels.build_separable(points, tolerance=0.02)
    answers = [
        ("all pairs (exact)", exact_weights(points, index)),
        ("a row pass, then a column pass", row_and_column(image, sigma_xy, sigma_rgb)),
        ("permutohedral lattice", lattice),
        (f"{len(few.landmarks)} landmarks", kernels.apply_separable(few, impulse)),
        (f"{len(many.landmarks)} landmarks", kernels.apply_separable(many, impulse)),
    ]
    figure, axes = panels(3, 10, 5.1, rows=2)
    show(axes[0], image, f"one pixel, at sigma_xy {sigma_xy:g} and sigma_rgb {sigma_rgb:g}")
    mark(axes[0])
    for ax, (title, answer) in zip(axes[1:], answers, strict=True):
        map_ = answer.reshape(image.shape[:2]).clone()
        map_[PIXEL] = 0  # its own weight, the largest, would hide the others
        show(ax, (map_ / map_.max()).numpy(), title, cmap="magma", norm=PowerNorm(0.5, 0, 1))
    return figure


def sigmas() -> Figure:
    """What the two sigmas of the appearance term do: the exact weights that one pixel sees."""
    image = small_photograph()
    figure, axes = panels(3, 10, 5.1, rows=2)
    pairs = [(10, 20), (40, 20), (120, 20), (40, 5), (40, 60)]
    show(axes[0], image, "one pixel")
    mark(axes[0])
    for ax, (sigma_xy, sigma_rgb) in zip(axes[1:], pairs, strict=True):
        points = features(image, sigma_xy, sigma_rgb)
        answer = exact_weights(points, pixel_index(image)).reshape(image.shape[:2]).numpy()
        title = f"sigma_xy {sigma_xy}, sigma_rgb {sigma_rgb}"
        show(ax, answer, title, cmap="magma", norm=PowerNorm(0.5, 0, 1))
    return figure


def refine() -> Figure:
    """A generated scene: the network's labels, and what the CRF makes of its probabilities."""
    image, _ = scene(TEST_START + 1)
    settings = CRFSettings.stored(read_metadata(SHIPPED))
    before = predict(load_model(SHIPPED), image)
    assert before.probabilities is not None
    after = refine_probabilities(before.probabilities, image, settings)
    palette = outputs.full_palette(PALETTE)
    figure, axes = panels(3, 10, 3.7)
    show(axes[0], image, "picture")
    show(axes[1], palette[before.labels], "network: an eighth of the resolution")
    show(axes[2], palette[after.labels], "after the CRF")
    return figure


def taps() -> Figure:
    """Which taps of a tile the implicit product skips, and how multiply-then-shift goes."""
    size, block = 41, 128
    figure = Figure((10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    left.set_title(f"implicit product: a tile of {block} pixels, its 4 x 9 taps", fontsize=10)
    first = 20 * size  # of a tile in the middle of the map
    rows = slice(first // size, (first + block - 1) // size + 1)
    left.add_patch(Rectangle((-0.5, -0.5), size, size, facecolor="#f1f4f6", edgecolor=INK))
    tile = Rectangle((-0.5, rows.start - 0.5), size, rows.stop - rows.start, facecolor=BLUE)
    left.add_patch(tile)
    for rate, colour in zip(RATES, RATE_COLOURS, strict=True):
        for step in (-1, 1):
            top, height = rows.start + step * rate, rows.stop - rows.start
            live = top + height > 0 and top < size
            if live:  # what lies behind the map's edge is zero
                height = min(height, size - top)
            left.add_patch(
                Rectangle(
                    (-0.5, top - 0.5), size, height, alpha=0.75 if live else 1,
                    facecolor=colour if live else "none", edgecolor=colour, linewidth=1.2,
                    linestyle="-" if live else "--",
                )
            )  # fmt: skip
            said = f"rate {rate}" + ("" if live else ": outside, skipped")
            left.text(size + 0.5, top + 1.2, said, fontsize=8, va="center", color=INK)
    left.set_xlim(-1, size + 17)
    left.set_ylim(size + 9, -7)
    left.set_aspect("equal")
    left.axis("off")
    left.text(size / 2, size + 8.5, f"the map, {size} x {size}", fontsize=8, ha="center", color=INK)
    left.text(
        size / 2, rows.start + 1.2, "the tile", color="white", fontsize=8, ha="center", va="center"
    )
    draw_shift(right)
    return figure


def draw_shift(ax: Any) -> None:
    """One matrix product for all taps, then a gather."""
    ax.set_title("multiply, then shift: one product, then one gather", fontsize=10)

    def box(x: float, y: float, width: float, height: float, said: str, colour: str) -> None:
        ax.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor=INK))
        ax.text(x + width / 2, y + height / 2, said, ha="center", va="center", fontsize=8)

    box(0, 2.6, 2.2, 3.2, "x\n[pixels, 2048]", "#dbe9f4")
    ax.text(2.5, 4.2, "x", fontsize=12, ha="center", va="center")
    box(2.8, 3.3, 3.0, 1.8, "w\n[2048, 33 taps x 21]", "#fbeecb")
    ax.text(6.1, 4.2, "=", fontsize=12, ha="center", va="center")
    colours = ["#c9ced3", *[c for c in RATE_COLOURS for _ in range(8)]]
    for t, colour in enumerate(colours):
        ax.add_patch(Rectangle((6.4 + t * 0.11, 2.6), 0.11, 3.2, facecolor=colour, linewidth=0))
    ax.add_patch(Rectangle((6.4, 2.6), 33 * 0.11, 3.2, fill=False, edgecolor=INK))
    ax.text(8.2, 6.05, "m [pixels, 33 x 21], float32", fontsize=8, ha="center")
    box(6.9, -1.2, 2.6, 1.6, "y\n[pixels, 21]", "#dff0e0")
    for t, shift in ((0, 0.0), (5, -0.5), (14, 0.5), (22, -0.8), (30, 0.8)):
        x = 6.4 + (t + 0.5) * 0.11
        start = (x, 4.2 + shift)
        ax.plot(*start, "o", color=INK, markersize=3)
        arrow = {"arrowstyle": "->", "color": INK, "linewidth": 0.8}
        ax.annotate("", (8.2, 0.4), start, arrowprops=arrow)
    ax.text(
        6.7,
        -0.4,
        "y[p] = sum over taps t of\nm[p + offset(t), t]",
        fontsize=8,
        ha="right",
        va="center",
    )
    ax.set_xlim(-0.3, 10.4)
    ax.set_ylim(-1.6, 6.6)
    ax.set_aspect("equal")
    ax.axis("off")


def tiles() -> Figure:
    """Which pairs of tiles the exact filter keeps, and a point in a lattice of two dimensions."""
    image = small_photograph(4)
    figure = Figure((10, 4.2), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
    for ax, (sigma_xy, sigma_rgb) in zip(axes, ((40, 13), (25, 3)), strict=False):
        kept = kernels.build_tiles(features(image, sigma_xy, sigma_rgb), eps=1e-3)
        show(ax, kept_pairs(kept), "", cmap=ListedColormap(["#f1f4f6", BLUE]), interpolation="none")
        ax.set_title(f"exact, sigmas {sigma_xy}/{sigma_rgb}: kept pairs of tiles", fontsize=10)
    draw_lattice(axes[2])
    return figure


def kept_pairs(tiles: kernels.Tiles) -> np.ndarray:
    """`[T, T]`, True where a pair of tiles is computed."""
    assert tiles.kept is not None  # as eps is above 0
    count = -(-tiles.num_points // TILE)
    counts, columns = tiles.kept[:count], tiles.kept[count:].view(count, count)
    kept = np.zeros((count, count), bool)
    for row, (number, named) in enumerate(zip(counts, columns, strict=True)):
        kept[row, named[:number]] = True
    return kept


def draw_lattice(ax: Any) -> None:
    """A point splats to the corners of its simplex; blur goes along three directions."""
    ax.set_title("lattice in two dimensions: splat and blur", fontsize=10)
    up = np.array([0.5, 3**0.5 / 2])
    corner = {(i, j): i * np.array([1.0, 0.0]) + j * up for i in range(-3, 6) for j in range(6)}
    for (i, j), at in corner.items():
        for step in ((1, 0), (0, 1), (1, -1)):
            other = corner.get((i + step[0], j + step[1]))
            if other is not None:
                ax.plot(*zip(at, other, strict=True), color="#d5dade", linewidth=1, zorder=1)
    simplex = [(1, 2), (2, 2), (1, 3)]
    shares = np.array([0.5, 0.2, 0.3])
    places = np.array([corner[each] for each in simplex])
    point = shares @ places
    ax.add_patch(Polygon(places, facecolor="#dbe9f4", edgecolor=BLUE, zorder=2))
    for place, share in zip(places, shares, strict=True):
        ax.plot(*zip(point, place, strict=True), color=RED, linewidth=1.2, zorder=3)
        ax.scatter(*place, s=60 + 400 * share, color=BLUE, zorder=4)
        ax.text(*place, f"{share:g}", color="white", fontsize=7, ha="center", va="center", zorder=5)
    ax.scatter(*point, s=36, color=RED, zorder=5)
    ax.text(point[0] - 0.35, point[1] + 0.3, "point", color=RED, fontsize=8, ha="center")
    start = corner[(2, 2)]
    for step in ((1, 0), (0, 1), (1, -1)):
        for sign in (1, -1):
            neighbour = corner[(2 + sign * step[0], 2 + sign * step[1])]
            arrow = {"arrowstyle": "->", "color": INK, "linewidth": 1, "shrinkA": 9, "shrinkB": 2}
            ax.annotate("", neighbour, start, arrowprops=arrow, zorder=3)
    ax.set_xlim(0.6, 5.2)
    ax.set_ylim(-0.2, 4.4)
    ax.set_aspect("equal")
    ax.axis("off")


def small_photograph(factor: int = 2) -> np.ndarray:
    """The cup at a part of its size, RGB uint8 `[400 / factor, 600 / factor, 3]`."""
    image, _ = photographs.coffee()
    return np.array(Image.fromarray(image).reduce(factor))


def pixel_index(image: np.ndarray) -> int:
    row, column = PIXEL
    return row * image.shape[1] + column


def mark(ax: Any) -> None:
    row, column = PIXEL
    ax.scatter(column, row, s=90, facecolor="none", edgecolor="white", linewidth=3)
    ax.scatter(column, row, s=90, facecolor="none", edgecolor=RED, linewidth=1.5)


def features(image: np.ndarray, sigma_xy: float, sigma_rgb: float) -> torch.Tensor:
    """`[H * W, 5]`, positions and colours divided by their sigmas."""
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    return crf.Bilateral(1.0, sigma_xy, sigma_rgb).features(batch)[0]


def exact_weights(points: torch.Tensor, index: int) -> torch.Tensor:
    """One row of what `kernels.gaussian_filter(method="exact")` sums over, `[N]`."""
    return torch.exp(-(points - points[index]).square().sum(-1) / 2)


def row_and_column(image: np.ndarray, sigma_xy: float, sigma_rgb: float) -> torch.Tensor:
    """The weights of a bilateral filter along rows, whose results one along columns takes.

    A pixel reaches another by the corner that is in its own column and in the other's row:
    k(pixel, corner) k(corner, other).
    """
    points = features(image, sigma_xy, sigma_rgb).reshape(*image.shape[:2], 5)
    row, column = PIXEL
    corners = points[:, column]
    to_corner = (points[row, column] - corners).square().sum(-1)
    onwards = (corners[:, None] - points).square().sum(-1)
    return torch.exp(-(to_corner[:, None] + onwards) / 2)


def panels(columns: int, width: float, height: float, rows: int = 1) -> tuple[Figure, np.ndarray]:
    figure = Figure((width, height), layout="constrained")
    return figure, np.atleast_1d(figure.subplots(rows, columns)).ravel()


def show(ax: Any, picture: np.ndarray, title: str, **how: Any) -> None:
    ax.imshow(picture, **how)
    ax.set_title(title, fontsize=10, color=INK)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_edgecolor(QUIET)


PICTURES: dict[str, Callable[[], Figure]] = {
    picture.__name__: picture
    for picture in (atrous, aspp, mean_field, weights, sigmas, refine, taps, tiles)
}


def main(names: list[str]) -> None:
    for name in names or PICTURES:
        drawn = io.BytesIO()
        PICTURES[name]().savefig(
            drawn, dpi=DPI, facecolor="white", bbox_inches="tight", pad_inches=0.1
        )
        picture = Image.open(drawn).convert("RGB")
        few = picture.quantize(256, dither=Image.Dither.FLOYDSTEINBERG)  # a third of the bytes
        few.save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
