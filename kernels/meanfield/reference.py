"""Mean field in plain PyTorch: the oracle.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials"
(2011), algorithm 1:  Q <- softmax(-unary - sum_k after_k (F_k(before_k Q) @ penalty_k^T)).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

import kernels.permutohedral.reference as lattice_filter
from kernels.meanfield.term import Term


def mean_field(
    unary: torch.Tensor,
    terms: Sequence[Term],
    iterations: int,
    start: torch.Tensor | None = None,
    order: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `kernels.mean_field`; any device and float dtype."""
    marginals = torch.softmax(-unary, dim=1) if start is None else start
    for _ in range(iterations):
        field = -unary
        for term in terms:
            field = field - _pairwise_energy(term, marginals, order)
        marginals = torch.softmax(field, dim=1)
    return torch.empty_like(unary).copy_(marginals)


def _pairwise_energy(
    term: Term, marginals: torch.Tensor, order: torch.Tensor | None
) -> torch.Tensor:
    values = marginals if order is None else marginals[order]
    if term.before is not None:
        values = values * term.before[:, None]
    values = lattice_filter.filter(term.lattice, values)
    if term.after is not None:
        values = values * term.after[:, None]
    if order is not None:
        values = torch.empty_like(values).index_copy(0, order, values)
    return values @ term.penalty.T if term.penalty.ndim == 2 else values * term.penalty
