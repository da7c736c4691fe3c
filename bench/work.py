"""What each Triton kernel has to do in a launch, by formula, from the arguments of the launch.

Bytes are those of the tensors that a launch is given, each once: the least that memory moves. All
else is in `Work`. How much of a list of tiles an image keeps depends on its content: the figures
below are of the photograph of 375 x 500 pixels that the comparisons use, with sigmas 80/13.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from binaries import Launch

KEPT, LIVE = 0.168, 0.428  # pairs of tiles that the exact filter keeps, and that it looks at


@dataclass(frozen=True)
class Work:
    """One launch.

    Attributes:
        matrix: operations on the tensor cores; a multiplication and an addition are two.
        plain: float32 operations beside them.
        loaded: bytes that all programs load, repeats counted: they come through the L2 cache.
        steps: how often a program runs its inner loop, on average.
    """

    matrix: float = 0
    plain: float = 0
    loaded: float = 0
    steps: float = 1


def bytes_of(launch: Launch) -> int:
    """Of the tensors of a launch, each counted once."""
    tensors = [each for each in launch.arguments.values() if isinstance(each, torch.Tensor)]
    return sum(each.nbytes for each in {id(each): each for each in tensors}.values())


def work_of(launch: Launch) -> Work:
    """The work of a launch.

    Raises:
        KeyError: no formula is known of this kernel.
    """
    return FORMULAS[launch.operation, launch.name](launch.arguments, launch.programs)


def live_rows(height: int, rates: tuple[int, ...], kernel: int) -> list[tuple[int, int]]:
    """(rate, distance) of every row of taps that reaches into a map."""
    offsets = range(-(kernel // 2), kernel // 2 + 1)
    return [(rate, i * rate) for rate in rates for i in offsets if abs(i * rate) < height]


def _conv(a: Mapping[str, Any], programs: int) -> Work:
    """Live pairs of pixel and tap, and steps over the taps that reach a tile of pixels."""
    height, width, rates, kernel = a["height"], a["width"], a["RATES"], a["KERNEL"]
    images = a["pixels"] // (height * width)
    rows = live_rows(height, rates, kernel)
    pairs = sum(
        (height - abs(dy)) * (width - abs(j * rate))
        for rate, dy in rows
        for j in range(-(kernel // 2), kernel // 2 + 1)
        if abs(j * rate) < width
    )
    tall = min(height, a["BLOCK_M"] / width + 1)  # rows of the map that a tile covers
    taps = kernel * sum(min(1, (height - abs(dy) + tall - 1) / height) for _, dy in rows)
    taps /= len(rates) if a["FUSE"] == "concat" else 1
    steps = taps * math.ceil(a["inputs"] / a["BLOCK_K"])
    tile = (a["BLOCK_M"] + a["BLOCK_N"]) * a["BLOCK_K"] * a["x_ptr"].element_size()
    matrix = 2 * images * pairs * a["inputs"] * a["outputs"]
    return Work(matrix=matrix, loaded=programs * steps * tile, steps=steps)


def _weight_grad(a: Mapping[str, Any], programs: int) -> Work:
    """Every pixel against its source, for each tap of each rate; not the rows beyond the map."""
    area, width, rates, kernel = a["height"] * a["width"], a["width"], a["RATES"], a["KERNEL"]
    live = kernel * sum(a["height"] - abs(dy) for _, dy in live_rows(a["height"], rates, kernel))
    share = live / (a["height"] * len(rates) * kernel**2)
    splits = a["image_splits"] * a["pixel_splits"]
    steps = share * a["batch"] * area / (splits * a["BLOCK_K"])
    tile = (a["BLOCK_M"] + a["BLOCK_N"]) * a["BLOCK_K"] * a["x_ptr"].element_size()
    matrix = 2 * a["batch"] * live * width * a["inputs"] * a["outputs"]
    return Work(matrix=matrix, loaded=programs * steps * tile, steps=steps)


def _gather(a: Mapping[str, Any], programs: int) -> Work:
    """A program reads every tap of its pixels, of all rates or of one, a row of taps a step."""
    rows = (len(a["RATES"]) if a["FUSE"] == "sum" else 1) * a["KERNEL"]
    channels = a["outputs"] / math.ceil(a["outputs"] / a["BLOCK_C"])
    read = programs * a["BLOCK_P"] * channels * rows * a["KERNEL"]
    return Work(plain=read, loaded=4 * read, steps=rows)


def _splat(a: Mapping[str, Any], programs: int) -> Work:
    entries, channels = len(a["points_ptr"]), a["CHANNELS"]
    rows = entries / a["pieces"] / a["UNROLL"]
    return Work(
        plain=2 * entries * channels, loaded=entries * (8 + 4 * channels), steps=math.ceil(rows)
    )


def _blur(a: Mapping[str, Any], programs: int) -> Work:
    elements = a["rows"] * a["WIDTH"]
    return Work(plain=3 * elements, loaded=12 * elements)


def _slice(a: Mapping[str, Any], programs: int) -> Work:
    """Of a lattice, and of the update, whose terms all have corners."""
    corners = a["CORNERS"] if isinstance(a["CORNERS"], int) else sum(a["CORNERS"])
    read = a["count"] * corners
    return Work(plain=2 * read * a["WIDTH"], loaded=read * (8 + 4 * a["WIDTH"]))


def _place(a: Mapping[str, Any], programs: int) -> Work:
    corners = len(a["SCALES"]) + 1
    return Work(plain=6 * a["count"] * corners**2)


def _cut(a: Mapping[str, Any], programs: int) -> Work:
    """Each piece and each sum looks for its row by halves."""
    halves = math.log2(max(2, a["rows"]))
    return Work(loaded=8 * (a["pieces"] + a["sums"]) * halves, steps=halves)


def _search(a: Mapping[str, Any], programs: int) -> Work:
    """Two neighbours in each direction."""
    rows = len(a["keys_ptr"])
    halves = math.log2(max(2, rows))
    return Work(loaded=16 * rows * len(a["strides_ptr"]) * halves, steps=2 * halves)


def _pairs(a: Mapping[str, Any], share: float) -> tuple[float, int]:
    """Pairs of points in a share of all pairs of tiles, and what a distance and exp2 take."""
    return share * float(a["padded"]) ** 2, 3 * a["D"] + 2


def _exact(a: Mapping[str, Any], programs: int) -> Work:
    pairs, distance = _pairs(a, KEPT)
    steps = KEPT * a["padded"] / a["BLOCK_N"]
    line = 4 * a["D"] + a["values"].element_size() * a["BLOCK_C"]
    return Work(
        matrix=2 * pairs * a["channels"],
        plain=pairs * distance,
        loaded=programs * steps * a["BLOCK_N"] * line,
        steps=steps,
    )


def _mass(a: Mapping[str, Any], programs: int) -> Work:
    pairs, distance = _pairs(a, LIVE)
    return Work(
        plain=pairs * (distance + 1),
        loaded=pairs / a["TILE"] * 4 * a["D"],
        steps=LIVE * a["padded"] / a["BLOCK_N"],
    )


def _separable(a: Mapping[str, Any], programs: int) -> Work:
    """Splat and slice: every point against every landmark, at each corner of its cell."""
    points, columns = len(a["order"]), a["channels"] << a["S"]
    affinities = points * a["count_k"]
    if "partial" in a:  # a program goes through the points of a piece
        steps = math.ceil(points / len(a["pieces"]) / a["BLOCK_P"])
        loaded = programs * steps * a["BLOCK_P"] * 4 * (a["BLOCK_C"] + a["E"] + a["S"])
    else:  # through the landmarks
        steps = math.ceil(a["count_k"] / a["BLOCK_K"])
        blocks = points / a["BLOCK_P"]
        loaded = blocks * a["count_k"] * (columns * a["sums"].element_size() + 4 * a["E"])
    return Work(2 * affinities * columns, affinities * (3 * a["E"] + 2), loaded, steps)


def _convolve(a: Mapping[str, Any], programs: int) -> Work:
    """Each value, and its neighbours within reach on both sides."""
    read = a["values"].numel() * (2 * a["reach"] - 1)
    return Work(plain=2 * read, loaded=4 * read, steps=a["reach"] - 1)


def _composed(a: Mapping[str, Any], programs: int) -> Work:
    """Every term once, and of one the neighbours along y."""
    reach = 1 if a["taps"] is None else a["reach"]
    read = a["count"] * a["LABELS"] * (len(a["filtered"]) + 2 * reach - 2)
    return Work(plain=2 * read, loaded=4 * read, steps=reach)


def _product(a: Mapping[str, Any], programs: int) -> Work:
    """In float32: the tensor cores have no such products."""
    steps = math.ceil(a["inner"] / a["BLOCK_K"])
    tile = 4 * (a["BLOCK_M"] + a["BLOCK_N"]) * a["BLOCK_K"]
    plain = 2 * a["rows"] * a["inner"] * a["columns"]
    return Work(plain=plain, loaded=programs * steps * tile, steps=steps)


def _combine(a: Mapping[str, Any], programs: int) -> Work:
    return Work(plain=a["partial"].numel(), loaded=a["partial"].nbytes, steps=1 << a["S"])


def _stream(a: Mapping[str, Any], programs: int) -> Work:
    """Moves its tensors and does little else."""
    return Work()


FORMULAS: dict[tuple[str, str], Callable[[Mapping[str, Any], int], Work]] = {
    ("atrous", "conv_kernel"): _conv,
    ("atrous", "gather_kernel"): _gather,
    ("atrous", "weight_grad_kernel"): _weight_grad,
    ("atrous", "collect_kernel"): _stream,
    ("atrous", "pack_kernel"): _stream,
    ("permutohedral", "pack_kernel"): _stream,
    ("permutohedral", "place_kernel"): _place,
    ("permutohedral", "search_kernel"): _search,
    ("permutohedral", "count_kernel"): _stream,
    ("permutohedral", "begin_kernel"): _stream,
    ("permutohedral", "number_kernel"): _stream,
    ("permutohedral", "cut_kernel"): _cut,
    ("permutohedral", "fold_kernel"): _stream,
    ("permutohedral", "splat_kernel"): _splat,
    ("permutohedral", "sum_kernel"): lambda a, programs: Work(steps=0),  # most have no row to sum
    ("permutohedral", "blur_kernel"): _blur,
    ("permutohedral", "slice_kernel"): _slice,
    ("meanfield", "start_kernel"): _stream,
    ("meanfield", "update_kernel"): _slice,
    ("meanfield", "corners_kernel"): _stream,
    ("meanfield", "move_kernel"): _stream,
    ("meanfield", "neighbours_kernel"): _stream,
    ("exact", "filter_kernel"): _exact,
    ("exact", "mass_kernel"): _mass,
    ("separable", "splat_kernel"): _separable,
    ("separable", "combine_kernel"): _combine,
    ("separable", "slice_kernel"): _separable,
    ("separable", "convolve_kernel"): _convolve,
    ("meanfield", "composed_update_kernel"): _composed,
    ("product", "product_kernel"): _product,
}
