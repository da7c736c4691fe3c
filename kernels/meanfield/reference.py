"""Mean field in plain PyTorch: the oracle, over filters of any kind, differentiable.

    logits_i = -U_i - sum_k after_k,i (F_k(before_k Q))_i compatibility_k^T,    Q = softmax(logits)

Q starts at softmax(-U). F_k is a Gaussian filter over all points, the point itself included; before
and after normalise it by n = F_k(1).

Source: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials" (2011), algorithm 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.meanfield.term import Term


def mean_field(
    unary: Tensor,
    terms: Sequence[Term],
    iterations: int,
    start: Tensor | None = None,
    marginals: bool = True,
) -> Tensor:
    """See `kernels.mean_field`; any device and float dtype, differentiable any number of times."""
    if iterations == 0 and start is not None:
        return start
    logits = -unary if start is None else update(unary, terms, start)
    for _ in range(iterations - (start is not None)):
        logits = update(unary, terms, logits.softmax(2))
    return logits.softmax(2) if marginals else logits


def update(unary: Tensor, terms: Sequence[Term], marginals: Tensor) -> Tensor:
    """The logits after one update of Q, `[B, N, C]`."""
    logits = -unary
    for term in terms:
        logits = logits - term.energy(marginals)
    return logits


def mean_field_and_divergence(
    unary: Tensor, terms: Sequence[Term], iterations: int
) -> tuple[Tensor, Tensor]:
    """Marginals, and the divergence of Q from the model at the start and after each update.

    sum Q log Q + sum U Q + sum_k sum Q energy_k(Q): KL(Q || P) up to a constant, with pairwise
    energies counted twice, as pydensecrf has it. float64 `[iterations + 1, B]`, without gradient.
    """
    marginals, divergences = (-unary).softmax(2), []
    for i in range(iterations + 1):
        logits = update(unary, terms, marginals)
        cost = marginals.clamp_min(1e-20).log() - logits
        divergences.append((marginals * cost).detach().sum((1, 2), dtype=torch.float64))
        marginals = logits.softmax(2) if i < iterations else marginals
    return marginals, torch.stack(divergences)


def gradients(
    grad: Tensor, unary: Tensor, terms: Sequence[Term], iterations: int, marginals: bool
) -> tuple[Tensor, list[Tensor]]:
    """Gradients to `unary` `[B, N, C]` and each compatibility, from that of `mean_field`.

    Back through each update, S_k being a term's normalised filter and M_k its compatibility:

        s_k = S_k^T(d logits_t+1),  d Q_t = -sum_k s_k M_k,  d M_k = -sum_t s_k^T Q_t,
        d U = -sum_t d logits_t

    Filters and compatibilities commute, so that the gradient to M_k costs no filter of its own. Q
    of every update is computed again and kept: iterations * B * N * C numbers.
    """
    trace = [(-unary).softmax(2)]
    for _ in range(iterations):
        trace.append(update(unary, terms, trace[-1]).softmax(2))
    last = trace.pop()
    if marginals:
        grad = _through_softmax(grad, last)
    to_unary = -grad
    to_compatibilities = [torch.zeros_like(term.compatibility) for term in terms]
    transposed = [term.transposed() for term in terms]
    for step in reversed(trace):
        to_step = torch.zeros_like(grad)
        for term, to_compatibility in zip(transposed, to_compatibilities, strict=True):
            filtered = term.filtered(grad)
            if to_compatibility.ndim == 2:
                to_compatibility -= filtered.flatten(0, 1).T @ step.flatten(0, 1)
                to_step -= filtered @ term.compatibility.T
            else:
                to_compatibility -= (filtered * step).sum((0, 1))
                to_step -= filtered * term.compatibility
        grad = _through_softmax(to_step, step)
        to_unary -= grad
    return to_unary, to_compatibilities


def _through_softmax(grad: Tensor, marginals: Tensor) -> Tensor:
    """The gradient to logits from that of their softmax."""
    return marginals * (grad - (grad * marginals).sum(2, keepdim=True))
