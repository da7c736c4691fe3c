"""Maps as training loops refine them, 41x41 to 81x81: the drop-in, and crf.DenseCRF on a batch.

The drop-in runs pydensecrf's program, set-up included, beside pydensecrf2; the batch, from tensors
to marginals, beside a loop over pydensecrf2 from NumPy to NumPy. "One core" is one thread of each
side by the processor's clock, which the bars are for; "all cores" lets the batch use the threads of
the run. The gate is what the drop-in promises: 99.9% of marginals within 2e-3.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from types import ModuleType
from typing import Any

import compare_crf
import crf_methods
import numpy as np
import torch
from crf_problem import PEER, PEER_MODULE, CRFProblem, dense_crf_2d, installed
from frame import Candidate, Case, Check, Comparison, Prepared, Settings
from torch import Tensor

OURS = "crf.DenseCRF"
SIDES, BARS = (41, 81), {2: 1.5, 21: 2.5}  # bars by labels
BATCH, BATCH_BAR = 8, 3.0


def cases(settings: Settings) -> list[Case]:
    """Each size and number of labels, alone and in a batch; the smaller size alone if quick."""
    listed = []
    for side, labels in product(SIDES[:1] if settings.quick else SIDES, BARS):
        problem = CRFProblem(side, side, labels, 49, 5, 10)
        name = f"{side}x{side}, {labels} labels"
        alone = partial(compare_crf.prepare, problem, compare_crf.whole)
        batch = partial(prepare_batch, replace(problem, batch=BATCH))
        listed += [
            compare_crf.one_core(name, alone, memory=False, bar=BARS[labels]),
            compare_crf.one_core(f"{name}, batch {BATCH}", batch, memory=False, bar=BATCH_BAR),
        ]
        if settings.threads > 1:
            listed.append(Case(f"{name}, batch {BATCH}, all cores", batch, memory=False))
    return listed


COMPARISON = Comparison("small_maps", " ".join(__doc__.split("\n\n")[0].split()), ("cpu",), cases)


def prepare_batch(problem: CRFProblem) -> Prepared:
    """The layer on all maps at once, the peer on one after another."""
    logits, images, source = crf_methods.inputs(problem, "cpu")
    model = crf_methods.layer(problem, "permutohedral")
    candidates: dict[str, Candidate] = {OURS: torch.no_grad()(lambda: model(logits, images))}
    library = installed(PEER_MODULE)
    if library is not None:
        candidates[PEER] = partial(_one_by_one, library, problem, logits, images)
    return Prepared(
        candidates=candidates,
        gate=gate,
        facts={**asdict(problem), "photograph": source},
        notes=[] if library else [f"{PEER} is not installed: only sums are checked"],
    )


def _one_by_one(
    library: ModuleType, problem: CRFProblem, logits: Tensor, images: Tensor
) -> np.ndarray[Any, Any]:
    """Marginals `[B, C, H * W]` of pydensecrf's program on one map after another."""
    energies = np.ascontiguousarray(-logits.log_softmax(1).flatten(2).numpy())
    pictures = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
    programs = [
        dense_crf_2d(library, problem, *each) for each in zip(energies, pictures, strict=True)
    ]
    return np.stack([np.asarray(each.inference(problem.iterations)) for each in programs])


def gate(outputs: Mapping[str, Any]) -> list[Check]:
    """Sums of 1, and the peer's marginals where there is one."""
    ours = outputs[OURS].flatten(2).numpy()
    checks = [Check("largest error of a sum", float(np.abs(ours.sum(1) - 1).max()), 1e-5)]
    if PEER in outputs:
        strays = float(np.mean(np.abs(ours - outputs[PEER]) > 2e-3))
        checks.append(Check("share of marginals further than 2e-3 apart", strays, 1e-3))
    return checks
