"""A step of training: deeplab.training beside a plain loop in PyTorch.

DeepLab v2 on ResNet from the same weights, on the same pictures and labels: the paper's loss (the
cross entropy of the scores with every eighth label), its SGD with momentum 0.9 and weight decay,
ten times the rate for the classifier, float32. The plain network is plain_deeplab.py; its memory
format is PyTorch's default, as a loop written by hand has it, where ours is channels_last. A call
is one step: forward, backward and update.

The gate, after one step of each, and one of the plain network in float64: the losses agree, and the
weights of each layer are within an error budget.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import plain_deeplab
import torch
import torch.nn.functional as F
from frame import Candidate, Case, Check, Comparison, Prepared, Settings
from model_pipelines import Body
from torch import Tensor, nn

import deeplab.model
from deeplab.data import scenes
from deeplab.distributed import Processes

OURS, PLAIN = "deeplab.training", "plain PyTorch"
CLASSES = len(scenes.CLASSES)
LR, MOMENTUM, DECAY, STRIDE = 2.5e-4, 0.9, 5e-4, 8
LOSS_APART = 1e-5  # from float64, of the loss: a mean over thousands of roundings
BUDGET = 2  # times the error of the plain step


@dataclass(frozen=True)
class Task:
    """So many crops a step, of so many pixels a side."""

    body: Body
    side: int
    batch: int


def cases(settings: Settings) -> list[Case]:
    """The paper's network and crop, and a smaller body; memory too."""
    if settings.quick:
        listed = {"resnet50 97x97 batch 2": Task("resnet50", 97, 2)}
    else:
        listed = {
            "resnet50 193x193 batch 4": Task("resnet50", 193, 4),
            "resnet101 321x321 batch 1": Task("resnet101", 321, 1),
        }
    return [Case(name, partial(prepare, task), rounds=3) for name, task in listed.items()]


COMPARISON = Comparison("train", " ".join(__doc__.split("\n\n")[0].split()), ("cpu",), cases)


def prepare(task: Task) -> Prepared:
    """Both networks with the same weights, and a step of each."""
    torch.manual_seed(0)
    builders = {
        "resnet50": deeplab.model.deeplab_v2_resnet50,
        "resnet101": deeplab.model.deeplab_v2_resnet101,
    }
    model = builders[task.body](num_classes=CLASSES)
    _quiet_branches(model)
    blocks = plain_deeplab.BLOCKS[task.body]
    network = plain_deeplab.same_weights(model, CLASSES, blocks)
    exact = plain_deeplab.same_weights(model, CLASSES, blocks).double()
    images, labels = _pictures(task)
    candidates = {OURS: our_step(model, images, labels), PLAIN: plain_step(network, images, labels)}

    @cache  # the one step that it makes
    def exact_loss() -> float:
        return float(plain_step(exact, images.double(), labels)())

    def gate(outputs: Mapping[str, Any]) -> Sequence[Check]:
        ours = plain_deeplab.same_weights(model, CLASSES, blocks)
        loss = exact_loss()
        apart = _beyond_budget(ours, network, exact)
        return [
            Check("error of the loss", abs(float(outputs[OURS]) - loss) / loss, LOSS_APART),
            Check("error of a layer's step, of its budget", apart, 1.0),
        ]

    return Prepared(
        candidates=candidates, gate=gate, images=task.batch, facts={**vars(task), "lr": LR}
    )


def our_step(model: deeplab.model.DeepLab, images: Tensor, labels: Tensor) -> Candidate:
    """A step as `deeplab train` makes it, the samples at hand."""
    # Here, since a machine that compares other things may be without pydantic.
    from deeplab.training.config import TrainConfig
    from deeplab.training.samples import Sample
    from deeplab.training.step import TrainStep

    config = TrainConfig(
        lr=LR,
        momentum=MOMENTUM,
        weight_decay=DECAY,
        head_lr_scale=10.0,
        loss_stride=STRIDE,
        precision="float32",
        batch_size=len(images),
    )
    step = TrainStep(model, config, Processes(0, 1, torch.device("cpu")), (), None)
    sample = Sample(images, labels, torch.zeros(256, dtype=torch.int64), (), (), 0.0)
    return lambda: step(sample, step.denominators(labels))


def plain_step(
    network: plain_deeplab.PlainDeepLab, images: Tensor, labels: Tensor
) -> Callable[[], Tensor]:
    """A step as people write it."""
    optimizer = torch.optim.SGD(network.param_groups(LR, DECAY), lr=LR, momentum=MOMENTUM)

    def step() -> Tensor:
        network.train()
        optimizer.zero_grad()
        scores = network(plain_deeplab.preprocess(images))
        loss = F.cross_entropy(scores, labels[:, ::STRIDE, ::STRIDE].long(), ignore_index=255)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _pictures(task: Task) -> tuple[Tensor, Tensor]:
    """Generated scenes: images uint8 `[B, 3, H, W]`, labels uint8 `[B, H, W]`."""
    drawn = [scenes.scene(i, task.side) for i in range(task.batch)]
    images = torch.from_numpy(np.stack([each.image for each in drawn])).permute(0, 3, 1, 2)
    return images.contiguous(), torch.from_numpy(np.stack([each.labels for each in drawn]))


def _quiet_branches(model: nn.Module) -> None:
    """Scale the last normalisation of each block down, as trained networks have it.

    With random weights and constant statistics every block would double the variance, and the
    scores of the last of 33 blocks would be in the millions.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bn3.weight"):
                parameter.mul_(0.2)


@torch.no_grad()
def _beyond_budget(ours: nn.Module, plain: nn.Module, exact: nn.Module) -> float:
    """Of the layer where it is largest: how far the weights of ours are from those of float64, over
    what they may be, twice as far as those of the plain step and a rounding of each weight."""
    eps = torch.finfo(torch.float32).eps
    layers = zip(ours.parameters(), plain.parameters(), exact.parameters(), strict=True)
    return max(
        float((one - truth).norm() / (BUDGET * (other - truth).norm() + eps * truth.norm()))
        for one, other, truth in layers
        if truth.requires_grad
    )
