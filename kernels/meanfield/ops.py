"""Mean field of a batch of images from its features, and the operator that compilers see.

    kernels::mean_field(unary, features, compatibilities, settings...)          `infer`
    kernels::mean_field_backward(grad, unary, features, compatibilities, settings...)

The equation is that of kernels/meanfield/reference.py. `torch.compile` takes the operator whole,
since the size of a lattice depends on the data, and so do landmarks and tiles. Its backward is
spelled out: autograd does not reach into an operator.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from kernels import dispatch, memory
from kernels._numba import threads
from kernels.dispatch import WAITS
from kernels.meanfield import build, reference
from kernels.meanfield.api import mean_field_of_usable
from kernels.meanfield.build import (
    FilterSettings,
    ImageTerms,
    lattice_groups,
    not_finite,
    terms_of,
)
from kernels.meanfield.filters import LatticeFilter
from kernels.meanfield.kept import KeptTerm
from kernels.meanfield.term import Term
from kernels.operators import like_first, opaque_operator


def infer(
    unary: Tensor,
    features: Sequence[Tensor],
    compatibilities: Sequence[Tensor],
    settings: FilterSettings,
    kept: KeptTerm | None = None,
) -> Tensor:
    """Marginals, or logits, `[B, C, N]`, of mean field over the filters of some features.

    Differentiable in `unary` and the compatibilities, with `method="exact"` in the features too.

    Args:
        unary: energies `[B, C, N]`, -log softmax of finite logits: nothing looks at them again.
        features: of each term, `[B, N, D]` or `[1, N, D]` for all images, divided by sigma.
        compatibilities: of each term, `[C]` or `[C, C]`.
        kept: the smoothness of images of one size, from one call to the next; used where lattices
            are made on a CPU without a gradient.
    """
    if settings.iterations and not torch.compiler.is_compiling():
        _require_memory(unary, features)
    if settings.method == "auto" and len(unary) != 1:
        images = [infer(u, f, compatibilities, settings, kept) for u, f in _images(unary, features)]
        return torch.cat(images) if images else unary.new_empty(unary.shape)
    wanted = unary, *features, *compatibilities
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in wanted)
    if settings.method == "permutohedral" and settings.iterations and not differentiable:
        # Put together at the end: torch's threads would spin on the cores that the lattices want.
        lattices = dispatch.choose("permutohedral", device=unary.device, dtype=unary.dtype)
        apart = build.images_together(features, len(unary), unary.shape[1]) == 1  # on a CPU always
        if unary.device.type == "cpu" and lattices.impl != "triton" and apart:
            found = _image_by_image(unary, features, compatibilities, settings, kept)
        else:
            found = [
                _update(unary[group], terms, settings)
                for group, terms in lattice_groups(unary, features, compatibilities, settings)
            ]
        return found[0] if len(found) == 1 else torch.cat([unary[:0], *found])
    terms = terms_of(features, compatibilities, len(unary), settings) if settings.iterations else []
    return _update(unary, terms, settings, differentiable)


def _image_by_image(
    unary: Tensor,
    features: Sequence[Tensor],
    compatibilities: Sequence[Tensor],
    settings: FilterSettings,
    kept: KeptTerm | None,
) -> list[Tensor]:
    """The updates of each image `[1, C, N]` on a CPU; of small images, several at a time."""
    small, count = dispatch.implementation("meanfield", "small"), unary.shape[2]
    # An image that a thread has to itself is small up to MOST_POINTS, if there is one for each.
    one_each = len(unary) >= threads.number() and count <= small.MOST_POINTS
    side_by_side = len(unary) > 1 and (one_each or small.is_small(count))
    with threads.alone() if side_by_side else nullcontext():  # in as many parts as they will want
        terms = ImageTerms(features, compatibilities, len(unary), settings, kept)

    @torch.no_grad()  # in every thread: nothing here is to be recorded
    def of_image(image: int) -> Tensor:
        return _update(unary[image : image + 1], terms.of(image), settings)

    images = range(len(unary))
    if side_by_side:
        return threads.run(of_image, [(image,) for image in images])
    return [of_image(image) for image in images]


def _update(
    unary: Tensor, terms: Sequence[Term], settings: FilterSettings, differentiable: bool = False
) -> Tensor:
    """The updates of images `[B, C, N]`, fused where no gradient is wanted."""
    points = unary.transpose(1, 2)
    on_lattices = bool(terms) and all(isinstance(term.filter, LatticeFilter) for term in terms)
    if on_lattices and not differentiable:
        found = mean_field_of_usable(points, terms, settings.iterations, None, settings.marginals)
    else:
        choice = dispatch.choose("meanfield", device=unary.device, dtype=unary.dtype)
        fused = choice.impl == "triton" and not differentiable
        of = dispatch.implementation("meanfield", "triton:composed") if fused else reference
        found = of.mean_field(
            points.contiguous(), terms, settings.iterations, marginals=settings.marginals
        )
    return found.transpose(1, 2).contiguous()


def infer_with_divergence(
    unary: Tensor,
    features: Sequence[Tensor],
    compatibilities: Sequence[Tensor],
    settings: FilterSettings,
) -> tuple[Tensor, Tensor]:
    """Marginals `[B, C, N]`, and the divergences of `reference.mean_field_and_divergence`."""
    if settings.method == "auto" and len(unary) > 1:
        found = [
            infer_with_divergence(u, f, compatibilities, settings)
            for u, f in _images(unary, features)
        ]
        return torch.cat([q for q, _ in found]), torch.cat([kl for _, kl in found], dim=1)
    terms = terms_of(features, compatibilities, len(unary), settings)
    marginals, divergence = reference.mean_field_and_divergence(
        unary.transpose(1, 2).contiguous(), terms, settings.iterations
    )
    return marginals.transpose(1, 2).contiguous(), divergence


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


TENSORS = "Tensor unary, Tensor[] features, Tensor[] compatibilities"
SETTINGS = (  # the attributes of `FilterSettings`, in their order
    "str method, str normalization, int iterations, str precision, float eps, float tolerance, "
    "SymInt width, bool has_gaussian, int spatial_dims, bool marginals"
)


@opaque_operator("kernels::mean_field", schema=f"({TENSORS}, {SETTINGS}) -> Tensor", tags=WAITS)
def mean_field_operator(
    unary: Tensor, features: Sequence[Tensor], compatibilities: Sequence[Tensor], *settings: Any
) -> Tensor:
    """`infer`, opaque; the settings are those of `FilterSettings`, in their order."""
    if not unary.isfinite().all():  # could not be asked while tracing
        raise ValueError(not_finite("logits"))
    return infer(unary.contiguous(), features, compatibilities, FilterSettings(*settings))


mean_field_operator.register_fake(like_first)


@opaque_operator(
    "kernels::mean_field_backward",
    schema=f"(Tensor grad, {TENSORS}, {SETTINGS}) -> Tensor[]",
    tags=WAITS,
)
def mean_field_backward_operator(
    grad: Tensor,
    unary: Tensor,
    features: Sequence[Tensor],
    compatibilities: Sequence[Tensor],
    *settings: Any,
) -> list[Tensor]:
    """The gradients to `unary` and to each of `compatibilities`, in this order."""
    how = FilterSettings(*settings)
    if how.method != "auto" or len(unary) == 1:
        return _gradients(grad, unary, features, compatibilities, how)
    totals = [torch.zeros_like(unary), *(torch.zeros_like(c) for c in compatibilities)]
    for b, (image, points) in enumerate(_images(unary, features)):
        of_image, *parts = _gradients(grad[b : b + 1], image, points, compatibilities, how)
        totals[0][b] = of_image[0]
        for total, part in zip(totals[1:], parts, strict=True):
            total += part
    return totals


def _gradients(
    grad: Tensor,
    unary: Tensor,
    features: Sequence[Tensor],
    compatibilities: Sequence[Tensor],
    settings: FilterSettings,
) -> list[Tensor]:
    terms = terms_of(features, compatibilities, len(unary), settings)
    to_unary, to_compatibilities = reference.gradients(
        grad.transpose(1, 2).contiguous(),
        unary.transpose(1, 2).contiguous(),
        terms,
        settings.iterations,
        settings.marginals,
    )
    return [to_unary.transpose(1, 2).contiguous(), *to_compatibilities]


@mean_field_backward_operator.register_fake
def _(
    grad: Tensor, unary: Tensor, features: Sequence[Tensor], compatibilities: Any, *_: Any
) -> list[Tensor]:
    return [unary.new_empty(unary.shape), *(c.new_empty(c.shape) for c in compatibilities)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    unary, features, compatibilities, *ctx.settings = inputs
    ctx.num_terms = len(features)
    ctx.save_for_backward(unary, *features, *compatibilities)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    unary, *tensors = ctx.saved_tensors
    features, compatibilities = tensors[: ctx.num_terms], tensors[ctx.num_terms :]
    to_unary, *to_compatibilities = mean_field_backward_operator(
        grad, unary, features, compatibilities, *ctx.settings
    )
    return to_unary, [None] * ctx.num_terms, to_compatibilities, *(None,) * len(ctx.settings)


mean_field_operator.register_autograd(_backward, setup_context=_save)
