"""Mean field for a batch of images: the update, what drives its filters, and its operators.

    field_i = -U_i - sum_k after_k,i (F_k(before_k Q))_i penalty_k^T,    Q = softmax(field)

Q starts at softmax(-U). F_k is a Gaussian filter over all pixels, the pixel itself included; before
and after normalise it by n = F_k(1).

Source: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials" (2011), algorithm 1.

The update is composed of differentiable filters; on lattices, where no gradient is wanted, it is
left to `kernels.mean_field`. `torch.compile` sees one operator, crf::mean_field, since the size of
a lattice depends on the data, and so do landmarks and tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from crf.filters import LatticeFilter
from crf.potentials import Normalization
from crf.terms import PairwiseTerm, Settings, lattice_groups, require_finite, terms_of
from kernels import memory
from kernels.dispatch import WAITS
from kernels.meanfield import Term, mean_field
from kernels.operators import opaque_operator
from kernels.validate import Precision


def composed_field(unary: Tensor, terms: Sequence[PairwiseTerm], iterations: int) -> Tensor:
    """The field after some updates, `[B, N, C]` as `unary`; plain PyTorch, differentiable."""
    field = -unary
    for _ in range(iterations):
        field = _updated(unary, terms, field.softmax(2))
    return field


def composed_field_and_divergence(
    unary: Tensor, terms: Sequence[PairwiseTerm], iterations: int
) -> tuple[Tensor, Tensor]:
    """`composed_field`, and the divergence of Q at the start and after each update.

    sum Q log Q + sum U Q + sum_k sum Q energy_k(Q): KL(Q || P) up to a constant, with pairwise
    energies counted twice, as pydensecrf has it. float64 `[iterations + 1, B]`, without gradient.
    """
    field, divergences = -unary, []
    for i in range(iterations + 1):
        marginals = field.softmax(2)
        updated = _updated(unary, terms, marginals)
        cost = marginals.clamp_min(1e-20).log() - updated
        divergences.append((marginals * cost).detach().sum((1, 2), dtype=torch.float64))
        field = updated if i < iterations else field
    return field, torch.stack(divergences)


def gradients(
    grad: Tensor, unary: Tensor, terms: Sequence[PairwiseTerm], iterations: int, marginals: bool
) -> tuple[Tensor, list[Tensor]]:
    """Gradients to `unary` `[B, N, C]` and each penalty, from that of the marginals or the field.

    Back through each update, S_k being a term's normalised filter and P_k its penalty:

        s_k = S_k^T(d field_t+1),  d Q_t = -sum_k s_k P_k,  d P_k = -sum_t s_k^T Q_t,
        d U = -sum_t d field_t

    Q of every update is computed again and kept: iterations * B * N * C numbers.
    """
    trace = [(-unary).softmax(2)]
    for _ in range(iterations):
        trace.append(_updated(unary, terms, trace[-1]).softmax(2))
    last = trace.pop()
    if marginals:
        grad = _through_softmax(grad, last)
    to_unary = -grad
    to_penalties = [torch.zeros_like(term.penalty) for term in terms]
    transposed = [term.transposed() for term in terms]
    for step in reversed(trace):
        to_step = torch.zeros_like(grad)
        for term, to_penalty in zip(transposed, to_penalties, strict=True):
            filtered = term.filtered(grad)
            if to_penalty.ndim == 2:
                to_penalty -= filtered.flatten(0, 1).T @ step.flatten(0, 1)
                to_step -= filtered @ term.penalty.T
            else:
                to_penalty -= (filtered * step).sum((0, 1))
                to_step -= filtered * term.penalty
        grad = _through_softmax(to_step, step)
        to_unary -= grad
    return to_unary, to_penalties


def _through_softmax(grad: Tensor, marginals: Tensor) -> Tensor:
    """The gradient to the field from that of its softmax."""
    return marginals * (grad - (grad * marginals).sum(2, keepdim=True))


def _updated(unary: Tensor, terms: Sequence[PairwiseTerm], marginals: Tensor) -> Tensor:
    field = -unary
    for term in terms:
        field = field - term.energy(marginals)
    return field


def infer(
    unary: Tensor, features: Sequence[Tensor], penalties: Sequence[Tensor], settings: Settings
) -> Tensor:
    """Marginals, or the field, `[B, C, N]` as `unary`."""
    if settings.iterations and not torch.compiler.is_compiling():
        _require_memory(unary, features)
    if settings.method == "auto" and len(unary) != 1:
        images = [infer(u, f, penalties, settings) for u, f in _images(unary, features)]
        return torch.cat(images) if images else unary.new_empty(unary.shape)
    wanted = unary, *features, *penalties
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in wanted)
    if settings.method == "permutohedral" and settings.iterations and not differentiable:
        # Put together at the end: torch's threads would spin on the cores that the lattices want.
        found = [
            infer_on_lattices(unary[group], terms, settings)
            for group, terms in lattice_groups(unary, features, penalties, settings)
        ]
        return found[0] if len(found) == 1 else torch.cat([unary[:0], *found])
    terms = terms_of(features, penalties, len(unary), settings) if settings.iterations else []
    on_lattices = bool(terms) and all(isinstance(term.filter, LatticeFilter) for term in terms)
    if on_lattices and not differentiable:  # what auto found
        return infer_on_lattices(unary, terms, settings)
    field = composed_field(unary.transpose(1, 2).contiguous(), terms, settings.iterations)
    return (field.softmax(2) if settings.marginals else field).transpose(1, 2).contiguous()


def infer_with_divergence(
    unary: Tensor, features: Sequence[Tensor], penalties: Sequence[Tensor], settings: Settings
) -> tuple[Tensor, Tensor]:
    """Marginals `[B, C, N]`, and the divergences of `composed_field_and_divergence`."""
    if settings.method == "auto" and len(unary) > 1:
        found = [
            infer_with_divergence(u, f, penalties, settings) for u, f in _images(unary, features)
        ]
        marginals, divergences = zip(*found, strict=True)
        return torch.cat(marginals), torch.cat(divergences, dim=1)
    terms = terms_of(features, penalties, len(unary), settings)
    field, divergence = composed_field_and_divergence(
        unary.transpose(1, 2).contiguous(), terms, settings.iterations
    )
    return field.softmax(2).transpose(1, 2).contiguous(), divergence


def _images(unary: Tensor, features: Sequence[Tensor]) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Each image of a batch as a batch of one."""
    for b in range(len(unary)):
        yield unary[b : b + 1], [f[b : b + 1] if len(f) > 1 else f for f in features]


def _require_memory(unary: Tensor, features: Sequence[Tensor]) -> None:
    """Refuse images that cannot fit; least are the corners and values of a single one."""
    _, labels, count = unary.shape
    a_corner, a_label = 24, 16  # bytes; together less than any measured need
    needed = count * (a_corner * sum(f.shape[2] + 1 for f in features) + a_label * labels)
    memory.require(
        needed,
        unary.device,
        f"a CRF over {count} pixels with {labels} labels",
        "make the image smaller, or cut it into overlapping parts",
    )


def infer_on_lattices(unary: Tensor, terms: Sequence[PairwiseTerm], settings: Settings) -> Tensor:
    """`infer` for images that share one lattice a term, by `kernels.mean_field`; no gradients."""
    batch, labels, count = unary.shape
    steps = settings.iterations - (0 if settings.marginals else 1)
    order = cast(LatticeFilter, terms[0].filter).order if terms else None
    if order is not None and batch > 1:
        order = (order + count * torch.arange(batch, device=order.device)[:, None]).flatten()
    points = unary.transpose(1, 2).reshape(batch * count, labels)  # a view for a single image
    flat = [_flat_term(term, batch) for term in terms]
    marginals = mean_field(points, flat, steps, order=order).unflatten(0, (batch, count))
    if settings.marginals:
        return marginals.transpose(1, 2).contiguous()
    field = _updated(unary.transpose(1, 2), terms, marginals.contiguous())
    return field.transpose(1, 2).contiguous()


def _flat_term(term: PairwiseTerm, batch: int) -> Term:
    """A term for `kernels.mean_field`: the points of all images, `before` and `after` in order."""
    assert isinstance(term.filter, LatticeFilter)
    (lattice,) = term.filter.lattices
    order = term.filter.order

    def flat(scale: Tensor | None) -> Tensor | None:
        if scale is None:
            return None
        return (scale if order is None else scale[:, order]).expand(batch, -1, -1).flatten()

    before = flat(term.before)
    after = before if term.after is term.before else flat(term.after)  # one tensor: folded once
    return Term(lattice, term.penalty, before, after)


# The operator


@opaque_operator("crf::mean_field", tags=WAITS)
def mean_field_operator(
    unary: Tensor,
    features: Sequence[Tensor],
    penalties: Sequence[Tensor],
    method: str,
    normalization: str,
    iterations: int,
    precision: str,
    eps: float,
    tolerance: float,
    width: int,
    has_gaussian: bool,
    spatial_dims: int,
    marginals: bool,
) -> Tensor:
    """`infer`, opaque; the numbers are those of `Settings`, in their order."""
    require_finite("logits", unary)  # could not be asked while tracing
    settings = Settings(
        method, cast(Normalization, normalization), iterations, cast(Precision, precision), eps,
        tolerance, width, has_gaussian, spatial_dims, marginals,
    )  # fmt: skip
    return infer(unary.contiguous(), features, penalties, settings)


@mean_field_operator.register_fake
def _(
    unary: Tensor,
    features: Sequence[Tensor],
    penalties: Sequence[Tensor],
    method: str,
    normalization: str,
    iterations: int,
    precision: str,
    eps: float,
    tolerance: float,
    width: int,
    has_gaussian: bool,
    spatial_dims: int,
    marginals: bool,
) -> Tensor:
    return unary.new_empty(unary.shape)


@opaque_operator("crf::mean_field_backward", tags=WAITS)
def mean_field_backward_operator(
    grad: Tensor,
    unary: Tensor,
    features: Sequence[Tensor],
    penalties: Sequence[Tensor],
    method: str,
    normalization: str,
    iterations: int,
    precision: str,
    eps: float,
    tolerance: float,
    width: int,
    has_gaussian: bool,
    spatial_dims: int,
    marginals: bool,
) -> list[Tensor]:
    """The gradients to `unary` and to each of `penalties`, in this order.

    Autograd does not reach into an operator, so they are spelled out.
    """
    settings = Settings(
        method, cast(Normalization, normalization), iterations, cast(Precision, precision), eps,
        tolerance, width, has_gaussian, spatial_dims, marginals,
    )  # fmt: skip
    if method == "auto" and len(unary) != 1:
        to_unary, to_penalties = torch.zeros_like(unary), [torch.zeros_like(p) for p in penalties]
        for b, (image, points) in enumerate(_images(unary, features)):
            of_image, *of_penalties = _gradients(
                grad[b : b + 1], image, points, penalties, settings
            )
            to_unary[b] = of_image[0]
            for total, part in zip(to_penalties, of_penalties, strict=True):
                total += part
        return [to_unary, *to_penalties]
    return _gradients(grad, unary, features, penalties, settings)


def _gradients(
    grad: Tensor,
    unary: Tensor,
    features: Sequence[Tensor],
    penalties: Sequence[Tensor],
    settings: Settings,
) -> list[Tensor]:
    terms = terms_of(features, penalties, len(unary), settings)
    inputs = grad.transpose(1, 2).contiguous(), unary.transpose(1, 2).contiguous()
    to_unary, to_penalties = gradients(*inputs, terms, settings.iterations, settings.marginals)
    return [to_unary.transpose(1, 2).contiguous(), *to_penalties]


@mean_field_backward_operator.register_fake
def _(
    grad: Tensor,
    unary: Tensor,
    features: Sequence[Tensor],
    penalties: Sequence[Tensor],
    method: str,
    normalization: str,
    iterations: int,
    precision: str,
    eps: float,
    tolerance: float,
    width: int,
    has_gaussian: bool,
    spatial_dims: int,
    marginals: bool,
) -> list[Tensor]:
    return [unary.new_empty(unary.shape), *(p.new_empty(p.shape) for p in penalties)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    unary, features, penalties, *ctx.settings = inputs
    ctx.num_terms = len(features)
    ctx.save_for_backward(unary, *features, *penalties)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    unary, *tensors = ctx.saved_tensors
    features, penalties = tensors[: ctx.num_terms], tensors[ctx.num_terms :]
    to_unary, *to_penalties = mean_field_backward_operator(
        grad, unary, features, penalties, *ctx.settings
    )
    return to_unary, [None] * ctx.num_terms, to_penalties, *(None,) * len(ctx.settings)


mean_field_operator.register_autograd(_backward, setup_context=_save)
