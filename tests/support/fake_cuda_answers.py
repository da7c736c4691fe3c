"""What host code reads from the fake GPU: as a picture of VOC's size would have it.

By the qualified name of the function that reads. A function that is renamed or reads something new
wants a line here.
"""

from fake_cuda import Answers
from torch import Tensor

VERTICES = {2: 24_500, 5: 224_000, 20: 1_500_000}  # of a lattice, by the number of dimensions
LANDMARKS = 112
PIECES = 300  # of points in one cell
SIGMAS = 6.0  # that positions and colours range over


def _lattices(reports: Tensor) -> list[list[float]]:
    """Of each term the last row, the sum of magnitudes, and the extents; of positions first."""
    terms, width = reports.shape
    dims = [2] * (terms - 1) + [{4: 2, 8: 5, 22: 20}[width]]
    return [[VERTICES[d] - 1, 10.0 * d, *[60.0] * (width - 2)] for d in dims]


def _crf(flags: Tensor) -> list[float]:
    """Whether logits (and images) are finite, then the extremes of images that are not uint8."""
    return [1.0] * len(flags) if len(flags) < 4 else [1.0] * (len(flags) - 2) + [0.0, 255.0]


def _grid_and_ranges(numbers: Tensor) -> list[float]:
    """How many weights of rows and of columns count, then the extremes of each image's features."""
    images = (len(numbers) - 2) // 10
    return [18.0, 18.0] + ([0.0] * 5 + [SIGMAS] * 5) * images


ANSWERS: Answers = {
    "kernels.permutohedral.triton.building.build_all": _lattices,
    "kernels.permutohedral.triton.building._finished": lambda row: VERTICES[20] - 1,
    "kernels.meanfield.build._known": _grid_and_ranges,
    "kernels.permutohedral.triton.building._levels": lambda values: 100_000,
    "kernels.separable.factors.build": lambda r: [[0.0] * r.shape[1], [SIGMAS] * r.shape[1]],
    "kernels.separable.factors._pieces": lambda last: PIECES,
    "kernels.separable.landmarks._means_of_cells": lambda below: LANDMARKS - 1,
    "kernels.separable.landmarks.choose": lambda gains: [0.95 / len(gains)] * len(gains),
    "kernels.meanfield.api._check_values": lambda flags: [True] * len(flags),
    "crf.checks._check_values": _crf,
}
