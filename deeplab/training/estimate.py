"""How long a run will take, measured before its first step on copies that are thrown away.

    steps          forward and backward of a few samples, in proportion; or the time to make
                   samples, where the workers are slower
    validations    one picture, times their number

Nothing of the run is touched: the model is copied, and torch's generators are as before. On a CPU
time is proportional to the samples, and two are enough; a GPU gets a whole piece of a step.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from deeplab.errors import InputError
from deeplab.evaluation.evaluate import LabelledImages, evaluate
from deeplab.model import DeepLab
from deeplab.training.config import TrainConfig
from deeplab.training.logs import duration
from deeplab.training.samples import Samples
from deeplab.training.step import TrainStep

FEWEST = 400
"""Samples of a run below which nothing is measured: it would take a hundredth of the run."""

LONG = 2.0  # seconds, after which nothing is measured again


@dataclass(frozen=True)
class Estimate:
    """Seconds of a step and of a validation, and how many of each are left."""

    step: float
    validation: float
    steps: int
    validations: int

    def told(self, config: TrainConfig, first: int) -> str:
        """In one line; first: how many steps are done."""
        total = self.steps * self.step + self.validations * self.validation
        steps = f"{self.steps} steps of {config.batch_size}"
        left = f"the {steps} that are left" if first else steps
        once = self.validations == 1
        times = "a validation" if once else f"{self.validations} validations"
        return (
            f"about {duration(total)} for {left} ({duration(self.step)} a step) and "
            f"{times} ({duration(self.validation)}{'' if once else ' each'})"
        )


def estimate(
    config: TrainConfig,
    first: int,
    update: TrainStep,
    dataset: LabelledImages,
    validation: LabelledImages,
) -> Estimate | None:
    """What the steps from `first` on will take; None where it is not measured.

    That is: a short run, torch.compile, which takes longer than a step, BatchNorm that waits for
    other processes, and pictures or weights that are broken, which the run itself will name.
    """
    steps = config.steps - first
    waits = config.sync_bn and update.processes.world > 1
    if steps * config.batch_size < FEWEST or config.compile or waits:
        return None
    try:
        with _untouched(update.device):
            step = _seconds_of_step(config, update, dataset)
            picture = _seconds_of_picture(config, update, validation)
    except (InputError, FloatingPointError):
        return None
    share = -(-len(validation) // update.processes.world)
    whole, rest = divmod(config.steps, config.validate_every)
    due = whole - first // config.validate_every + (rest > 0)
    return Estimate(step, share * picture, steps, due)


def _seconds_of_step(config: TrainConfig, update: TrainStep, dataset: LabelledImages) -> float:
    share = config.batch_size // update.processes.world
    piece = share // config.accumulate
    measured = piece if update.device.type == "cuda" else min(piece, 2)
    model = update.model
    about = (model.preprocessing, model.num_classes, model.multilabel)
    samples = Samples(dataset, config, *about)
    made = [samples[index] for index in range(2)]
    making = made[1].seconds * share  # the first is slow
    repeated = [made[index % 2] for index in range(measured)]
    image = torch.stack([sample.image for sample in repeated])
    labels = torch.stack([sample.labels for sample in repeated])
    computing = _seconds(update.rehearsal(image, labels)) * share / measured
    return max(making / config.workers, computing) if config.workers else making + computing


def _seconds_of_picture(
    config: TrainConfig, update: TrainStep, validation: LabelledImages
) -> float:
    model: DeepLab = copy.deepcopy(update.model)
    layer, model.crf = model.crf, None
    begin = time.perf_counter()
    image, labels = (np.asarray(part) for part in validation[0])
    reading = time.perf_counter() - begin
    picture = [(image, np.zeros(labels.shape, np.uint8))]  # whose own may be all ignored

    def score() -> None:
        with update.autocast():
            evaluate(model, picture, layer, scales=config.validation_scales)

    return reading + _seconds(score)


def _seconds(act: Callable[[], None]) -> float:
    """How long it takes at best: the first time is slow, and others may disturb a later one."""
    taken: list[float] = []
    while len(taken) < 3 and sum(taken) < LONG:
        begin = time.perf_counter()
        act()
        taken.append(time.perf_counter() - begin)
    return min(taken)


@contextmanager
def _untouched(device: torch.device) -> Iterator[None]:
    """Leave all generators as they are, of which a hook may draw, and the GPU's memory."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (whoever uses it)
    gpus: list[Any] = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        if gpus:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
