"""The public function of mean field: validate, choose an implementation, call it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kernels import dispatch, validate
from kernels.meanfield import reference
from kernels.meanfield.filters import LatticeFilter, in_order
from kernels.meanfield.term import LatticeTerm, Term
from kernels.permutohedral.limits import require_own_parts


def mean_field(
    unary: Tensor,
    terms: Sequence[Term],
    iterations: int,
    *,
    start: Tensor | None = None,
    marginals: bool = True,
    impl: str = "auto",
) -> Tensor:
    """Marginals of a fully connected CRF after `iterations` mean-field updates:

        Q <- softmax(-unary - sum_k after_k * (F_k(before_k * Q) @ compatibility_k^T))

    Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
    Potentials" (2011), algorithm 1.

    Args:
        unary: energies (negative log-probabilities) `[B, N, C]`, float32 or float64, of any
            strides: a transposed `[C, N]` costs nothing. +Inf forbids a label.
        terms: the pairwise terms, each with a filter over the N points of B images.
        iterations: how many updates; 0 gives `start`.
        start: the first Q, `[B, N, C]`; None: softmax(-unary).
        marginals: False gives what the last softmax is taken of, `[B, N, C]` logits; without
            iterations they are -unary.
        impl: `"cpu"` (numba, float32) and `"triton"` (CUDA, float32) are fused passes over terms
            whose filters are each a `LatticeFilter` of one lattice; they have no gradients.
            `"triton"` fuses what lies between other filters. `"reference"` is plain PyTorch over
            any filters, on any device, differentiable. `"auto"` takes a fused one where it can and
            no gradient is wanted (`kernels.dispatch.choose("meanfield", ...)` tells which there
            is). On a GPU the host waits once, to check the values of `unary` and the filters'
            order. While a CUDA graph is captured it does not: call it once before, on the same
            tensors.

    Returns:
        `[B, N, C]` with the memory layout of `unary`; the rows of marginals sum to 1.

    Raises:
        TypeError: a dtype other than float32 and float64.
        ValueError: shapes, dtypes or devices that do not fit, energies that hold NaN or -Inf or
            forbid every label of a point, an `impl` that cannot run here, on these filters, or
            with a gradient that is wanted.
        MemoryError: `impl="triton"` where the update does not fit the device.
    """
    _check_arguments(unary, terms, iterations, start, marginals)
    order = _shared_order(terms)
    _check_order_shape(unary, order)
    _check_values(unary, order)
    return mean_field_of_usable(unary, terms, iterations, start, marginals, impl)


def mean_field_of_usable(
    unary: Tensor,
    terms: Sequence[Term],
    iterations: int,
    start: Tensor | None = None,
    marginals: bool = True,
    impl: str = "auto",
) -> Tensor:
    """`mean_field` of arguments that are known to be fit, which spares a GPU's host the wait."""
    order = _shared_order(terms)
    choice = dispatch.choose("meanfield", impl, device=unary.device, dtype=unary.dtype)
    refusal = _why_no_gradient(unary, terms, start)
    composed = _why_not_on_lattices(terms)
    if choice.impl == "cpu":
        refusal = composed or refusal
    if choice.impl == "reference" or (impl == "auto" and refusal is not None):
        if impl == "reference":
            terms = [_plain(term) for term in terms]
        found = reference.mean_field(unary, terms, iterations, start, marginals)
        return torch.empty_like(unary).copy_(found)
    if refusal is not None:
        raise ValueError(f"impl={impl!r} cannot run 'meanfield' here: {refusal}")
    if iterations == 0 and (start is not None or not marginals):
        return torch.empty_like(unary).copy_(-unary if start is None else start)
    if composed is not None:
        fused = dispatch.implementation("meanfield", f"{choice.impl}:composed")
        found = fused.mean_field(unary.detach(), terms, iterations, start, marginals)
        return torch.empty_like(unary).copy_(found)
    output = torch.empty_like(unary)  # keeps the strides of a transposed [C, N]
    if choice.impl == "cpu" and len(unary) == 1 and start is None:
        small = dispatch.implementation("meanfield", "small").mean_field
        if small(unary[0].detach(), terms, iterations, order, marginals, output[0]):
            return output
    if order is not None and len(unary) > 1:
        images = torch.arange(len(unary), device=order.device)
        order = (order + unary.shape[1] * images[:, None]).flatten()
    flat = output[0] if len(unary) == 1 else output.new_empty(output.flatten(0, 1).shape)
    dispatch.implementation("meanfield", choice.impl).mean_field(
        unary[0].detach() if len(unary) == 1 else unary.detach().flatten(0, 1),
        [_on_lattice(term, len(unary)) for term in terms],
        iterations,
        None if start is None else start.detach().flatten(0, 1),
        order,
        marginals,
        flat,
    )
    return output if len(unary) == 1 else output.copy_(flat.view(unary.shape))


def _shared_order(terms: Sequence[Term]) -> Tensor | None:
    """The order in which the lattices hold the points, if the first term has one."""
    return terms[0].filter.order if terms and isinstance(terms[0].filter, LatticeFilter) else None


def _why_not_on_lattices(terms: Sequence[Term]) -> str | None:
    """Why no fused pass goes over the lattices of all terms; None where one does."""
    for k, term in enumerate(terms):
        filter = term.filter
        if not isinstance(filter, LatticeFilter) or filter.reverse or len(filter.lattices) != 1:
            kind = type(filter).__name__
            return f"terms[{k}].filter must be a LatticeFilter of one lattice, not {kind}"
        if filter.order is not _shared_order(terms):
            return f"terms[{k}].filter must visit the points in the order of the first term's"
    return None


def _why_no_gradient(unary: Tensor, terms: Sequence[Term], start: Tensor | None) -> str | None:
    """Why the fused implementations cannot compute what is wanted; None where they can."""
    tensors = [unary, start]
    for term in terms:
        tensors += [term.compatibility, term.before, term.after]
    wanted = any(tensor is not None and tensor.requires_grad for tensor in tensors)
    if wanted and torch.is_grad_enabled():
        return "it has no gradients; use impl='reference', or detach the tensors"
    return None


def _plain(term: Term) -> Term:
    """The term with nothing but plain PyTorch in its filter."""
    if not isinstance(term.filter, LatticeFilter):
        return term
    return replace(term, filter=replace(term.filter, impl="reference"))


def _on_lattice(term: Term, images: int) -> LatticeTerm:
    """The term as the fused implementations take it: the points of all images in one row."""
    assert isinstance(term.filter, LatticeFilter)
    (lattice,) = term.filter.lattices
    order = term.filter.order

    def flat(scale: Tensor | None) -> Tensor | None:
        if scale is None:
            return None
        ordered = in_order(scale, order)
        return (ordered if images == 1 else ordered.expand(images, -1, -1)).flatten()

    before = flat(term.before)
    after = before if term.after is term.before else flat(term.after)  # one tensor: folded once
    return LatticeTerm(lattice, term.compatibility, before, after)


def _check_arguments(
    unary: Tensor, terms: Sequence[Term], iterations: int, start: Tensor | None, marginals: bool
) -> None:
    validate.check_tensor("unary", unary, (torch.float32, torch.float64))
    fits = unary.ndim == 3 and unary.shape[2] > 0
    validate.check_shape("unary", unary, "[B, N, C] with at least one label", fits)
    batch, count, labels = unary.shape
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations must be an int of at least 0, not {iterations!r}")
    _check_like(unary, "start", start, unary.shape)
    if start is not None and iterations == 0 and not marginals:
        raise ValueError("marginals=False with a start must have at least 1 iteration, not 0")
    for k, term in enumerate(terms):
        if isinstance(term.filter, LatticeFilter):
            points = sum(lattice.num_points for lattice in term.filter.lattices)
            if points != batch * count:
                raise ValueError(
                    f"terms[{k}].filter must be over the {batch * count} points of unary, "
                    f"not over {points}"
                )
            for lattice in term.filter.lattices:
                _check_like(unary, f"terms[{k}].filter.lattices", lattice.weights, None)
                require_own_parts(lattice)
        square = term.compatibility.ndim == 2
        shape = (labels, labels) if square else (labels,)
        _check_like(unary, f"terms[{k}].compatibility", term.compatibility, shape)
        for name, scale in (("before", term.before), ("after", term.after)):
            images = len(scale) if scale is not None and scale.ndim == 3 else batch
            expected = (1 if images == 1 else batch, count, 1)
            _check_like(unary, f"terms[{k}].{name}", scale, expected)


def _check_order_shape(unary: Tensor, order: Tensor | None) -> None:
    if order is None:
        return
    count = unary.shape[1]
    if order.dtype != torch.int64 or order.shape != (count,) or order.device != unary.device:
        raise ValueError(
            f"order of the filters must be an int64 permutation [{count}] on {unary.device}, not "
            f"{order.dtype} {list(order.shape)} on {order.device}"
        )


def _check_values(unary: Tensor, order: Tensor | None) -> None:
    """Refuse values that compiled code would trust: it writes where `order` says."""
    if torch.compiler.is_compiling() or not unary.numel():
        return
    if unary.device.type == "cpu":
        # By NumPy: torch's threads would spin on the cores that the first pass wants.
        usable = bool(np.isfinite(unary.detach().numpy().min(axis=2)).all())
        permutes = order is None or _permutes_on_cpu(order)
    elif unary.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return
    else:
        flags = list(unary.detach().amin(dim=2).aminmax())
        if order is not None:
            flags.append(_permutes(order).to(unary.dtype))
        low, high, *flags = torch.stack(flags).tolist()  # one wait for all
        usable, permutes = math.isfinite(low) and math.isfinite(high), all(flags)
    if not usable:
        raise ValueError(
            "unary holds NaN or -Inf, or +Inf for every label of a point; energies are "
            "-log(probability): clip probabilities away from NaN, and logits to a finite range"
        )
    if not permutes:
        assert order is not None
        rows = order.numpy(force=True)
        raise ValueError(
            f"order of the filters must hold each of 0 ... {len(rows) - 1} once, as torch.argsort "
            f"gives it, not {len(np.unique(rows))} different ones from {rows.min()} to {rows.max()}"
        )


def _permutes_on_cpu(order: Tensor) -> bool:
    rows = order.numpy()
    seen = np.zeros(len(rows), bool)
    if len(rows) and rows.min() >= 0 and rows.max() < len(rows):
        seen[rows] = True
    return bool(seen.all())


def _permutes(order: Tensor) -> Tensor:
    """Whether `order` is a permutation: a bool on its device."""
    seen = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    inside = (order >= 0) & (order < len(order))
    seen.index_fill_(0, order.clamp(0, len(order) - 1), 1)
    return (seen & inside).all()


def _check_like(
    unary: Tensor, name: str, tensor: Tensor | None, shape: Sequence[int] | None
) -> None:
    if tensor is not None:
        fits = shape is None or tensor.shape == tuple(shape)
        validate.check_shape(name, tensor, "{wanted}", fits, wanted=list(shape or ()))
        validate.check_alike(name, tensor, "unary", unary)
