"""The dense CRF: a pydensecrf program by crf.pydensecrf and by pydensecrf2; DenseCRF's filters.

The pydensecrf program takes NumPy in and gives NumPy out, set-up (two lattices and their
normalisation) included; cases named "set-up" and "iterations" time the two parts alone. Spatial
kernel of weight 3 and sigma 3, bilateral of weight 4 with the sigmas that the case names. The gate
is the agreement that the drop-in promises; where pydensecrf2 is not installed, it is held against
the eager oracle.

crf_methods.py has the cases of crf.DenseCRF, whose filters differ in time and in error: small ones
on a CPU, and all those on a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import child
import crf_methods
import numpy as np
import numpy.typing as npt
import torch
from crf_methods import BILATERAL_WEIGHT, SPATIAL_SIGMA, SPATIAL_WEIGHT, Problem
from frame import Candidate, Case, Check, Comparison, Cost, Formula, Prepared, Probe, Settings
from photograph import photograph, unary_energies

import crf
import kernels

LIBRARIES = {
    "crf.pydensecrf.densecrf": "crf.pydensecrf.densecrf",
    "pydensecrf2": "pydensecrf.densecrf",
}
OURS, PEER = LIBRARIES
SPEED_BAR = 3.0
COMPILE_BAR_SECONDS = 20.0

# A mean field that never stores Q: the unary, each point's corners and weights (8 bytes a corner)
# and its two norms are read once an iteration; lattice values are written by the splat, read and
# written by the blur once a direction, and read by the slice.
BYTES = (
    "I * (4*N*C + 8*N*(3 + 6) + 8*N + 4*C*(V2*(2 + 2*3) + V5*(2 + 2*6)) + 8*(3*V2 + 6*V5)) + 4*N*C"
)
# Splat and slice: a multiply-add a corner. Blur: three operations a direction. Update: per label a
# scale and an add for each kernel, and four for the softmax.
OPERATIONS = "I * C * (4*N*(3 + 6) + 3*(3*V2 + 6*V5) + 8*N)"


@dataclass(frozen=True)
class Inputs:
    """A problem with its arrays: energies float32 `[labels, H * W]`, image uint8 `[H, W, 3]`."""

    problem: Problem
    energies: npt.NDArray[np.float32]
    image: npt.NDArray[np.uint8]
    source: str


Part = Callable[[Inputs, ModuleType], Candidate]


def cases(settings: Settings) -> list[Case]:
    """The sigmas that the papers' models use, at VOC size, whole and in parts; then memory."""
    if settings.device == "cuda":
        return crf_methods.gpu_cases(settings)
    methods = crf_methods.cpu_cases(settings)
    if settings.quick:
        return [_case("120x160 80/13", Problem(120, 160, 21, 80, 13, 5), whole), *methods]
    listed = []
    for sigma_xy, sigma_rgb in ((80, 13), (49, 5), (67, 3)):
        problem, sigmas = Problem(375, 500, 21, sigma_xy, sigma_rgb, 10), f"{sigma_xy}/{sigma_rgb}"
        listed += [
            _case(f"375x500 {sigmas}", problem, whole, bar=SPEED_BAR),
            _case(f"{sigmas} set-up", problem, set_up, memory=False),
            _case(f"{sigmas} iterations", problem, iterations, memory=False),
        ]
    large = Problem(1024, 2048, 19, 49, 5, 2)
    return [*listed, *methods, _case("1024x2048, 19 labels", large, whole, timed=False)]


def probes(settings: Settings) -> list[Probe]:
    """The first inference of a process, with nothing compiled yet and from the disk cache."""
    if settings.quick or settings.device == "cuda":
        return []
    measure = partial(_first_calls, settings.threads)
    return [Probe("first inference", "s", measure, {"nothing compiled yet": COMPILE_BAR_SECONDS})]


COMPARISON = Comparison(
    "crf",
    " ".join(__doc__.split("\n\n")[0].split()),
    ("cpu", "cuda"),
    cases,
    probes,
    most_seconds={"cuda": 420.0},
)


def built(inputs: Inputs, library: ModuleType) -> Any:
    """The CRF with everything set, as users of pydensecrf write it."""
    problem = inputs.problem
    dense = library.DenseCRF2D(problem.width, problem.height, problem.labels)
    dense.setUnaryEnergy(inputs.energies)
    dense.addPairwiseGaussian(sxy=SPATIAL_SIGMA, compat=SPATIAL_WEIGHT)
    dense.addPairwiseBilateral(
        sxy=problem.sigma_xy, srgb=problem.sigma_rgb, rgbim=inputs.image, compat=BILATERAL_WEIGHT
    )
    return dense


def whole(inputs: Inputs, library: ModuleType) -> Candidate:
    """From NumPy to marginals."""
    return lambda: np.asarray(built(inputs, library).inference(inputs.problem.iterations))


def set_up(inputs: Inputs, library: ModuleType) -> Candidate:
    """From NumPy to an object that is ready to iterate."""
    return lambda: built(inputs, library)


def iterations(inputs: Inputs, library: ModuleType) -> Candidate:
    """The inference alone, again and again on one object."""
    dense = built(inputs, library)
    return lambda: np.asarray(dense.inference(inputs.problem.iterations))


def prepare(problem: Problem, part: Part) -> Prepared:
    """Inputs, candidates and gate of one case."""
    inputs = _inputs(problem)
    found = {name: _library(module) for name, module in LIBRARIES.items()}
    libraries = {name: library for name, library in found.items() if library is not None}
    vertices = [kernels.build_lattice(f).num_vertices for f in _features(inputs)]
    return Prepared(
        candidates={name: part(inputs, library) for name, library in libraries.items()},
        gate=partial(_gate, inputs),
        cost=_cost(problem, *vertices) if part is whole else None,
        facts={**vars(problem), "photograph": inputs.source, "vertices": vertices},
        notes=[
            f"{name} is not installed: no peer is timed, and the eager oracle judges ours"
            for name in found.keys() - libraries.keys()
        ],
    )


def first_call(threads: int) -> float:
    """Seconds from importing crf to the marginals of a small image, 21 labels."""
    torch.set_num_threads(threads)
    inputs = _inputs(Problem(30, 40, 21, 49, 5, 2))
    start = time.perf_counter()
    whole(inputs, importlib.import_module("crf.pydensecrf.densecrf"))()
    return time.perf_counter() - start


def _first_calls(threads: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as cache:
        first, second = (
            child.call("compare_crf:first_call", {"threads": threads}, {"NUMBA_CACHE_DIR": cache})
            for _ in range(2)
        )
    return {"nothing compiled yet": first, "from the disk cache": second}


def _case(
    name: str,
    problem: Problem,
    part: Part,
    timed: bool = True,
    memory: bool = True,
    bar: float | None = None,
) -> Case:
    return Case(name, partial(prepare, problem, part), timed=timed, memory=memory, bar=bar)


def _inputs(problem: Problem) -> Inputs:
    image, source = photograph(problem.height, problem.width)
    energies = unary_energies(problem.labels, problem.height, problem.width)
    return Inputs(problem, energies, image, source)


def _library(module: str) -> ModuleType | None:
    """The library, None where it is not installed."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return None
    return importlib.import_module(module)


def _gate(inputs: Inputs, outputs: Mapping[str, Any]) -> list[Check]:
    """The drop-in's promise: 99.9% of marginals within 2e-3 and 99.9% of labels equal."""
    ours = _marginals(outputs[OURS])
    if PEER in outputs:
        theirs = _marginals(outputs[PEER])
    else:
        done = isinstance(outputs[OURS], np.ndarray)
        theirs = _oracle(inputs, inputs.problem.iterations if done else 1)
    strays = float(np.mean(np.abs(ours - theirs) > 2e-3))
    others = float(np.mean(ours.argmax(axis=0) != theirs.argmax(axis=0)))
    return [
        Check("share of marginals further than 2e-3 apart", strays, 1e-3),
        Check("share of pixels with another label", others, 1e-3),
    ]


def _marginals(output: Any) -> npt.NDArray[np.float32]:
    """What a candidate gave, as marginals; an object that was only set up iterates once."""
    return output if isinstance(output, np.ndarray) else np.asarray(output.inference(1))


def _oracle(inputs: Inputs, iterations: int) -> npt.NDArray[np.float32]:
    """The same mean field in plain PyTorch. Potts(w) is pydensecrf's reward of w for agreement."""
    terms = []
    weights = (SPATIAL_WEIGHT, BILATERAL_WEIGHT)
    for features, weight in zip(_features(inputs), weights, strict=True):
        lattice = kernels.build_lattice(features, impl="reference")
        ones = torch.ones(lattice.num_points, 1)
        scale = kernels.apply_lattice(lattice, ones, impl="reference")[:, 0].add(1e-20).rsqrt()
        penalty = torch.full((inputs.problem.labels,), -float(weight))
        terms.append(kernels.Term(lattice, penalty, before=scale, after=scale))
    unary = torch.from_numpy(inputs.energies).T
    marginals: npt.NDArray[np.float32] = kernels.mean_field(
        unary, terms, iterations, impl="reference"
    ).T.numpy()
    return marginals


def _features(inputs: Inputs) -> list[torch.Tensor]:
    """The spatial and the bilateral features, `[N, 2]` and `[N, 5]`."""
    problem = inputs.problem
    images = torch.from_numpy(inputs.image).permute(2, 0, 1)[None].float()
    terms = (
        crf.Gaussian(SPATIAL_WEIGHT, SPATIAL_SIGMA),
        crf.Bilateral(BILATERAL_WEIGHT, problem.sigma_xy, problem.sigma_rgb),
    )
    return [term.features(images)[0] for term in terms]


def _cost(problem: Problem, spatial_vertices: int, bilateral_vertices: int) -> Cost:
    sizes = {
        "N": problem.height * problem.width,
        "C": problem.labels,
        "I": problem.iterations,
        "V2": spatial_vertices,
        "V5": bilateral_vertices,
    }
    return Cost(bytes=Formula(BYTES, sizes), operations=Formula(OPERATIONS, sizes))
