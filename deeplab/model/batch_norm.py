"""Batch normalisation whose statistics and affine are constants, as DeepLab v2 trains its ResNet.

    y = (x - running_mean) / sqrt(running_var + eps) * weight + bias

in training as in evaluation. `weight` and `bias` are parameters that need no gradient, so they are
counted and saved as in nn.BatchNorm2d, with the same names: weights of either load into the other.
It is not a subclass of nn.BatchNorm2d, so code that converts those (SyncBatchNorm) leaves it alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with fixed statistics and affine: `[B, C, H, W]` -> the same shape."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        # Never read: it is here so that the state dict has the names of nn.BatchNorm2d.
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"
