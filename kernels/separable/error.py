"""How far a separable filter is off: some of its rows against the sum over all pairs."""

from dataclasses import dataclass

import torch
from torch import Tensor

SEED = 0
CHUNK_BYTES = 2**24  # of the kernel between some rows and all points


@dataclass(frozen=True)
class SeparableError:
    """|F(v) - sum_j K_ij v_j| / n_i, n_i = sum_j K_ij, over rows and channels.

    Attributes:
        maximum: the largest.
        mean: the mean.
        rows: how many rows were compared.
    """

    maximum: float
    mean: float
    rows: int


def measure(filtered: Tensor, values: Tensor, features: Tensor, sample: int) -> SeparableError:
    """The error of `filtered` `[N, C]` at `sample` points, the same ones each time."""
    generator = torch.Generator().manual_seed(SEED)
    rows = torch.randperm(len(features), generator=generator)[:sample].to(features.device)
    inputs = torch.cat([values, torch.ones_like(values[:, :1])], 1)
    size = max(1, CHUNK_BYTES // (len(features) * features.element_size()))
    shares = []
    for chunk in rows.split(size):
        squares = features.new_zeros(len(chunk), len(features))
        for q, f in zip(features[chunk].T, features.T, strict=True):
            squares += (q[:, None] - f).square_()
        exact = squares.mul_(-0.5).exp_() @ inputs
        mass = exact[:, -1:]
        shares.append((filtered[chunk] - exact[:, :-1]).abs() / mass)
    share = torch.cat(shares)
    return SeparableError(share.max().item(), share.mean().item(), len(rows))
