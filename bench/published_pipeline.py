"""A picture to labels: deeplab.predict beside the pipeline of kazuto1011/deeplab-pytorch itself.

    git clone https://github.com/kazuto1011/deeplab-pytorch ../deeplab-pytorch
    python bench/published_pipeline.py ../deeplab-pytorch                # all cores
    python bench/published_pipeline.py ../deeplab-pytorch --threads 1 --clock cpu

Both have DeepLab v2 on ResNet-101 with the same weights, at one scale, and the CRF of its
configuration for VOC; a photograph of 513x513 goes in, labels come out. Theirs is its network in
eager float32 and its CRF over pydensecrf2, put together as its demo.py does; ours is a `Predictor`
with precision="auto". They run in turn, in an order that turns around each round, so that the noise
of the machine falls on both.

With one thread and processor seconds it is a core for a core, also where others use the machine;
of two threads those that wait count too. Bar: ours 1.25 times as fast in float32, 2.2 times where
the processor computes in bfloat16.

Weights are random; the classifier is scaled so that scores have the spread of a trained network's.
Many places have two labels that are nearly as good, more than a trained network leaves, and
bfloat16 decides some of them otherwise. The gate: 99.9% of labels equal in float32; in bfloat16 at
most 1.5 times as many different ones as when PyTorch's autocast puts their network in bfloat16.
bench/precision.py has the labels of trained networks.
"""

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from crf_problem import PEER, PEER_MODULE, installed, photograph
from machine import cores
from model_pipelines import CLASSES, Body, our_network
from torch import Tensor, nn

import crf
from deeplab.model import DeepLab
from deeplab.model.multiscale import Resize
from deeplab.precision import chosen
from deeplab.predict import Predictor

SIDE = 513
BODY: Body = "resnet101"
RESIZE: Resize = "torch"
BLOCKS, RATES = [3, 4, 23, 3], [6, 12, 18, 24]
MEAN_BGR = np.array([104.008, 116.669, 122.675], np.float32)
# As configs/voc12.yaml there has them.
WEIGHTS, SIGMA, BILATERAL_SIGMAS, ITERATIONS = (3.0, 4.0), 1.0, (67.0, 3.0), 10
DIFFERENT = 1e-3  # share of labels, at most, in float32
TIMES_AUTOCAST = 1.5  # of the share in which autocast differs, at most, in bfloat16
BARS = {torch.float32: 1.25, torch.bfloat16: 2.2}

Image = npt.NDArray[np.uint8]  # [H, W, 3], RGB
Labels = npt.NDArray[Any]  # [H, W]
Seconds = dict[str, float]


@dataclass(frozen=True)
class Pipeline:
    """Labels of a picture, and the two parts of the way."""

    logits: Callable[[Image], Any]
    labels: Callable[[Image], Labels]


def our_pipeline(model: DeepLab) -> Pipeline:
    """As a user of deeplab has it."""
    layer = crf.DenseCRF(
        CLASSES,
        gaussian=crf.Gaussian(WEIGHTS[0], SIGMA),
        bilateral=crf.Bilateral(WEIGHTS[1], *BILATERAL_SIGMAS),
        iterations=ITERATIONS,
    )
    alone = Predictor(model, precision="auto")
    whole = Predictor(model, layer, precision="auto")
    return Pipeline(
        lambda image: alone.output([image]).logits,
        lambda image: whole(image, probabilities=False).labels,
    )


def their_network(checkout: Path, ours: DeepLab) -> nn.Module:
    """The network of the checkout with the weights of ours, whose layers come in the same order.

    Raises ValueError where the checkout has another network.
    """
    network: nn.Module = _of_checkout(checkout, "libs.models.deeplabv2").DeepLabV2(
        CLASSES, BLOCKS, RATES
    )
    state, given = network.state_dict(), ours.state_dict()
    heads = [given.pop(f"head.classifier.{kind}").chunk(len(RATES)) for kind in ("weight", "bias")]
    tensors = [*given.values(), *(each for pair in zip(*heads, strict=True) for each in pair)]
    if [tensor.shape for tensor in tensors] != [tensor.shape for tensor in state.values()]:
        raise ValueError(f"{checkout} must have the DeepLab v2 of kazuto1011/deeplab-pytorch")
    network.load_state_dict(dict(zip(state, tensors, strict=True)))
    return network.eval()


def their_pipeline(checkout: Path, network: nn.Module) -> Pipeline:
    """As demo.py of the checkout has it."""
    refine = _of_checkout(checkout, "libs.utils.crf").DenseCRF(
        iter_max=ITERATIONS,
        pos_w=WEIGHTS[0],
        pos_xy_std=SIGMA,
        bi_w=WEIGHTS[1],
        bi_xy_std=BILATERAL_SIGMAS[0],
        bi_rgb_std=BILATERAL_SIGMAS[1],
    )

    @torch.no_grad()
    def logits(image: Image) -> Tensor:
        whitened = image[..., ::-1].astype(np.float32) - MEAN_BGR
        scores = network(torch.from_numpy(whitened.transpose(2, 0, 1)).float()[None])
        return F.interpolate(scores, image.shape[:2], mode="bilinear", align_corners=False)

    def labels(image: Image) -> Labels:
        probabilities = F.softmax(logits(image), dim=1)[0].numpy()
        found: Labels = np.argmax(refine(image, probabilities), axis=0)
        return found

    return Pipeline(logits, labels)


class InBFloat16(nn.Module):
    """A network by PyTorch's autocast."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            scores: Tensor = self.network(x).float()
            return scores


def different_at_most(checkout: Path, network: nn.Module, image: Image, expected: Labels) -> float:
    """The share of labels in which ours may differ from those of their network in float32."""
    if chosen("auto", torch.device("cpu")) == torch.float32:
        return DIFFERENT
    by_autocast = their_pipeline(checkout, InBFloat16(network)).labels(image)
    return TIMES_AUTOCAST * float(np.mean(by_autocast != expected))


def measure(checkout: Path, threads: int, rounds: int, clock: str) -> dict[str, Any]:
    """The gate, then both in turn: what the record holds. clock: "wall" or "cpu", of the bar."""
    torch.set_num_threads(threads)
    image, source = photograph(SIDE, SIDE)
    model = our_network(BODY, RESIZE)
    ours = our_pipeline(model)
    network = their_network(checkout, model)
    theirs = their_pipeline(checkout, network)
    dtype = chosen("auto", torch.device("cpu"))
    expected = theirs.labels(image)
    different = float(np.mean(ours.labels(image) != expected))
    most = different_at_most(checkout, network, image, expected)
    ours.logits(image)
    times = timed_in_turn(ours, theirs, image, rounds)
    report: dict[str, Any] = {
        "photograph": source,
        "threads": threads,
        "precision": str(dtype),
        "different_labels": different,
        "different_at_most": most,
        "bar": BARS[dtype],
        "clock": clock,
    }
    for step, found in times.items():
        for each in ("wall", "cpu"):
            report[f"{step} {each}"] = _summary([(o[each], t[each]) for o, t in found])
    faster = report[f"labels {clock}"]["ours_is_faster_by"]
    return report | {"passed": different <= most and faster >= BARS[dtype]}


def timed_in_turn(
    ours: Pipeline, theirs: Pipeline, image: Image, rounds: int
) -> dict[str, list[list[Seconds]]]:
    """By step, for each round: the seconds of ours and of theirs, each first in every other one."""
    times: dict[str, list[list[Seconds]]] = {"labels": [], "logits": []}
    for number in range(rounds):
        turn = 1 if number % 2 == 0 else -1
        for step, found in times.items():
            pair = [_timed(getattr(each, step), image) for each in (ours, theirs)[::turn]]
            found.append(pair[::turn])
    return times


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write the record; 1 where the gate or the bar is missed."""
    from report import RECORDS, new_record, write_record

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="of github.com/kazuto1011/deeplab-pytorch")
    parser.add_argument("--threads", type=int, default=cores(), metavar="N", help="default: cores")
    parser.add_argument("--rounds", type=int, default=4, metavar="N", help="default: 4")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="default: wall")
    parser.add_argument("--out", type=Path, default=RECORDS, metavar="DIR", help="for the record")
    options = parser.parse_args(arguments)
    if not (options.checkout / "libs").is_dir():
        parser.error(f"{options.checkout} must be a checkout of kazuto1011/deeplab-pytorch")
    if installed(PEER_MODULE) is None:
        parser.error(f"{PEER} must be installed: the pipeline of the checkout needs it")
    found = measure(options.checkout, options.threads, options.rounds, options.clock)
    for name, value in found.items():
        print(f"{name}: {value}")
    name = "published-pipeline"
    given = {"threads": options.threads, "rounds": options.rounds, "clock": options.clock}
    command = ["bench/published_pipeline.py", "../deeplab-pytorch"]
    command += [part for key, value in given.items() for part in (f"--{key}", str(value))]
    record = new_record(command, [name], options.threads)
    record["comparisons"] = [{"name": name, **found}]
    print(f"record: {write_record(record, options.out)}")
    return 0 if found["passed"] else 1


def _of_checkout(checkout: Path, module: str) -> Any:
    sys.path.insert(0, str(checkout))
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(str(checkout))


def _timed(call: Callable[[Image], object], image: Image) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    call(image)
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def _summary(pairs: Sequence[tuple[float, float]]) -> Mapping[str, float]:
    ours, theirs = zip(*pairs, strict=True)
    return {
        "ours_seconds": statistics.median(ours),
        "theirs_seconds": statistics.median(theirs),
        "ours_is_faster_by": statistics.median(t / o for o, t in pairs),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
