"""The three filters of crf.DenseCRF beside pydensecrf2: time against error.

The error is that of the marginals against mean field over all pairs in full ("exact", float32,
nothing left out) on the same device: mean |dQ|, and the share of pixels with the same label. On a
GPU the inputs are there already, and one call is everything from images and logits to marginals;
pydensecrf2 goes from NumPy to NumPy. The gate is the distance from exact mean field that a method
may have; the lattice's own is that of pydensecrf2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from frame import Candidate, Case, Check, Prepared, Quality, Settings
from photograph import photograph, unary_energies
from torch import Tensor

import crf
import kernels
from crf import inference, terms
from crf.layer import FEW_LANDMARKS, Method

PEER = "pydensecrf2"
EXACT = "exact in full"
SIGMAS = ((80, 13), (49, 5), (67, 3))
SPATIAL_SIGMA, SPATIAL_WEIGHT, BILATERAL_WEIGHT = 3, 3, 4

# On a GPU: precision and what may be left out of a sum, for labels equal in 99.9% of pixels.
ON_GPU: Mapping[str, Mapping[str, Any]] = {
    "exact": {"precision": "bf16", "eps": 1e-3},
    "separable": {"precision": "bf16"},
}
MOST_DIFFERENT = {"exact": 1e-3, "separable": 0.05, "permutohedral": 0.05}  # share of labels
MOST_SECONDS = {  # on a H100 or H200, by case
    "375x500 80/13 permutohedral": 5e-3,
    "375x500 80/13 permutohedral batch 8": 16e-3,
    "375x500 80/13 exact": 80e-3,
    "375x500 80/13 separable": 3e-3,
    "1024x2048 49/5 permutohedral": 40e-3,
}
TIMES_AS_FAST = {"375x500 80/13 permutohedral": 150.0, "375x500 80/13 exact": 8.0}


@dataclass(frozen=True)
class Problem:
    """A batch of images of one size, and its CRF."""

    height: int
    width: int
    labels: int
    sigma_xy: float
    sigma_rgb: float
    iterations: int
    batch: int = 1


def cpu_cases(settings: Settings) -> list[Case]:
    """Small enough for all pairs: every method beside the others, one case for each sigma."""
    problems = {
        f"48x64 {xy}/{rgb} methods": Problem(48, 64, 8, xy / 4, rgb, 10)
        for xy, rgb in (SIGMAS[:1] if settings.quick else SIGMAS)
    }
    return [
        Case(name, partial(prepare_all, problem), memory=False)
        for name, problem in problems.items()
    ]


def gpu_cases(settings: Settings) -> list[Case]:
    """Each method at each size; those with a bar first, lest time run out before them."""
    medium, small, large = (
        Problem(375, 500, 21, 80, 13, 10), Problem(240, 320, 21, 80, 13, 10),
        Problem(1024, 2048, 19, 49, 5, 10),
    )  # fmt: skip
    problems = {"375x500": medium} if settings.quick else {"375x500": medium, "240x320": small}
    listed: list[Case] = []
    for size, problem in problems.items():
        for xy, rgb in SIGMAS[:1] if settings.quick else SIGMAS:
            of_sigma = replace(problem, sigma_xy=xy, sigma_rgb=rgb)
            listed += _cases_of(f"{size} {xy}/{rgb}", of_sigma)
    for xy, rgb in () if settings.quick else SIGMAS:
        of_sigma = replace(large, sigma_xy=xy, sigma_rgb=rgb)
        for batch in (1, 8):
            name = f"1024x2048 {xy}/{rgb} permutohedral" + f" batch {batch}" * (batch > 1)
            problem = replace(of_sigma, batch=batch)
            listed.append(_gpu_case(name, problem, "permutohedral", False))
        if rgb >= FEW_LANDMARKS:
            name = f"1024x2048 {xy}/{rgb} separable"
            listed.append(_gpu_case(name, of_sigma, "separable", False))
    listed.append(Case("one filter, 200k points, D=6, C=3", prepare_filter, most_seconds=1e-3))
    return sorted(listed, key=lambda case: case.bar is None and case.most_seconds is None)


def _cases_of(name: str, problem: Problem) -> list[Case]:
    """The methods that take this sigma; the peer, a second a call, once, and where a bar asks."""
    methods: list[Method] = ["permutohedral", "exact"]
    if problem.sigma_rgb >= FEW_LANDMARKS:  # below, these photographs need too many
        methods.append("separable")
    listed = []
    for method in methods:
        title = f"{name} {method}"
        beside_peer = method == "permutohedral" or title in TIMES_AS_FAST
        listed.append(_gpu_case(title, problem, method, beside_peer))
        for part in (set_up, iterations):
            part_title = f"{title} {part.__name__.replace('_', '-')}"
            prepared = partial(prepare_part, problem, method, part)
            listed.append(Case(part_title, prepared, memory=False))
        if method != "exact":
            eight = replace(problem, batch=8)
            listed.append(_gpu_case(f"{title} batch 8", eight, method, False))
    return listed


def _gpu_case(name: str, problem: Problem, method: Method, beside_peer: bool) -> Case:
    return Case(
        name,
        partial(prepare, problem, method, beside_peer),
        bar=TIMES_AS_FAST.get(name),
        most_seconds=MOST_SECONDS.get(name),
    )


def layer(problem: Problem, method: Method, **options: Any) -> crf.DenseCRF:
    """The CRF of a problem."""
    return crf.DenseCRF(
        problem.labels,
        gaussian=crf.Gaussian(SPATIAL_WEIGHT, SPATIAL_SIGMA),
        bilateral=crf.Bilateral(BILATERAL_WEIGHT, problem.sigma_xy, problem.sigma_rgb),
        iterations=problem.iterations,
        method=method,
        **options,
    )


def prepare(problem: Problem, method: Method, beside_peer: bool, device: str = "cuda") -> Prepared:
    """One method, beside pydensecrf2 if it is installed and wanted."""
    logits, images, source = inputs(problem, device)
    options = ON_GPU.get(method, {}) if device == "cuda" else {}
    candidates: dict[str, Candidate] = {
        method: _call(layer(problem, method, **options), logits, images)
    }
    notes = []
    if beside_peer:
        theirs = _peer(problem, logits, images)
        if theirs is None:
            notes = [f"{PEER} is not installed: no peer is timed"]
        else:
            candidates[PEER] = theirs
    return Prepared(
        candidates=candidates,
        gate=partial(_gate, problem, logits, images),
        quality=partial(qualities, problem, logits, images) if _fits(problem) else None,
        facts={**vars(problem), **options, "photograph": source},
        notes=notes,
    )


def prepare_all(problem: Problem, device: str = "cpu") -> Prepared:
    """Every method in one case, the lattice first."""
    logits, images, source = inputs(problem, device)
    candidates: dict[str, Candidate] = {
        "permutohedral": _call(layer(problem, "permutohedral"), logits, images)
    }
    notes = []
    separable = _call(layer(problem, "separable"), logits, images)
    try:
        separable()
        candidates["separable"] = separable
    except kernels.NotSeparable as error:
        notes.append(
            f"separable is left out at {problem.sigma_xy:g}/{problem.sigma_rgb:g}: {error}"
        )
    candidates[EXACT] = _call(layer(problem, "exact"), logits, images)
    theirs = _peer(problem, logits, images)
    if theirs is not None:
        candidates[PEER] = theirs
    return Prepared(
        candidates=candidates,
        gate=partial(_gate, problem, logits, images),
        quality=partial(qualities, problem, logits, images),
        facts={**vars(problem), "photograph": source},
        notes=notes if theirs else [*notes, f"{PEER} is not installed: no peer is timed"],
    )


Part = Callable[[crf.DenseCRF, Tensor, Tensor], Candidate]


def prepare_part(problem: Problem, method: Method, part: Part, device: str = "cuda") -> Prepared:
    """Set-up or iterations alone."""
    logits, images, source = inputs(problem, device)
    options = ON_GPU.get(method, {}) if device == "cuda" else {}
    return Prepared(
        candidates={method: part(layer(problem, method, **options), logits, images)},
        gate=lambda outputs: [Check("values that are not finite", _not_finite(outputs), 0)],
        facts={**vars(problem), **options, "photograph": source},
    )


def set_up(made: crf.DenseCRF, logits: Tensor, images: Tensor) -> Candidate:
    """The filters of all terms and their normalisation."""

    def call() -> list[Tensor]:
        groups = _terms(made, logits, images)[2]
        return [cast(Tensor, term.before) for _, of_images in groups for term in of_images]

    return call


def iterations(made: crf.DenseCRF, logits: Tensor, images: Tensor) -> Candidate:
    """The updates alone, on filters that are there."""
    unary, settings, groups = _terms(made, logits, images)

    def on_lattices() -> Tensor:
        return torch.cat(
            [inference.infer_on_lattices(unary[some], of, settings) for some, of in groups]
        )

    def composed() -> Tensor:
        ((_, of_images),) = groups
        points = unary.transpose(1, 2).contiguous()
        field = inference.composed_field(points, of_images, settings.iterations)
        return field.softmax(2).transpose(1, 2).contiguous()

    return on_lattices if settings.method == "permutohedral" else composed


def _terms(
    made: crf.DenseCRF, logits: Tensor, images: Tensor
) -> tuple[Tensor, terms.Settings, list[tuple[slice, list[terms.PairwiseTerm]]]]:
    """Unary energies, settings, and the terms of the images that share them."""
    unary, points, penalties = made.potentials(logits, images, {})
    settings = made.settings(logits, points, marginals=True)
    if settings.method == "permutohedral":
        return unary, settings, list(terms.lattice_groups(unary, points, penalties, settings))
    of_all = terms.terms_of(points, penalties, len(unary), settings)
    return unary, settings, [(slice(None), of_all)]


def prepare_filter(points: int = 200_000, device: str = "cuda") -> Prepared:
    """One lattice filter of three channels in six dimensions, the lattice built before."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(points, 6, generator=generator).mul(3).to(device)
    values = torch.rand(points, 3, generator=generator).to(device)
    lattice = kernels.build_lattice(features)
    oracle = kernels.apply_lattice(lattice, values, impl="reference")
    return Prepared(
        candidates={"kernels": lambda: kernels.apply_lattice(lattice, values)},
        gate=lambda outputs: [
            Check(
                "largest difference from the oracle, of its largest value",
                float((outputs["kernels"] - oracle).abs().max() / oracle.abs().max()),
                1e-5,
            )
        ],
        facts={"points": points, "vertices": lattice.num_vertices},
    )


def inputs(problem: Problem, device: str) -> tuple[Tensor, Tensor, str]:
    """Logits `[B, C, H, W]` and images `[B, 3, H, W]` uint8 on the device; which photograph."""
    image, source = photograph(problem.height, problem.width)
    shape = problem.labels, problem.height, problem.width
    logits = [
        -torch.from_numpy(unary_energies(*shape, seed=b)).reshape(shape)
        for b in range(problem.batch)
    ]
    images = torch.from_numpy(image).permute(2, 0, 1).expand(problem.batch, -1, -1, -1)
    return torch.stack(logits).to(device), images.contiguous().to(device), source


def qualities(
    problem: Problem, logits: Tensor, images: Tensor, outputs: Mapping[str, Any]
) -> Mapping[str, Quality]:
    """The distance of each candidate's marginals from those over all pairs in full."""
    truth = _exact(problem, logits, images)
    return {name: quality(marginals(output, truth), truth) for name, output in outputs.items()}


def quality(found: Tensor, truth: Tensor) -> Quality:
    """How far marginals `[B, C, H, W]` are from the true ones."""
    same = (found.argmax(1) == truth.argmax(1)).double().mean()
    return Quality(same_label=float(same), mean_error=float((found - truth).abs().double().mean()))


def marginals(output: Any, like: Tensor) -> Tensor:
    """What a candidate gave, as marginals of one shape; pydensecrf2 gives an array `[C, N]`."""
    tensor = torch.as_tensor(np.asarray(output)) if not isinstance(output, Tensor) else output
    return tensor.to(like).reshape(like.shape)


def _gate(
    problem: Problem, logits: Tensor, images: Tensor, outputs: Mapping[str, Any]
) -> list[Check]:
    checks = [Check("values that are not finite", _not_finite(outputs), 0)]
    if not _fits(problem):
        return checks
    for name, found in qualities(problem, logits, images, outputs).items():
        limit = MOST_DIFFERENT.get(name)
        if limit is not None:
            checks.append(Check(f"share of other labels ({name})", 1 - found.same_label, limit))
    return checks


def _exact(problem: Problem, logits: Tensor, images: Tensor) -> Tensor:
    marginals: Tensor = layer(problem, "exact")(logits, images)
    return marginals


def _fits(problem: Problem) -> bool:
    """Whether all pairs of the batch in full are soon done."""
    return problem.batch == 1 and problem.height * problem.width <= 200_000


def _call(model: crf.DenseCRF, logits: Tensor, images: Tensor) -> Candidate:
    def call() -> Tensor:
        with torch.no_grad():
            marginals: Tensor = model(logits, images)
        return marginals

    return call


def _peer(problem: Problem, logits: Tensor, images: Tensor) -> Candidate | None:
    """pydensecrf2 on the first image, None where it is not installed."""
    try:
        from pydensecrf import densecrf
    except ImportError:
        return None
    energies: npt.NDArray[np.float32] = -logits[0].log_softmax(0).flatten(1).cpu().numpy()
    image = np.ascontiguousarray(images[0].permute(1, 2, 0).cpu().numpy())

    def call() -> npt.NDArray[np.float32]:
        dense = densecrf.DenseCRF2D(problem.width, problem.height, problem.labels)
        dense.setUnaryEnergy(np.ascontiguousarray(energies))
        dense.addPairwiseGaussian(sxy=SPATIAL_SIGMA, compat=SPATIAL_WEIGHT)
        dense.addPairwiseBilateral(
            sxy=problem.sigma_xy, srgb=problem.sigma_rgb, rgbim=image, compat=BILATERAL_WEIGHT
        )
        return np.asarray(dense.inference(problem.iterations))

    return call


def _not_finite(outputs: Mapping[str, Any]) -> float:
    """How many values of all outputs are not finite."""
    count = 0
    for output in outputs.values():
        for part in output if isinstance(output, list) else [output]:
            count += int((~torch.isfinite(torch.as_tensor(part))).sum())
    return float(count)
