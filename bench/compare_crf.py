"""The dense CRF: a pydensecrf program by crf.pydensecrf and by pydensecrf2; DenseCRF's filters.

The pydensecrf program takes NumPy in and gives NumPy out, set-up (two lattices and their
normalisation) included; cases named "set-up" and "iterations" time the two parts alone. "One core"
is one thread of each side by the processor's clock; "all cores" lets ours use the threads of the
run, by the run's clock, while pydensecrf2 only ever uses one. Spatial
kernel of weight 3 and sigma 3, bilateral of weight 4 with the sigmas that the case names. The gate
is the agreement that the drop-in promises; where pydensecrf2 is not installed, it is held against
mean field in plain PyTorch.

crf_methods.py has the cases of crf.DenseCRF, whose filters differ in time and in error: small ones
on a CPU, and all those on a GPU.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import crf_methods
import numpy as np
import numpy.typing as npt
import torch
from crf_problem import (
    BILATERAL_WEIGHT,
    PEER,
    PEER_MODULE,
    SIGMAS,
    SPATIAL_SIGMA,
    SPATIAL_WEIGHT,
    CRFProblem,
    dense_crf_2d,
    installed,
    photograph,
    unary_energies,
)
from frame import Candidate, Case, Check, Comparison, Cost, Prepared, Settings
from torch import Tensor

import crf
import kernels

OURS = "crf.pydensecrf.densecrf"
LIBRARIES = {OURS: OURS, PEER: PEER_MODULE}
BARS = {2: 2.3, 4: 2.6, 21: 3.2}  # by labels: how many times as fast, a core for a core
BARS_OF_SEVERAL = {21: 4.5}  # on two threads or more

Program = Callable[[], Any]  # makes a DenseCRF2D with everything set
Part = Callable[[Program, int], Candidate]  # of a program and a number of iterations
Array = npt.NDArray[np.float32]


def cases(settings: Settings) -> list[Case]:
    """The sigmas that the papers' models use, at VOC size, a core for a core and on all cores; the
    parts of the one with most labels; then the methods, and memory.
    """
    if settings.device == "cuda":
        return crf_methods.gpu_cases(settings)
    height, width, updates = (120, 160, 5) if settings.quick else (375, 500, 10)
    listed: list[Case] = []
    for xy, rgb in SIGMAS[:1] if settings.quick else SIGMAS:
        for labels in BARS:
            problem = CRFProblem(height, width, labels, xy, rgb, updates)
            listed += _whole_cases(problem, settings)
        parts = {} if settings.quick else {"set-up": set_up, "iterations": iterations}
        for name, part in parts.items():
            of_part = partial(prepare, problem, part)
            listed.append(one_core(f"{xy}/{rgb} {name}", of_part, memory=False))
    listed += crf_methods.cpu_cases(settings)
    if not settings.quick:
        large = partial(prepare, CRFProblem(1024, 2048, 19, 49, 5, 2), whole)
        listed.append(Case("1024x2048, 19 labels", large, timed=False))
    return listed


def _whole_cases(problem: CRFProblem, settings: Settings) -> list[Case]:
    """One problem a core for a core and, where there are several, on all cores."""
    labels = problem.labels
    size, sigmas = f"{problem.height}x{problem.width}", f"{problem.sigma_xy}/{problem.sigma_rgb}"
    name, of_problem = f"{size} {sigmas}, {labels} labels", partial(prepare, problem, whole)
    alone, together = ({}, {}) if settings.quick else (BARS, BARS_OF_SEVERAL)
    listed = [one_core(name, of_problem, bar=alone.get(labels))]
    if settings.threads > 1:
        bar = together.get(labels)
        listed.append(Case(f"{name}, all cores", of_problem, memory=False, bar=bar))
    return listed


def one_core(name: str, prepared: Callable[[], Prepared], **options: Any) -> Case:
    """In processor seconds, which other programs change least."""
    return Case(f"{name}, one core", prepared, threads=1, clock="cpu", **options)


COMPARISON = Comparison(
    "crf",
    " ".join(__doc__.split("\n\n")[0].split()),
    ("cpu", "cuda"),
    cases,
    most_seconds={"cuda": 420.0},
)


def prepare(problem: CRFProblem, part: Part) -> Prepared:
    """Inputs, candidates and gate of one case."""
    image, source = photograph(problem.height, problem.width)
    energies = unary_energies(problem.labels, problem.height, problem.width)
    features = _features(problem, image)
    vertices = [kernels.build_lattice(each).num_vertices for each in features]
    candidates, notes = {}, []
    for name, module in LIBRARIES.items():
        library = installed(module)
        if library is None:
            notes.append(f"{name} is not installed: mean field in PyTorch judges ours")
        else:
            program = partial(dense_crf_2d, library, problem, energies, image)
            candidates[name] = part(program, problem.iterations)
    return Prepared(
        candidates=candidates,
        gate=partial(_gate, partial(mean_field, energies, features), problem.iterations),
        cost=cost(problem, *vertices) if part is whole else None,
        facts={**asdict(problem), "photograph": source, "vertices": vertices},
        notes=notes,
    )


def whole(program: Program, iterations: int) -> Candidate:
    """From NumPy to marginals."""
    return lambda: np.asarray(program().inference(iterations))


def set_up(program: Program, iterations: int) -> Candidate:
    """From NumPy to an object that is ready to iterate."""
    return program


def iterations(program: Program, iterations: int) -> Candidate:
    """The inference alone, again and again on one object."""
    dense = program()
    return lambda: np.asarray(dense.inference(iterations))


def cost(problem: CRFProblem, spatial_vertices: int, bilateral_vertices: int) -> Cost:
    """The least work of a mean field that never stores Q.

    Bytes of an iteration: the unary, each point's corners and weights (8 bytes a corner) and its
    two norms are read once; lattice values are written by the splat, read and written by the blur
    once a direction, and read by the slice; neighbours are read once.

    Operations of an iteration: splat and slice, a multiply-add a corner; the blur, three a
    direction; the update, for each label a scale and an add for each kernel, and four for the
    softmax.
    """
    n, labels = problem.height * problem.width, problem.labels
    v2, v5 = spatial_vertices, bilateral_vertices
    read = 4 * n * labels + 8 * n * (3 + 6) + 8 * n
    lattices = 4 * labels * (v2 * (2 + 2 * 3) + v5 * (2 + 2 * 6)) + 8 * (3 * v2 + 6 * v5)
    blur = 3 * (3 * v2 + 6 * v5)
    return Cost(
        bytes=problem.iterations * (read + lattices) + 4 * n * labels,
        operations=problem.iterations * labels * (4 * n * (3 + 6) + blur + 8 * n),
        sizes={"points": n, "labels": labels, "iterations": problem.iterations, "V2": v2, "V5": v5},
    )


def _gate(
    truth: Callable[[int], Array], iterations: int, outputs: Mapping[str, Any]
) -> list[Check]:
    """The drop-in's promise: 99.9% of marginals within 2e-3 and 99.9% of labels equal.

    An object that was only set up iterates once. Without the peer, `truth` of so many iterations
    stands in for it.
    """
    done = isinstance(outputs[OURS], np.ndarray)
    found = {
        name: each if done else np.asarray(each.inference(1)) for name, each in outputs.items()
    }
    theirs = found[PEER] if PEER in found else truth(iterations if done else 1)
    strays = float(np.mean(np.abs(found[OURS] - theirs) > 2e-3))
    others = float(np.mean(found[OURS].argmax(axis=0) != theirs.argmax(axis=0)))
    return [
        Check("share of marginals further than 2e-3 apart", strays, 1e-3),
        Check("share of pixels with another label", others, 1e-3),
    ]


def mean_field(energies: Array, features: Sequence[Tensor], iterations: int) -> Array:
    """The marginals `[labels, H * W]` in plain PyTorch: Q <- softmax(-U + sum_k w_k n_k F_k n_k Q),
    where F_k is a lattice filter by its reference and n_k = 1 / sqrt(F_k 1)."""
    unary = torch.from_numpy(energies).T.contiguous()
    filters = []
    for points, weight in zip(features, (SPATIAL_WEIGHT, BILATERAL_WEIGHT), strict=True):
        lattice = kernels.build_lattice(points, impl="reference")
        apply = partial(kernels.apply_lattice, lattice, impl="reference")
        filters.append((weight, apply(torch.ones(len(unary), 1)).add(1e-20).rsqrt(), apply))
    marginals = (-unary).softmax(1)
    for _ in range(iterations):
        messages = sum(weight * norm * apply(norm * marginals) for weight, norm, apply in filters)
        marginals = (messages - unary).softmax(1)
    found: Array = marginals.T.numpy()
    return found


def _features(problem: CRFProblem, image: npt.NDArray[np.uint8]) -> list[Tensor]:
    """The spatial and the bilateral features, `[N, 2]` and `[N, 5]`."""
    shape, pixels = image.shape[:2], torch.from_numpy(image).permute(2, 0, 1)[None].float()
    bilateral = crf.grid_features(shape, problem.sigma_xy, pixels, problem.sigma_rgb)
    return [crf.grid_features(shape, SPATIAL_SIGMA)[0], bilateral[0]]
