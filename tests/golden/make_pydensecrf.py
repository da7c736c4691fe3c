"""Record what pydensecrf 2 computes, so that the drop-in is held to it where it is not installed.

    python tests/golden/make_pydensecrf.py [FOLDER WITH im1.png, anno1.png, im3.png, anno3.png]

needs `pip install .[reference]` (pydensecrf2 1.1, a C++ compiler) and writes, beside this file,
one `pydensecrf_NAME.npz` a case. A case is replayed call by call:

    calls           JSON: [[class, positional arguments], [method, keyword arguments], ...]; an
                    argument "@name" is the array `name` of the file
    start           Q of startInference
    marginals       inference(10)
    kl              klDivergence after 0, 1, ... 5 steps

With the folder of pydensecrf's example photographs it also writes `pydensecrf_examples.npz`: the
label maps `im1`, `im3` that its `examples/inference.py` ends in (the photographs stay outside).
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydensecrf.densecrf as dcrf
from PIL import Image
from pydensecrf.utils import create_pairwise_bilateral, create_pairwise_gaussian, unary_from_labels

HERE = Path(__file__).parent
Calls = list[tuple[str, Any]]
Arrays = dict[str, np.ndarray[Any, Any]]


def main() -> None:
    for seed, case in enumerate(CASES):
        name = case.__name__
        calls, arrays = case(np.random.default_rng(seed))
        record = {**arrays, "calls": np.array(json.dumps(calls)), **run(calls, arrays)}
        np.savez_compressed(HERE / f"pydensecrf_{name}.npz", **record)
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
        maps = {f"im{i}": example_labels(folder, i) for i in (1, 3)}
        np.savez_compressed(HERE / "pydensecrf_examples.npz", **maps)


def run(calls: Calls, arrays: Arrays) -> Arrays:
    """Replay the calls against pydensecrf and record its results."""
    (kind, size), *steps = calls
    crf = getattr(dcrf, kind)(*size)
    for method, arguments in steps:
        resolved = {
            key: arrays[value[1:]] if isinstance(value, str) else value
            for key, value in arguments.items()
        }
        getattr(crf, method)(**resolved)
    marginals, (q, tmp1, tmp2) = np.array(crf.inference(10)), crf.startInference()
    start, kl = np.array(q), [crf.klDivergence(q)]
    for _ in range(5):
        crf.stepInference(q, tmp1, tmp2)
        kl.append(crf.klDivergence(q))
    return {"start": start, "marginals": marginals, "kl": np.array(kl)}


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray[Any, Any]:
    """Blocks of colour with noise, uint8."""
    blocks = rng.integers(20, 236, (-(-height // 5), -(-width // 5), 3))
    image = np.kron(blocks, np.ones((5, 5, 1)))[:height, :width]
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


def energies(rng: np.random.Generator, labels: int, points: int) -> np.ndarray[Any, Any]:
    return rng.gamma(2.0, 1.0, (labels, points)).astype(np.float32)


def image_case(
    rng: np.random.Generator,
    width: int,
    height: int,
    labels: int,
    gaussian: dict[str, Any],
    bilateral: dict[str, Any],
    **arrays: np.ndarray[Any, Any],
) -> tuple[Calls, Arrays]:
    arrays["u"] = energies(rng, labels, width * height)
    arrays["image"] = picture(rng, height, width)
    calls: Calls = [
        ("DenseCRF2D", (width, height, labels)),
        ("setUnaryEnergy", {"u": "@u"}),
        ("addPairwiseGaussian", gaussian),
        ("addPairwiseBilateral", {"rgbim": "@image", **bilateral}),
    ]
    return calls, arrays


def potts(rng: np.random.Generator) -> tuple[Calls, Arrays]:
    smooth, alike = {"sxy": 3, "compat": 3}, {"sxy": 60, "srgb": 10, "compat": 5}
    return image_case(rng, 23, 17, 5, smooth, alike)


def anisotropic(rng: np.random.Generator) -> tuple[Calls, Arrays]:
    smooth = {"sxy": [1, 4], "compat": 3, "normalization": 2}
    alike = {"sxy": [10, 40], "srgb": [5, 10, 20], "compat": 7, "normalization": 1}
    return image_case(rng, 11, 13, 21, smooth, alike)


def diagonal(rng: np.random.Generator) -> tuple[Calls, Arrays]:
    smooth = {"sxy": 2, "compat": "@v", "normalization": 2}
    alike = {"sxy": 20, "srgb": 13, "compat": "@v", "normalization": 3}
    v = -rng.uniform(0, 6, 7).astype(np.float32)
    return image_case(rng, 1, 38, 7, smooth, alike, v=v)


def matrix(rng: np.random.Generator) -> tuple[Calls, Arrays]:
    smooth = {"sxy": 3, "compat": "@m", "kernel": 2}
    alike = {"sxy": 30, "srgb": 8, "compat": "@m", "normalization": 1, "kernel": 0}
    m = (rng.normal(0, 1, (4, 4)) - 3 * np.eye(4)).astype(np.float32)  # not symmetric
    return image_case(rng, 41, 1, 4, smooth, alike, m=m)


def unnormalised(rng: np.random.Generator) -> tuple[Calls, Arrays]:
    smooth = {"sxy": 2, "compat": 0.05, "normalization": 0}
    alike = {"sxy": 10, "srgb": 20, "compat": 0.03, "normalization": 0}
    return image_case(rng, 13, 14, 3, smooth, alike)


def scattered_points(rng: np.random.Generator) -> tuple[Calls, Arrays]:
    """Sparse points about the origin, 1 in the last block of 4: its filling shows."""
    arrays = {"u": energies(rng, 5, 57), "f": rng.normal(0, 2, (3, 57)).astype(np.float32)}
    return [
        ("DenseCRF", (57, 5)),
        ("setUnaryEnergy", {"u": "@u"}),
        ("addPairwiseEnergy", {"features": "@f", "compat": 4}),
    ], arrays


def logistic(rng: np.random.Generator) -> tuple[Calls, Arrays]:
    arrays = {
        "weights": rng.normal(0, 1, (3, 24)).astype(np.float32),
        "inputs": rng.normal(0, 1, (24, 24)).astype(np.float32),
        "f": rng.normal(0, 1, (2, 24)).astype(np.float32),
    }
    return [
        ("DenseCRF", (24, 3)),
        ("setUnaryEnergy", {"u": "@weights", "f": "@inputs"}),
        ("addPairwiseEnergy", {"features": "@f", "compat": 2}),
    ], arrays


def without_unary(rng: np.random.Generator) -> tuple[Calls, Arrays]:
    arrays = {
        "f": rng.normal(0, 2, (2, 30)).astype(np.float32),
        "m": rng.normal(0, 2, (4, 4)).astype(np.float32),
    }
    return [
        ("DenseCRF", (30, 4)),
        ("addPairwiseEnergy", {"features": "@f", "compat": "@m"}),
    ], arrays


CASES: tuple[Callable[[np.random.Generator], tuple[Calls, Arrays]], ...] = (
    potts,
    anisotropic,
    diagonal,
    matrix,
    unnormalised,
    scattered_points,
    logistic,
    without_unary,
)


def example_labels(folder: Path, number: int) -> np.ndarray[Any, Any]:
    """The steps of pydensecrf's example: scribbles, two generic terms, five iterations."""
    image = np.array(Image.open(folder / f"im{number}.png"))
    scribbles = np.array(Image.open(folder / f"anno{number}.png").convert("RGB")).astype(np.uint32)
    colours = scribbles @ np.array([1, 1 << 8, 1 << 16], np.uint32)
    values, labels = np.unique(colours, return_inverse=True)
    unsure = 0 in values
    n_labels = len(values) - int(unsure)
    height, width = image.shape[:2]
    crf = dcrf.DenseCRF(width * height, n_labels)
    crf.setUnaryEnergy(unary_from_labels(labels, n_labels, 0.7, zero_unsure=unsure))
    crf.addPairwiseEnergy(create_pairwise_gaussian((3, 3), (height, width)), compat=3)
    bilateral = create_pairwise_bilateral((80, 80), (13, 13, 13), image, chdim=2)
    crf.addPairwiseEnergy(bilateral, compat=10)
    return np.argmax(crf.inference(5), axis=0).reshape(height, width).astype(np.uint8)


if __name__ == "__main__":
    main()
