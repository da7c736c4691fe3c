"""What a run is that is told neither a recipe nor a model, and how it learns.

    start                     model                                          optimiser   lr
    a segmenter's weights     the one that they are of                       AdamW       1e-4
    a body, as of ImageNet    DeepLab v3+ on it, output stride 16            AdamW       5e-4
    nothing, on a CPU         deeplab_v2_small                               those of TrainConfig
    nothing, on a GPU         deeplab_v3plus_resnet50, output stride 16      AdamW       5e-4
    generated scenes alone    the recipe of the shipped weights: TrainConfig as it is

    device    pictures in a step    side of a crop    steps    between validations
    CPU               8                  193           1500             250
    GPU              16                  321           6000            1000

The classifier learns five times as fast, since it starts from random numbers. What a person says
takes the place of any of it. Ours, and not searched for: no record compares other rates, or bodies.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from deeplab.model import build
from deeplab.training.config import TrainConfig
from deeplab.training.recipe import Settings
from deeplab.weights.recognition import model_to_train

ADAMW: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 1e-2, "head_lr_scale": 5.0}
WARMUP = 50  # steps, or a tenth of them where they are fewer
ON_CPU: dict[str, Any] = {"batch_size": 8, "crop": 193, "steps": 1500, "validate_every": 250}
ON_GPU: dict[str, Any] = {"batch_size": 16, "crop": 321, "steps": 6000, "validate_every": 1000}
GPU_WORKERS = 4  # processes that prepare samples, where there are as many processors


@dataclass(frozen=True)
class Choice:
    """`settings` of a run, which others may replace, and `why` its model was chosen."""

    settings: Settings
    why: str

    def told(self, config: TrainConfig) -> str:
        """What was chosen, in one line, as the run has it in the end."""
        backbone = config.model_options.get("backbone")
        steps = "1 step" if config.steps == 1 else f"{config.steps} steps"
        return (
            f"{self.why}: {config.model}{f' on {backbone}' if backbone else ''}, {steps} of "
            f"{config.batch_size} crops of {config.crop} pixels, {config.optimizer} at lr "
            f"{config.lr:g}; choose otherwise with --config, --model, --steps, --batch-size, "
            "--crop, --lr or --set"
        )


def choose(given: Settings) -> Choice | None:
    """What a run takes for what `given` leaves out; None where that says the model, or nothing.

    Raises InputError where the weights to start from cannot be read, or no model has them.
    """
    weights, data, device = (
        given.get(key, (default, ""))[0]
        for key, default in (("weights", ""), ("data.name", "scenes"), ("device", "auto"))
    )
    if "model" in given or (not weights and data == "scenes"):
        return None
    gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if not weights and not gpu:
        return Choice({}, "no weights to start from, on a CPU")
    chosen = dict(ON_GPU, workers=min(GPU_WORKERS, os.cpu_count() or 1)) if gpu else dict(ON_CPU)
    if weights:
        start = model_to_train(weights)
        model, options = start.model, start.options
        chosen["lr"] = 1e-4 if start.whole else 5e-4
        what = "weights of a whole network" if start.whole else "weights of a body alone"
        why = f"{weights}: {what}"
    else:
        model, options = "deeplab_v3plus_resnet50", {"output_stride": 16}
        chosen["lr"] = 5e-4
        why = "no weights to start from, on a GPU"
    if options.get("scales") and not given.get("crf", (False, ""))[0]:
        with torch.device("meta"):
            strided = build(model, 2, **options).output_stride == 8
        if strided:  # as the papers train them
            chosen["loss_stride"] = 8
    steps = given.get("steps", (chosen["steps"], ""))[0]
    few = isinstance(steps, int) and steps < 10 * WARMUP  # else the recipe refuses it
    chosen |= ADAMW | {"model": model, "warmup": max(0, steps // 10) if few else WARMUP}
    chosen |= {f"model_options.{name}": value for name, value in options.items()}
    return Choice({key: (value, f"{key} for {why}") for key, value in chosen.items()}, why)
