"""Pictures to labels: deeplab.predict beside pipelines that people put together by hand.

DeepLab v2 on ResNet with the CRF of its paper: ours beside a plain network of torch alone
(plain_deeplab.py) and our exported network under onnxruntime, both with pydensecrf2 behind them.
All have the same weights, NumPy pictures in and NumPy labels out. The steps apart: "network" is
from pictures to logits of their size, "upsampling" the last part of it, "CRF" from there to labels.
DeepLab v3 without a CRF: ours beside torchvision's, whose weights it loads. Batches of 1 and 8.
Where a checkout of kazuto1011/deeplab-pytorch lies beside this one, its program runs too.

Weights are random: their classifiers are scaled so that the scores of a photograph have the spread
of a trained network's, which divides it into regions. The gate: scores within an error budget
against float64, and 99.9% of labels equal.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import plain_deeplab
import published_pipeline
import torch
from crf_problem import PEER_MODULE, importable, installed, photograph
from frame import Candidate, Case, Check, Comparison, Prepared, Settings
from machine import ROOT
from model_pipelines import (
    Images,
    Labels,
    Pipeline,
    Task,
    as_batch,
    by_hand,
    labels_of,
    onnx_logits,
    our_network,
    our_pipeline,
    our_v3,
    plain,
    plain_pipeline,
    torchvision_labels,
    torchvision_network,
)
from torch import Tensor, nn

from deeplab.precision import chosen
from deeplab.predict import Predictor

OURS, PLAIN = "deeplab.predict", "plain PyTorch + pydensecrf2"
ONNX = "onnxruntime + pydensecrf2"
PUBLISHED, CHECKOUT = "kazuto1011/deeplab-pytorch", ROOT.parent / "deeplab-pytorch"
TORCHVISION, EXPORT = "torchvision", ("onnx", "onnxscript", "onnxruntime")
WHOLE, NETWORK, UPSAMPLING, CRF = "image to labels", "network", "upsampling", "CRF"
MOST_DIFFERENT = 1e-3  # share of labels
BUDGET = 2  # times the error of plain PyTorch against float64


def cases(settings: Settings) -> list[Case]:
    """One picture, whole and in steps; eight; then v3."""
    if settings.quick:
        one, eight = Task("resnet50", 129, 1), Task("resnet50", 97, 8)
        return [*_cases_of(one), _whole(eight, rounds=2), _v3(one)]
    one, eight = Task("resnet101", 513, 1), Task("resnet101", 321, 8)
    return [
        *_cases_of(one, rounds=4),
        *_cases_of(eight, rounds=3),
        _v3(one, rounds=4),
        _v3(eight, rounds=3),
        *_published(),
    ]


COMPARISON = Comparison("model", " ".join(__doc__.split("\n\n")[0].split()), ("cpu",), cases)


def _cases_of(task: Task, rounds: int | None = None) -> list[Case]:
    steps = {NETWORK: network_alone, UPSAMPLING: upsampling_alone, CRF: crf_alone}
    apart = [
        Case(f"v2 {task.name}, {step}", partial(prepare, task), memory=False, rounds=rounds)
        for step, prepare in steps.items()
    ]
    return [_whole(task, rounds), *apart]


def _whole(task: Task, rounds: int | None = None) -> Case:
    return Case(f"v2 {task.name}, {WHOLE}", partial(whole, task), rounds=rounds)


def _v3(task: Task, rounds: int | None = None) -> Case:
    name = f"v3 {task.name}, {WHOLE}, no CRF"
    return Case(name, partial(v3, task), memory=False, rounds=rounds)


def _published() -> list[Case]:
    """Beside the whole program that most people know, where it is."""
    if not CHECKOUT.is_dir() or installed(PEER_MODULE) is None:
        return []
    bar = published_pipeline.BARS[chosen("auto", torch.device("cpu"))]
    name = f"v2 resnet101 513x513 batch 1, beside {PUBLISHED}"
    return [Case(name, published, memory=False, rounds=4, bar=bar)]


def published() -> Prepared:
    """A `Predictor` with precision="auto" beside that program: see published_pipeline.py."""
    image, source = photograph(published_pipeline.SIDE, published_pipeline.SIDE)
    model = our_network(published_pipeline.BODY, published_pipeline.RESIZE)
    network = published_pipeline.their_network(CHECKOUT, model)
    pipelines = {
        OURS: published_pipeline.our_pipeline(model),
        PUBLISHED: published_pipeline.their_pipeline(CHECKOUT, network),
    }
    dtype = chosen("auto", torch.device("cpu"))

    def gate(outputs: Mapping[str, Any]) -> list[Check]:
        expected = outputs[PUBLISHED]
        others = float(np.mean(outputs[OURS] != expected))
        most = published_pipeline.different_at_most(CHECKOUT, network, image, expected)
        return [Check("share of other labels", others, most)]

    return Prepared(
        candidates={name: partial(each.labels, image) for name, each in pipelines.items()},
        gate=gate,
        images=1,
        facts={"photograph": source, "precision": str(dtype)},
    )


def whole(task: Task) -> Prepared:
    """From images to labels, with the CRF."""
    images, (pipelines, notes) = task.images, all_pipelines(task)
    candidates = {
        name: partial(pipeline.labels, images)
        for name, pipeline in pipelines.items()
        if pipeline.labels is not None
    }
    return Prepared(
        candidates=candidates,
        gate=partial(_same_labels, PLAIN, partial(_by_plain_network, task)),
        images=task.batch,
        facts={**vars(task), "step": WHOLE},
        notes=notes,
    )


def network_alone(task: Task) -> Prepared:
    """From images to logits of their size."""
    images, (pipelines, notes) = task.images, all_pipelines(task)
    return Prepared(
        candidates={name: partial(each.logits, images) for name, each in pipelines.items()},
        gate=partial(_within_budget, lambda: _exact(plain(task.body), images[:1])),
        images=task.batch,
        facts={**vars(task), "step": NETWORK},
        notes=notes,
    )


def upsampling_alone(task: Task) -> Prepared:
    """From scores of stride 8 to logits: of onnxruntime it cannot be told apart."""
    with torch.no_grad():
        scores = plain(task.body)(plain_deeplab.preprocess(as_batch(task.images)))
    size = task.side, task.side
    ours = our_network(task.body).upsample

    def gate(outputs: Mapping[str, Any]) -> list[Check]:
        apart = float((outputs[OURS] - outputs[PLAIN]).abs().max())
        limit = torch.finfo(torch.float32).eps * float(scores.abs().max())
        return [Check("largest difference of the logits", apart, limit)]

    return Prepared(
        candidates={
            OURS: torch.no_grad()(lambda: ours(scores, size)),
            PLAIN: lambda: plain_deeplab.upsample(scores, size),
        },
        gate=gate,
        images=task.batch,
        facts={**vars(task), "step": UPSAMPLING},
    )


def crf_alone(task: Task) -> Prepared:
    """From logits to labels: all that use pydensecrf2 have the same behind the network."""
    images, plainly = task.images, plain_pipeline(task)
    logits = plainly.logits(images)
    pipelines = {OURS: our_pipeline(task.body), PLAIN: plainly}
    return Prepared(
        candidates={
            name: partial(each.refined, logits, images)
            for name, each in pipelines.items()
            if each.refined is not None
        },
        gate=partial(_same_labels, PLAIN, partial(_by_plain_network, task)),
        images=task.batch,
        facts={**vars(task), "step": CRF},
    )


def v3(task: Task) -> Prepared:
    """DeepLab v3 without a CRF: ours has the weights of torchvision's."""
    images, segmentation = task.images, importable("torchvision.models.segmentation")
    theirs = None if segmentation is None else torchvision_network(segmentation, task.body)
    ours, notes = our_v3(task.body, theirs), []
    candidates: dict[str, Candidate] = {
        OURS: partial(labels_of, Predictor(ours, tile=None), images)
    }
    if theirs is None:
        notes = [f"{TORCHVISION} is not installed, or not for this torch: v3 has no peer"]
    else:
        candidates[TORCHVISION] = partial(torchvision_labels, theirs, images)

    @torch.no_grad()
    def judge() -> Labels:
        wide = copy.deepcopy(ours).double()
        return wide(wide.preprocess(as_batch(images))).argmax(1).byte().numpy()

    return Prepared(
        candidates=candidates,
        gate=partial(_same_labels, TORCHVISION, judge),
        images=task.batch,
        facts=vars(task),
        notes=notes,
    )


def all_pipelines(task: Task) -> tuple[dict[str, Pipeline], list[str]]:
    """Ours, and those peers that can run here; what the reader must know."""
    pipelines, notes = {OURS: our_pipeline(task.body), PLAIN: plain_pipeline(task)}, []
    if installed(PEER_MODULE) is None:
        notes.append("pydensecrf2 is not installed: no other pipeline has a CRF to be timed with")
    missing = [name for name in EXPORT if importable(name) is None]
    if missing:
        what = f"{' and '.join(missing)} not installed (pip install '.[export]')"
        notes.append(f"{what}: the exported network is left out")
    else:
        pipelines[ONNX] = by_hand(partial(onnx_logits, task.body), task)
    return pipelines, notes


def _by_plain_network(task: Task) -> Labels:
    """The labels of the plain network and our CRF: the judge where there is no peer's."""
    pipeline, images = our_pipeline(task.body), task.images
    assert pipeline.refined is not None
    return pipeline.refined(plain_pipeline(task).logits(images), images)


def _same_labels(
    peer: str, judge: Callable[[], Labels], outputs: Mapping[str, Any]
) -> Sequence[Check]:
    """The labels of every other candidate against those of a peer; without it, the judge's."""
    truth = outputs[peer] if peer in outputs else judge()
    return [
        Check(f"share of other labels ({name})", float(np.mean(each != truth)), MOST_DIFFERENT)
        for name, each in outputs.items()
        if name != peer
    ]


def _exact(network: nn.Module, images: Images) -> Tensor:
    """The logits in float64."""
    network.double()
    with torch.no_grad():
        scores = network(plain_deeplab.preprocess(as_batch(images)).double())
    network.float()  # what was float32 before is the same again
    return plain_deeplab.upsample(scores, images.shape[1:3])


def _within_budget(truth: Callable[[], Tensor], outputs: Mapping[str, Any]) -> Sequence[Check]:
    """The logits of the first picture: no further from float64 than BUDGET times plain PyTorch's,
    and a rounding of the largest."""
    exact = truth()
    errors = {
        name: float((logits[:1] - exact).abs().max() / exact.abs().max())
        for name, logits in outputs.items()
    }
    limit = BUDGET * errors[PLAIN] + torch.finfo(torch.float32).eps
    return [
        Check(f"largest error of logits ({name}), of the largest", error, limit)
        for name, error in errors.items()
        if name != PLAIN
    ]
