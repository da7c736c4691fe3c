"""What a CRF changes: each method of crf.DenseCRF against all pairs of pixels, and against labels.

Labelled pictures go through the CRF as one batch, behind the scores of a network
(labelled_pictures.py). In cases "methods" they are small, so that mean field over all pairs of
pixels in full is known: same label and mean |dQ| are against it. In the others they have their
size, and the lattice stands beside pydensecrf2. "The network alone" is the softmax of the scores.
The mIoU is that of all pixels of all pictures; the trimap's of those near a class boundary.

The gate: what a method may be off from all pairs (the lattice and the landmarks a twentieth of the
labels, what leaves a thousandth of each sum out a thousandth), and 99.9% of labels equal to
pydensecrf2's.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from crf_problem import PEER, PEER_MODULE, installed
from frame import Candidate, Case, Check, Comparison, Prepared, Quality, Settings
from labelled_pictures import CAMVID, Pictures, of_camvid, of_scenes
from torch import Tensor

import crf
import kernels
from deeplab.evaluation.metrics import ConfusionMatrix
from deeplab.evaluation.trimap import TrimapTally

LATTICE, LANDMARKS, EXACT = "permutohedral", "separable", "exact in full"
NEARLY, ALONE = "exact, eps 1e-3", "the network alone"
METHODS: Mapping[str, Mapping[str, Any]] = {
    LATTICE: {"method": "permutohedral"},
    LANDMARKS: {"method": "separable"},
    NEARLY: {"method": "exact", "eps": 1e-3},
    EXACT: {"method": "exact"},
}
MOST_DIFFERENT = {LATTICE: 0.05, LANDMARKS: 0.05, NEARLY: 1e-3, EXACT: 0.0}  # share of labels
FROM_PEER = 1e-3
NO_CAMVID = "CamVid is not beside the checkout: generated scenes alone"


def cases(settings: Settings) -> list[Case]:
    """Scenes and, where they are, street scenes: small ones by all methods, then whole ones."""
    few, many, factor = (1, 2, 6) if settings.quick else (6, 20, 5)
    sources = {"scenes": of_scenes} | ({"CamVid": of_camvid} if CAMVID.is_dir() else {})
    listed = []
    for name, make in sources.items():
        methods = partial(prepare, partial(make, few), partial(methods_of, factor=factor))
        whole = partial(prepare, partial(make, many), lattice_of)
        listed += [
            Case(f"{name}, methods", methods, memory=False, rounds=2),
            Case(f"{name}, whole", whole, memory=False, rounds=2),
        ]
    return listed


COMPARISON = Comparison("accuracy", " ".join(__doc__.split("\n\n")[0].split()), ("cpu",), cases)


def prepare(make: Callable[[], Pictures], of_pictures: Callable[[Pictures], Prepared]) -> Prepared:
    """A case of pictures that are made now."""
    return of_pictures(make())


def methods_of(pictures: Pictures, factor: int) -> Prepared:
    """All methods on small pictures."""
    pictures = pictures.smaller(factor)
    candidates, notes = {}, []
    for name, options in METHODS.items():
        candidate = refine(pictures, options)
        try:
            if name == LANDMARKS:
                candidate()
        except kernels.NotSeparable as error:
            notes.append(f"{pictures.source}: {name} is left out: {error}")
        else:
            candidates[name] = candidate
    candidates[ALONE] = network_alone(pictures)

    def gate(outputs: Mapping[str, Any]) -> Sequence[Check]:
        exact = outputs[EXACT]
        return [
            Check(f"share of other labels ({name})", 1 - _same_label(outputs[name], exact), most)
            for name, most in MOST_DIFFERENT.items()
            if name in outputs
        ]

    return _prepared(pictures, candidates, gate, notes)


def lattice_of(pictures: Pictures) -> Prepared:
    """The lattice on whole pictures beside pydensecrf2."""
    candidates, notes = {LATTICE: refine(pictures, METHODS[LATTICE])}, []
    library = installed(PEER_MODULE)
    if library is None:
        notes = [f"{PEER} is not installed: {LATTICE} is not held against it"]
    else:
        candidates[PEER] = refine_by_peer(library, pictures)
    candidates[ALONE] = network_alone(pictures)

    def gate(outputs: Mapping[str, Any]) -> Sequence[Check]:
        ours = outputs[LATTICE]
        checks = [Check("sums of marginals off 1", float((ours.sum(1) - 1).abs().max()), 1e-5)]
        if PEER in outputs:
            others = 1 - _same_label(ours, outputs[PEER])
            checks.append(Check(f"share of other labels than {PEER}", others, FROM_PEER))
        return checks

    return _prepared(pictures, candidates, gate, notes)


def refine(pictures: Pictures, options: Mapping[str, Any]) -> Candidate:
    """crf.DenseCRF on all pictures."""
    settings = pictures.settings
    layer = crf.DenseCRF(
        pictures.logits.shape[1],
        gaussian=settings.gaussian,
        bilateral=settings.bilateral,
        iterations=settings.iterations,
        **options,
    )
    return torch.no_grad()(lambda: layer(pictures.logits, pictures.images.float()))


def refine_by_peer(library: ModuleType, pictures: Pictures) -> Candidate:
    """pydensecrf2 on one picture after the other."""
    classes, height, width = pictures.logits.shape[1:]
    smooth, appearance = pictures.settings.gaussian, pictures.settings.bilateral
    assert smooth is not None
    assert appearance is not None
    energies = (-pictures.logits.log_softmax(1)).flatten(2).numpy()
    images = np.ascontiguousarray(pictures.images.permute(0, 2, 3, 1).numpy())

    def one(energy: np.ndarray, image: np.ndarray) -> np.ndarray:
        dense = library.DenseCRF2D(width, height, classes)
        dense.setUnaryEnergy(np.ascontiguousarray(energy))
        dense.addPairwiseGaussian(sxy=smooth.sigma_xy, compat=smooth.weight)
        dense.addPairwiseBilateral(
            sxy=appearance.sigma_xy,
            srgb=appearance.sigma_rgb,
            rgbim=image,
            compat=appearance.weight,
        )
        found = np.asarray(dense.inference(pictures.settings.iterations))
        return found.reshape(classes, height, width)

    def every() -> Tensor:
        both = zip(energies, images, strict=True)
        return torch.from_numpy(np.stack([one(energy, image) for energy, image in both]))

    return every


def network_alone(pictures: Pictures) -> Candidate:
    """Without a CRF."""
    return lambda: pictures.logits.softmax(1)


def qualities(pictures: Pictures, outputs: Mapping[str, Any]) -> dict[str, Quality]:
    """Of the marginals `[B, C, H, W]` of each candidate."""
    exact, found = outputs.get(EXACT), {}
    for name, marginals in outputs.items():
        same = error = None
        if exact is not None:
            same = _same_label(marginals, exact)
            error = float((marginals - exact).abs().double().mean())
        found[name] = Quality(same, error, *_mious(pictures, marginals.argmax(1)))
    return found


def _same_label(one: Tensor, other: Tensor) -> float:
    """The share of pixels whose most probable label is the same."""
    return float((one.argmax(1) == other.argmax(1)).double().mean())


def _mious(pictures: Pictures, predicted: Tensor) -> tuple[float, float | None]:
    """Of all pixels, and of those in the trimap."""
    classes = pictures.logits.shape[1]
    counts = ConfusionMatrix(classes)
    counts.update(pictures.labels, predicted)
    tally = TrimapTally(classes, (pictures.band,), "boundary")
    for truth, labels in zip(pictures.labels, predicted, strict=True):
        tally.add(truth, labels)
    return counts.miou(), tally.curve().miou[0]


def _prepared(
    pictures: Pictures,
    candidates: Mapping[str, Candidate],
    gate: Callable[[Mapping[str, Any]], Sequence[Check]],
    notes: Sequence[str],
) -> Prepared:
    height, width = pictures.labels.shape[1:]
    facts: dict[str, Any] = {"pictures": len(pictures.labels), "height": height, "width": width}
    facts |= {"of": pictures.source, "crf": str(pictures.settings), "trimap pixels": pictures.band}
    return Prepared(
        candidates=candidates,
        gate=gate,
        ours=METHODS.keys(),
        quality=partial(qualities, pictures),
        images=len(pictures.labels),
        facts=facts,
        notes=[*notes, *([] if CAMVID.is_dir() else [NO_CAMVID])],
    )
