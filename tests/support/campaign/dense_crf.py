"""`crf.DenseCRF`, and `crf.pydensecrf.densecrf` as pydensecrf's users call it, with any arguments.

Oracles: marginals are finite, sum to 1 and have the shape of the logits; labels in another order
give the same in that order; the drop-in and the layer agree on the same problem. Everything else is
a ValueError or TypeError.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

import crf
import crf.pydensecrf.densecrf as dcrf
import crf.pydensecrf.utils
from campaign.case import Call, Case, require
from campaign.damage import seeds
from campaign.filters import DTYPES
from campaign.runner import Family

SIDE = st.integers(1, 14)
WEIGHT = st.one_of(st.floats(0, 20), st.integers(0, 9))
SIGMA = st.floats(0.5, 80)
ODD = st.sampled_from((0, -1, -0.5, math.nan, math.inf, None, "3", [3.0], 2**70, 1e-30, 1e38, True))


def logits_of(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32))


def images_of(batch: int, height: int, width: int, seed: int) -> torch.Tensor:
    shape = batch, 3, height, width
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def sums_to_one(shape: Any, marginals: Any) -> None:
    require(tuple(marginals.shape) == tuple(shape), f"shape {tuple(marginals.shape)}")
    require(bool(marginals.isfinite().all()), "not finite")
    require(float(marginals.min()) >= 0, f"below 0: {float(marginals.min())}")
    worst = float((marginals.sum(1) - 1).abs().max())
    require(worst < 1e-4, f"sums differ from 1 by {worst}")


@st.composite
def layer(draw: Any) -> Case:
    """Right arguments; labels in another order give the same in that order."""
    batch, classes = draw(st.integers(1, 2)), draw(st.integers(1, 6))
    height, width, seed = draw(SIDE), draw(SIDE), draw(seeds())
    method = draw(st.sampled_from(("permutohedral", "permutohedral", "exact", "auto")))
    normalization = draw(st.sampled_from(("symmetric", "before", "after", "none")))
    terms = {
        "gaussian": draw(st.one_of(st.none(), st.builds(crf.Gaussian, WEIGHT, SIGMA))),
        "bilateral": draw(st.one_of(st.none(), st.builds(crf.Bilateral, WEIGHT, SIGMA, SIGMA))),
    }
    made = {"iterations": draw(st.integers(0, 4)), "method": method, "normalization": normalization}
    logits = logits_of((batch, classes, height, width), seed)
    images = images_of(batch, height, width, seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(classes))

    def call() -> torch.Tensor:
        layer = crf.DenseCRF(classes, **terms, **made)
        with torch.no_grad():
            found = layer(logits, images)
            turned = layer(logits[:, order], images)
        difference = float((turned - found[:, order]).abs().max())
        # "none" multiplies small differences by the mass of a filter, thousands for a large image
        same = normalization == "none" or difference < 2e-3
        require(same, f"labels in another order: {difference}")
        return found

    said = f"DenseCRF({classes}, {terms}, {made}) of {batch} x {height} x {width}"
    return Call(said, call, "result", partial(sums_to_one, logits.shape))


@st.composite
def odd_layer(draw: Any) -> Case:
    """One argument of the layer, or of its terms, that may be none."""
    name, value = draw(st.sampled_from(LAYER_ARGUMENTS)), draw(ODD)
    logits, images = logits_of((1, 3, 5, 6), 0), images_of(1, 5, 6, 0)

    def call() -> torch.Tensor:
        term, _, inner = name.partition(".")
        arguments: dict[str, Any] = {"num_classes": 3, "iterations": 1}
        if inner and term == "gaussian":
            arguments[term] = crf.Gaussian(**({"weight": 3.0, "sigma_xy": 3.0} | {inner: value}))
        elif inner:
            usual = {"weight": 3.0, "sigma_xy": 3.0, "sigma_rgb": 9.0}
            arguments[term] = crf.Bilateral(**(usual | {inner: value}))
        else:
            arguments[name] = value
        if arguments["iterations"] == 2**70:  # nobody waits for these
            arguments["iterations"] = -(2**20)
        return crf.DenseCRF(**arguments)(logits, images)

    names = [name.split(".")[-1]]
    return Call(
        f"DenseCRF with {name} = {value!r}", call, None, partial(sums_to_one, logits.shape), names
    )


LAYER_ARGUMENTS = (
    *("num_classes", "iterations", "method", "normalization", "compatibility", "eps", "tolerance"),
    *("precision", "gaussian", "bilateral", "pairwise", "gaussian.weight", "gaussian.sigma_xy"),
    *("bilateral.weight", "bilateral.sigma_xy", "bilateral.sigma_rgb"),
)


@st.composite
def odd_tensors(draw: Any) -> Case:
    """Logits and images of any shape, type and value."""
    shape = tuple(draw(st.lists(st.sampled_from((0, 1, 3, 4, 6)), min_size=2, max_size=5)))
    dtype = draw(st.sampled_from(DTYPES))
    any_shape = st.tuples(*[st.sampled_from((0, 1, 3, 4, 6))] * 4)
    pictures = draw(st.just((1, 3, 4, 6)) | any_shape)
    levels = draw(st.sampled_from((torch.uint8, torch.float32, torch.int64, torch.float16)))
    poison = draw(st.sampled_from((None, None, math.nan, math.inf, -math.inf, 1e30, -1.0, 300.0)))
    given = draw(st.sampled_from(("both", "no images", "a list", "an array")))
    logits, images = torch.zeros(shape, dtype=dtype), torch.full(pictures, 9, dtype=levels)
    if poison is not None and images.numel() and levels.is_floating_point:
        images.flatten()[0] = poison
    if poison is not None and logits.numel() and dtype.is_floating_point:
        logits.flatten()[-1] = poison

    def call() -> torch.Tensor:
        model = crf.DenseCRF(3, iterations=1)
        if given == "no images":
            return model(logits)
        if given == "a list":
            return torch.stack(model(list(logits), list(images)))
        if given == "an array":
            return model(logits.float().numpy(), images)
        return model(logits, images)

    fits = len(shape) == 4 and shape[1] == 3 and pictures == (shape[0], 3, *shape[2:])
    empty = given == "a list" and shape and shape[0] == 0
    said = f"logits {dtype} {list(shape)}, images {levels} {list(pictures)}, {poison}, {given}"
    return Call(said, call, None if fits or empty else "refused", partial(sums_to_one, shape))


@st.composite
def drop_in(draw: Any) -> Case:
    """As in pydensecrf's example; the layer with the same terms agrees."""
    height, width, labels = draw(SIDE), draw(SIDE), draw(st.integers(1, 5))
    seed, steps = draw(seeds()), draw(st.integers(0, 4))
    sxy, srgb, compat = draw(SIGMA), draw(SIGMA), draw(st.floats(0, 10))
    image = images_of(1, height, width, seed)[0].permute(1, 2, 0).contiguous().numpy()
    logits = logits_of((1, labels, height, width), seed)

    def call() -> torch.Tensor:
        model = dcrf.DenseCRF2D(width, height, labels)
        model.setUnaryEnergy(-logits[0].log_softmax(0).reshape(labels, -1).numpy())
        model.addPairwiseGaussian(sxy=3, compat=2)
        model.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=image, compat=compat)
        found = torch.from_numpy(np.array(model.inference(steps))).reshape(1, labels, height, width)
        terms = {"gaussian": crf.Gaussian(2, 3), "bilateral": crf.Bilateral(compat, sxy, srgb)}
        layer = crf.DenseCRF(labels, **terms, iterations=steps)
        theirs = layer(logits, torch.from_numpy(image).permute(2, 0, 1)[None])
        worst = float((theirs - found).abs().max())
        require(worst < 2e-3, f"drop-in and layer differ by {worst}")
        return found

    numbers = f"{labels} labels, {steps} steps, {sxy:g} {srgb:g} {compat:g}"
    said = f"drop-in {width} x {height}, {numbers}"
    return Call(said, call, "result", partial(sums_to_one, logits.shape))


ARRAYS: dict[str, Callable[[], Any]] = {
    "a list": lambda: [[1.0, 2.0]] * 3,
    "None": lambda: None,
    "another shape": lambda: np.zeros((3, 7), np.float32),
    "one axis": lambda: np.zeros(3, np.float32),
    "nothing": lambda: np.zeros((3, 0), np.float32),
    "float64": lambda: np.zeros((3, 20)),
    "integers": lambda: np.zeros((3, 20), np.int64),
    "complex": lambda: np.zeros((3, 20), np.complex64),
    "texts": lambda: np.full((3, 20), "x"),
    "objects": lambda: np.full((3, 20), None, object),
    "NaN": lambda: np.full((3, 20), np.nan, np.float32),
    "-inf": lambda: np.full((3, 20), -np.inf, np.float32),
    "all impossible": lambda: np.full((3, 20), np.inf, np.float32),
    "large": lambda: np.full((3, 20), 3e38, np.float32),
    "not contiguous": lambda: np.zeros((20, 3), np.float32).T,
    "read-only": lambda: np.broadcast_to(np.float32(0), (3, 20)),
    "a tensor": lambda: torch.zeros(3, 20),
    "a matrix": lambda: np.eye(3, dtype=np.float32),
    "a vector": lambda: -np.ones(3, np.float32),
    "a number": lambda: 3,
    "a negative number": lambda: -3.5,
    "an infinite number": lambda: float("inf"),
    "an image": lambda: np.zeros((4, 5, 3), np.uint8),
    "a floating image": lambda: np.zeros((4, 5, 3), np.float32),
    "an image that is turned": lambda: np.zeros((5, 4, 3), np.uint8),
    "an image of four channels": lambda: np.zeros((4, 5, 4), np.uint8),
}


@st.composite
def odd_drop_in(draw: Any) -> Case:
    """One argument of a call of pydensecrf's interface that may be none."""
    zeros, image = np.zeros((3, 20), np.float32), np.zeros((4, 5, 3), np.uint8)
    usual: dict[str, Any] = {
        **{"u": zeros, "f": None, "compat": 3, "features": zeros[:2], "rgbim": image, "sxy": 3},
        **{"kernel": dcrf.DIAG_KERNEL, "normalization": dcrf.NORMALIZE_SYMMETRIC},
        **{"niter": 1, "Q": None, "w": 5, "nlabels": 3},
    }
    name = draw(st.sampled_from(sorted(usual)))
    what = draw(st.sampled_from(sorted(ARRAYS)))
    value = ARRAYS[what]() if draw(st.booleans()) else draw(ODD)
    if name in ("niter", "w", "nlabels") and isinstance(value, int | float) and value > 1000:
        value = -value

    def call() -> torch.Tensor:
        given = usual | {name: value}
        model = dcrf.DenseCRF2D(given["w"], 4, given["nlabels"])
        model.setUnaryEnergy(given["u"], given["f"])
        compat, how = given["compat"], (given["kernel"], given["normalization"])
        model.addPairwiseEnergy(given["features"], compat, *how)
        model.addPairwiseGaussian(given["sxy"], compat)
        model.addPairwiseBilateral(3, 9, given["rgbim"], compat)
        found = model.inference(given["niter"])
        if name == "Q":
            model.stepInference(value)
            model.klDivergence(value)
        return torch.from_numpy(np.array(found)).reshape(1, 3, 4, 5)

    # `f` joins u in a product, and unary energies are what both give
    names = [name, "unary"] if name in ("u", "f", "w", "nlabels") else [name]
    names += ["features", "sigma", "pairwise energy"] if name in ("sxy", "features") else []
    said = f"drop-in with {name} = {what} or {value!r:.60}"
    return Call(said, call, None, partial(sums_to_one, (1, 3, 4, 5)), names)


@st.composite
def utilities(draw: Any) -> Case:
    """`crf.pydensecrf.utils` with probabilities and labels of any kind."""
    what = draw(st.sampled_from(sorted(ARRAYS)))
    value = ARRAYS[what]()
    which = draw(st.sampled_from(("softmax", "labels")))
    clip, count = draw(ODD), draw(st.sampled_from((3, 1, 0, -1, 2.5, "3", None)))

    def call() -> Any:
        if which == "softmax":
            return crf.pydensecrf.utils.unary_from_softmax(value, clip=clip)
        return crf.pydensecrf.utils.unary_from_labels(value, count, 0.7)

    def check(found: Any) -> None:
        require(isinstance(found, np.ndarray), f"{type(found)}")

    return Call(f"unary_from_{which} of {what}, {clip!r}, {count!r}", call, check=check)


def cases(_shared: Path) -> st.SearchStrategy[Case]:
    layers, drop_ins = [layer(), odd_layer(), odd_tensors()], [drop_in(), odd_drop_in()]
    return st.one_of(*layers, *drop_ins, odd_drop_in(), utilities())


FAMILY = Family("crf", "the CRF layer and the drop-in", lambda _shared: None, cases)
