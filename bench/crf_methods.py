"""The three filters of crf.DenseCRF beside pydensecrf2: time against error.

The error is that of the marginals against mean field over all pairs in full ("exact in full":
float32, nothing left out) on the same device: mean |dQ|, and the share of pixels with the same
label. On a GPU the inputs are there already, and one call is everything from images and logits to
marginals; pydensecrf2 goes from NumPy to NumPy. The gate is the distance from exact mean field that
a method may have; the lattice's own is that of pydensecrf2.

A case "one update" runs a single iteration: what ten take more is nine updates, the rest set-up.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from typing import Any, Final, Literal

import numpy as np
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
from frame import Candidate, Case, Check, Prepared, Quality, Settings
from torch import Tensor

import crf
import kernels

Method = Literal["permutohedral", "exact", "separable", "exact in full"]
EXACT: Final = "exact in full"
SEPARABLE_FROM = 10.0  # sigma_rgb below which these photographs need too many landmarks

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


def cpu_cases(settings: Settings) -> list[Case]:
    """Small enough for all pairs: every method beside the others, one case for each sigma."""
    methods: Sequence[Method] = ("permutohedral", "separable", EXACT)
    problems = {
        f"48x64 {xy}/{rgb} methods": CRFProblem(48, 64, 8, xy / 4, rgb, 10)
        for xy, rgb in (SIGMAS[:1] if settings.quick else SIGMAS)
    }
    return [
        Case(name, partial(prepare, problem, methods, "cpu", True), memory=False)
        for name, problem in problems.items()
    ]


def gpu_cases(settings: Settings) -> list[Case]:
    """Each method at each size; those with a bar first, lest time run out before them."""
    medium, small, large = (
        CRFProblem(375, 500, 21, 80, 13, 10), CRFProblem(240, 320, 21, 80, 13, 10),
        CRFProblem(1024, 2048, 19, 49, 5, 10),
    )  # fmt: skip
    sigmas = SIGMAS[:1] if settings.quick else SIGMAS
    problems = {"375x500": medium} if settings.quick else {"375x500": medium, "240x320": small}
    listed: list[Case] = []
    for size, problem in problems.items():
        for xy, rgb in sigmas:
            of_sigma = replace(problem, sigma_xy=xy, sigma_rgb=rgb)
            for method in _methods(rgb, "permutohedral", "exact", "separable"):
                listed += _cases_of(f"{size} {xy}/{rgb} {method}", of_sigma, method)
    for xy, rgb in () if settings.quick else SIGMAS:
        of_sigma = replace(large, sigma_xy=xy, sigma_rgb=rgb)
        for method in _methods(rgb, "permutohedral", "separable"):
            name = f"1024x2048 {xy}/{rgb} {method}"
            listed.append(_gpu_case(name, of_sigma, method))
            if method == "permutohedral":
                listed.append(_gpu_case(f"{name} batch 8", replace(of_sigma, batch=8), method))
    listed.append(Case("one filter, 200k points, D=6, C=3", prepare_filter, most_seconds=1e-3))
    return sorted(listed, key=lambda case: case.bar is None and case.most_seconds is None)


def _methods(sigma_rgb: float, *methods: Method) -> list[Method]:
    """Those of the methods that take this sigma."""
    return [m for m in methods if m != "separable" or sigma_rgb >= SEPARABLE_FROM]


def _cases_of(name: str, problem: CRFProblem, method: Method) -> list[Case]:
    """One method: whole, one update, and a batch. The peer takes a second a call, so it runs once
    for each problem, and where a bar asks."""
    beside_peer = method == "permutohedral" or name in TIMES_AS_FAST
    one_update = partial(prepare, replace(problem, iterations=1), [method], "cuda", False)
    listed = [
        _gpu_case(name, problem, method, beside_peer),
        Case(f"{name} one update", one_update, memory=False),
    ]
    if method != "exact":
        listed.append(_gpu_case(f"{name} batch 8", replace(problem, batch=8), method))
    return listed


def _gpu_case(name: str, problem: CRFProblem, method: Method, beside_peer: bool = False) -> Case:
    prepared = partial(prepare, problem, [method], "cuda", beside_peer)
    bar, most_seconds = TIMES_AS_FAST.get(name), MOST_SECONDS.get(name)
    return Case(name, prepared, bar=bar, most_seconds=most_seconds)


def prepare(
    problem: CRFProblem, methods: Sequence[Method], device: str, beside_peer: bool
) -> Prepared:
    """The methods in one case, beside pydensecrf2 if it is wanted and installed.

    Of several methods, separable is left out where it would take too many landmarks.
    """
    logits, images, source = inputs(problem, device)
    candidates: dict[str, Candidate] = {}
    notes, chosen = [], {}
    for method in methods:
        options = ON_GPU.get(method, {}) if device == "cuda" else {}
        candidate = _call(layer(problem, method, **options), logits, images)
        if method == "separable" and len(methods) > 1:
            try:
                candidate()
            except kernels.NotSeparable as error:
                sigmas = f"{problem.sigma_xy:g}/{problem.sigma_rgb:g}"
                notes.append(f"separable is left out at {sigmas}: {error}")
                continue
        candidates[method], chosen[method] = candidate, dict(options)
    theirs = _peer(problem, logits, images) if beside_peer else None
    if theirs is not None:
        candidates[PEER] = theirs
    elif beside_peer:
        notes.append(f"{PEER} is not installed: no peer is timed")
    truth = cache(lambda: layer(problem, EXACT)(logits, images))
    fits = problem.batch == 1 and problem.height * problem.width <= 200_000
    return Prepared(
        candidates=candidates,
        gate=partial(_gate, truth if fits else None),
        ours=chosen.keys(),
        quality=partial(qualities, truth) if fits else None,
        facts={**asdict(problem), "options": chosen, "photograph": source},
        notes=notes,
    )


def layer(problem: CRFProblem, method: Method, **options: Any) -> crf.DenseCRF:
    """The CRF of a problem."""
    return crf.DenseCRF(
        problem.labels,
        gaussian=crf.Gaussian(SPATIAL_WEIGHT, SPATIAL_SIGMA),
        bilateral=crf.Bilateral(BILATERAL_WEIGHT, problem.sigma_xy, problem.sigma_rgb),
        iterations=problem.iterations,
        method="exact" if method == EXACT else method,
        **options,
    )


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


def inputs(problem: CRFProblem, device: str) -> tuple[Tensor, Tensor, str]:
    """Logits `[B, C, H, W]` and images `[B, 3, H, W]` uint8 on the device; which photograph."""
    image, source = photograph(problem.height, problem.width)
    shape = problem.labels, problem.height, problem.width
    logits = [
        -torch.from_numpy(unary_energies(*shape, seed=b)).reshape(shape)
        for b in range(problem.batch)
    ]
    images = torch.from_numpy(image).permute(2, 0, 1).expand(problem.batch, -1, -1, -1)
    return torch.stack(logits).to(device), images.contiguous().to(device), source


def qualities(truth: Callable[[], Tensor], outputs: Mapping[str, Any]) -> Mapping[str, Quality]:
    """The distance of each candidate's marginals from the true ones `[B, C, H, W]`."""
    exact, found = truth(), {}
    for name, output in outputs.items():
        marginals = torch.as_tensor(output).to(exact).reshape(exact.shape)
        same_label = (marginals.argmax(1) == exact.argmax(1)).double().mean()
        mean_error = (marginals - exact).abs().double().mean()
        found[name] = Quality(float(same_label), float(mean_error))
    return found


def _gate(truth: Callable[[], Tensor] | None, outputs: Mapping[str, Any]) -> list[Check]:
    """Finite values, and labels near the true ones where these are known."""
    bad = sum(int((~torch.isfinite(torch.as_tensor(each))).sum()) for each in outputs.values())
    checks = [Check("values that are not finite", bad, 0)]
    for name, quality in qualities(truth, outputs).items() if truth else ():
        if name in MOST_DIFFERENT:
            assert quality.same_label is not None
            what = f"share of other labels ({name})"
            checks.append(Check(what, 1 - quality.same_label, MOST_DIFFERENT[name]))
    return checks


def _call(model: crf.DenseCRF, logits: Tensor, images: Tensor) -> Candidate:
    return torch.no_grad()(lambda: model(logits, images))


def _peer(problem: CRFProblem, logits: Tensor, images: Tensor) -> Candidate | None:
    """pydensecrf2 on the first image, None where it is not installed."""
    library = installed(PEER_MODULE)
    if library is None:
        return None
    energies = np.ascontiguousarray(-logits[0].log_softmax(0).flatten(1).cpu().numpy())
    image = np.ascontiguousarray(images[0].permute(1, 2, 0).cpu().numpy())
    return lambda: np.asarray(
        dense_crf_2d(library, problem, energies, image).inference(problem.iterations)
    )
