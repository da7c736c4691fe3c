"""The optimiser and its learning rate: poly or step, behind a linear warm-up.

    poly    lr(i) = lr_0 (1 - i / steps)^power
    step    lr(i) = lr_0 gamma^floor(i / step_size)
    both times min(1, (i + 1) / (warmup + 1)), and times the factor of each parameter group

Sources: Chen et al., DeepLab v1 (step: a tenth every 2000 iterations) and v2, section 4.1 (poly,
power 0.9); Caffe's `lr_policy`. Caffe multiplies the gradient by the rate before momentum, PyTorch
after it: the same until the rate changes, and close for as slow a change as these.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from deeplab.model import DeepLab
from deeplab.training.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """The body's learning rate at `step` (0 is the first)."""
    warm = min(1.0, (step + 1) / (config.warmup + 1))
    if config.policy == "step":
        return config.lr * config.gamma ** (step // config.step_size) * warm
    return config.lr * (1 - step / config.steps) ** config.power * warm


def make_optimizer(
    model: DeepLab, config: TrainConfig, auxiliary: nn.Module | None = None
) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW, over `DeepLab.param_groups` and an auxiliary classifier.

    That learns as fast as the weights of the model's classifiers.
    """
    groups = model.param_groups(config.lr, config.weight_decay, config.head_lr_scale)
    if auxiliary is not None:
        trained = [p for p in auxiliary.parameters() if p.requires_grad]
        for name, decay, params in (
            ("auxiliary_weight", config.weight_decay, [p for p in trained if p.ndim > 1]),
            ("auxiliary_other", 0.0, [p for p in trained if p.ndim == 1]),  # biases, norms
        ):
            group = {"params": params, "weight_decay": decay, "name": name}
            groups.append(group | {"lr": config.lr, "lr_scale": config.head_lr_scale})
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum)
    # The squares of 100 steps, not of 1000: runs from scratch on a CPU are a few thousand long.
    return torch.optim.AdamW(groups, betas=(config.momentum, 0.99))


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> None:
    """Give each parameter group its rate of `step`: the body's, times the group's factor."""
    rate = learning_rate(config, step)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def changed_steps_note(config: TrainConfig, done: int, before: int) -> str:
    """What becomes of a run of `before` steps that goes on after `done` with `config.steps`."""
    if done == config.steps:
        return f"ends at step {done}, where {before} was to be the last"
    note = (
        f"goes on from step {done} to {config.steps}, where {before} was to be the last: the "
        f"learning rate ({config.policy}) is {learning_rate(config, done):.4g} from here"
    )
    if not done:
        return note
    earlier = learning_rate(dataclasses.replace(config, steps=before), done - 1)
    return f"{note}, and was {earlier:.4g} in the last step"
