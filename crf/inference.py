"""Mean field for a batch of images: the update, what drives its filters, and its operators.

    field_i = -U_i - sum_k after_k,i (F_k(before_k Q))_i penalty_k^T,    Q = softmax(field)

Q starts at softmax(-U). F_k is a Gaussian filter over all pixels, the pixel itself included; before
and after normalise it by n = F_k(1).

Source: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials" (2011), algorithm 1.

On lattices, the update is composed of differentiable filters where a gradient is wanted, and left
to `kernels.mean_field` where none is. `torch.compile` sees one operator, crf::lattice_mean_field,
since the size of a lattice depends on the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from crf.potentials import Normalization, normalizers, pixel_order, reference_lattice
from kernels.gaussian import Lattice, apply_lattice, gaussian_filter
from kernels.meanfield import Term, mean_field


class Filter(Protocol):
    """A Gaussian filter F for each image of a batch."""

    def __call__(self, values: Tensor) -> Tensor:
        """F(values), `[B, N, C]`."""
        ...

    def transposed(self) -> Filter:
        """The transpose of F; F itself where it is symmetric."""
        ...


@dataclass(frozen=True)
class PairwiseTerm:
    """One pairwise term of a batch.

    Attributes:
        filter: the Gaussian filter F.
        penalty: `[C]`, a diagonal, or `[C, C]`.
        before: `[B, N, 1]`, what Q is multiplied by before the filter; None: 1.
        after: `[B, N, 1]`, what the result is multiplied by; None: 1. B may be 1 for all images.
    """

    filter: Filter
    penalty: Tensor
    before: Tensor | None
    after: Tensor | None

    @classmethod
    def normalized(
        cls, filter: Filter, penalty: Tensor, normalization: Normalization, ones: Tensor
    ) -> PairwiseTerm:
        """A term whose filter is normalised by its own mass, F(`ones` `[B, N, 1]`)."""
        if normalization == "none":
            return cls(filter, penalty, None, None)
        return cls(filter, penalty, *normalizers(filter(ones), normalization))

    def energy(self, marginals: Tensor) -> Tensor:
        """What each label of each pixel pays, `[B, N, C]`."""
        values = marginals if self.before is None else marginals * self.before
        values = self.filter(values)
        values = values if self.after is None else values * self.after
        return values @ self.penalty.T if self.penalty.ndim == 2 else values * self.penalty

    def transposed(self) -> PairwiseTerm:
        """The term whose energy is the transpose of this one's."""
        penalty = self.penalty.T if self.penalty.ndim == 2 else self.penalty
        return PairwiseTerm(self.filter.transposed(), penalty, self.after, self.before)


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


def unary_gradient(
    grad: Tensor, unary: Tensor, terms: Sequence[PairwiseTerm], iterations: int, marginals: bool
) -> Tensor:
    """The gradient to `unary` `[B, N, C]` from that of the marginals or of the field.

    Back through each update: d Q_t = -sum_k energy_k^T(d field_t+1), d U = -sum_t d field_t.
    """
    trace = [(-unary).softmax(2)]
    for _ in range(iterations):
        trace.append(_updated(unary, terms, trace[-1]).softmax(2))
    last = trace.pop()
    if marginals:
        grad = _through_softmax(grad, last)
    total = -grad
    transposed = [term.transposed() for term in terms]
    for step in reversed(trace):
        grad = _through_softmax(_updated(torch.zeros_like(grad), transposed, grad), step)
        total -= grad
    return total


def _through_softmax(grad: Tensor, marginals: Tensor) -> Tensor:
    """The gradient to the field from that of its softmax."""
    return marginals * (grad - (grad * marginals).sum(2, keepdim=True))


def _updated(unary: Tensor, terms: Sequence[PairwiseTerm], marginals: Tensor) -> Tensor:
    field = -unary
    for term in terms:
        field = field - term.energy(marginals)
    return field


def require_finite(name: str, tensor: Tensor) -> None:
    """Refuse NaN and Inf."""
    if not tensor.isfinite().all():
        raise ValueError(
            f"{name} must be finite, but hold NaN or Inf; for the logarithm of probabilities, "
            "clip these first"
        )


# Filters


@dataclass(frozen=True)
class LatticeFilter:
    """One lattice for each image, or a single one for all of them.

    Point i of the lattices is pixel order[i] of the values; None: i.
    """

    lattices: Sequence[Lattice]
    order: Tensor | None = None
    reverse: bool = False  # blur in reverse

    def __call__(self, values: Tensor) -> Tensor:
        if not len(values):
            return values
        ordered = values if self.order is None else values[:, self.order]
        filtered = torch.stack(
            [
                apply_lattice(self.of_image(b), image, reverse=self.reverse)
                for b, image in enumerate(ordered)
            ]
        )
        if self.order is None:
            return filtered
        return torch.empty_like(filtered).index_copy(1, self.order, filtered)

    def transposed(self) -> LatticeFilter:
        return LatticeFilter(self.lattices, self.order, not self.reverse)

    def of_image(self, index: int) -> Lattice:
        return self.lattices[index if len(self.lattices) > 1 else 0]


@dataclass(frozen=True)
class PairFilter:
    """All pairs of `features` `[B, N, D]`."""

    features: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        return gaussian_filter(values, self.features, method="exact")

    def transposed(self) -> PairFilter:
        return self


@dataclass(frozen=True)
class GridFilter:
    """The Gaussian of positions on a grid, which is a pass over columns times one over rows.

    Attributes:
        rows: `[H, H]`, exp(-(y - y')^2 / (2 sigma_y^2)).
        columns: `[W, W]`, the same for x.
    """

    rows: Tensor
    columns: Tensor

    @classmethod
    def over(cls, height: int, width: int, sigmas: Sequence[float], like: Tensor) -> GridFilter:
        """The filter of a grid, sigmas (x, y) in pixels."""

        def gaussian(length: int, sigma: float) -> Tensor:
            x = torch.arange(length, dtype=like.dtype, device=like.device) / sigma
            return (x[:, None] - x).square().mul(-0.5).exp()

        return cls(gaussian(height, sigmas[1]), gaussian(width, sigmas[0]))

    def __call__(self, values: Tensor) -> Tensor:
        grid = values.unflatten(1, (self.rows.shape[0], self.columns.shape[0]))
        across = self.columns @ grid
        return (self.rows @ across.flatten(2)).reshape(grid.shape).flatten(1, 2)

    def transposed(self) -> GridFilter:
        return self


# On lattices


def lattice_terms(
    features: Sequence[Tensor],
    penalties: Sequence[Tensor],
    normalization: Normalization,
    order: Tensor | None = None,
) -> list[PairwiseTerm]:
    """Terms filtered on lattices of each of `features`, `[B, N, D]` or `[1, N, D]` for all."""
    terms = []
    for points, penalty in zip(features, penalties, strict=True):
        ordered = points if order is None else points[:, order]
        filter = LatticeFilter([reference_lattice(image) for image in ordered], order)
        ones = points.new_ones(*points.shape[:2], 1)
        terms.append(PairwiseTerm.normalized(filter, penalty, normalization, ones))
    return terms


def infer_on_lattices(
    unary: Tensor,
    features: Sequence[Tensor],
    penalties: Sequence[Tensor],
    normalization: Normalization,
    iterations: int,
    width: int,
    marginals: bool,
) -> Tensor:
    """Marginals, or the field, `[B, C, N]` as `unary`, of images `width` pixels wide."""
    if torch.is_grad_enabled() and unary.requires_grad:
        terms = lattice_terms(features, penalties, normalization)
        field = composed_field(unary.transpose(1, 2).contiguous(), terms, iterations)
        return (field.softmax(2) if marginals else field).transpose(1, 2).contiguous()
    if iterations == 0:
        return (-unary).softmax(1) if marginals else -unary

    order = pixel_order(unary.shape[2] // width, width).to(unary.device)
    terms = lattice_terms(features, penalties, normalization, order)
    steps = iterations if marginals else iterations - 1
    output = torch.empty_like(unary)
    for b, of_image in enumerate(_terms_by_image(terms, len(unary))):
        output[b] = mean_field(unary[b].T, of_image, steps, order=order).T
    if marginals:
        return output
    field = _updated(unary.transpose(1, 2), terms, output.transpose(1, 2).contiguous())
    return field.transpose(1, 2).contiguous()


def _terms_by_image(terms: Sequence[PairwiseTerm], batch: int) -> Iterator[list[Term]]:
    """The terms of each image, for `kernels.mean_field`: `before` and `after` in lattice order."""
    for b in range(batch):
        of_image = []
        for term in terms:
            assert isinstance(term.filter, LatticeFilter)
            before, after = (
                None if scale is None else scale[b if len(scale) > 1 else 0, term.filter.order, 0]
                for scale in (term.before, term.after)
            )
            after = before if term.after is term.before else after  # one tensor: folded once
            of_image.append(Term(term.filter.of_image(b), term.penalty, before, after))
        yield of_image


@torch.library.custom_op("crf::lattice_mean_field", mutates_args=())
def lattice_mean_field(
    unary: Tensor,
    features: Sequence[Tensor],
    penalties: Sequence[Tensor],
    normalization: str,
    iterations: int,
    width: int,
    marginals: bool,
) -> Tensor:
    """`infer_on_lattices`, opaque."""
    require_finite("logits", unary)  # could not be asked while tracing
    settings = cast(Normalization, normalization), iterations, width, marginals
    return infer_on_lattices(unary.contiguous(), features, penalties, *settings)


@lattice_mean_field.register_fake
def _(
    unary: Tensor,
    features: Sequence[Tensor],
    penalties: Sequence[Tensor],
    normalization: str,
    iterations: int,
    width: int,
    marginals: bool,
) -> Tensor:
    return unary.new_empty(unary.shape)


@torch.library.custom_op("crf::lattice_mean_field_backward", mutates_args=())
def lattice_mean_field_backward(
    grad: Tensor,
    unary: Tensor,
    features: Sequence[Tensor],
    penalties: Sequence[Tensor],
    normalization: str,
    iterations: int,
    width: int,
    marginals: bool,
) -> Tensor:
    """The gradient to `unary`; autograd does not reach into an operator, so it is spelled out."""
    terms = lattice_terms(features, penalties, cast(Normalization, normalization))
    inputs = grad.transpose(1, 2).contiguous(), unary.transpose(1, 2).contiguous()
    return unary_gradient(*inputs, terms, iterations, marginals).transpose(1, 2).contiguous()


@lattice_mean_field_backward.register_fake
def _(
    grad: Tensor,
    unary: Tensor,
    features: Sequence[Tensor],
    penalties: Sequence[Tensor],
    normalization: str,
    iterations: int,
    width: int,
    marginals: bool,
) -> Tensor:
    return unary.new_empty(unary.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    unary, features, penalties, *ctx.settings = inputs
    ctx.num_terms = len(features)
    ctx.save_for_backward(unary, *features, *penalties)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    unary, *tensors = ctx.saved_tensors
    features, penalties = tensors[: ctx.num_terms], tensors[ctx.num_terms :]
    gradient = lattice_mean_field_backward(grad, unary, features, penalties, *ctx.settings)
    none = [None] * ctx.num_terms
    return gradient, none, none, *(None,) * len(ctx.settings)


lattice_mean_field.register_autograd(_backward, setup_context=_save)
