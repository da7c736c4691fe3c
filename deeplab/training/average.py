"""A moving average of the weights, which is scored and written in place of those that train.

    a <- d_t a + (1 - d_t) w,      d_t = min(decay, (1 + t) / (10 + t))

after update t = 0, 1, ...; a starts as the weights do. The second decay lets the first, worst
weights be forgotten soon. Statistics of batch normalisation are averaged alike; integers, such as
their counters, are those of the weights.

Sources: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; d_t is
that of TensorFlow's ExponentialMovingAverage.
"""

from __future__ import annotations

import copy

import torch

from deeplab.model import DeepLab


class AveragedModel:
    """`model` has the average of what `update` was given, in evaluation mode."""

    def __init__(self, model: DeepLab, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: DeepLab, step: int) -> None:
        """Take in the weights after update `step`, 0 the first."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        latest = model.state_dict()
        for name, average in self.model.state_dict().items():
            if average.is_floating_point():
                average.lerp_(latest[name], share)
            else:
                average.copy_(latest[name])
