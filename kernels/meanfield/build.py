"""The pairwise terms of a batch, made from features: filters, normalisation, shared lattices.

On a GPU the images of a batch share lattices, as many as fit: one build a term, one wait for the
host for all terms, and launches of a single image. On a CPU each image has its own, since what
one image needs stays in the caches: all threads take a part of a large one, and small ones stand
side by side.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from kernels import NotSeparable, memory
from kernels.meanfield.filters import (
    Filter,
    GridFilter,
    LatticeFilter,
    PairFilter,
    SeparableFilter,
    TileFilter,
    pixel_order,
    reference_lattices,
)
from kernels.meanfield.kept import KeptTerm
from kernels.meanfield.term import Normalization, Term
from kernels.validate import Precision

logger = logging.getLogger(__name__)

MOST_AXES = 3  # positions that a separable filter takes; further ones count as colours
MOST_POINTS = 2**22  # of images that share a lattice: with more, a GPU is no busier
MOST_ENTRIES = 2**31 - 1  # points times corners, of all terms: mean field numbers them in 32 bits


@dataclass(frozen=True)
class FilterSettings:
    """How to filter and how often; the attributes are those of `DenseCRF`."""

    method: str
    normalization: Normalization
    iterations: int
    precision: Precision
    eps: float
    tolerance: float
    width: int  # of the images in pixels; 0: the points are no image's
    has_gaussian: bool  # whether the first term is the smoothness of a grid of that width
    spatial_dims: int  # how many of a term's features are positions, for the separable filter
    marginals: bool  # whether the softmax of the last logits is wanted, or these


def terms_of(
    features: Sequence[Tensor],
    compatibilities: Sequence[Tensor],
    batch: int,
    settings: FilterSettings,
) -> list[Term]:
    """Differentiable terms of `features`, `[batch, N, D]` or `[1, N, D]` for all images."""
    if not features:
        return []
    together = images_together(features, batch, labels=len(compatibilities[0]))
    filters, _ = filters_of(features, batch, settings, together)
    terms = []
    for filter, points, compatibility in zip(filters, features, compatibilities, strict=True):
        images = len(points) if isinstance(filter, LatticeFilter | GridFilter) else batch
        ones = points.new_ones(images, points.shape[1], 1)
        term = Term.normalized(filter, compatibility, settings.normalization, ones)
        on_lattices = isinstance(filter, LatticeFilter)
        terms.append(_repeated(term, batch, together) if on_lattices and images != batch else term)
    return terms


def filters_of(
    features: Sequence[Tensor], batch: int, settings: FilterSettings, together: int = 1
) -> tuple[list[Filter], str | None]:
    """The filter of each term, and why "auto" did not take what it takes if it can.

    Lattices, `together` images on each, and passes over a grid are of one image where `features`
    are; other filters are of all images.

    "auto" is of one image: separable, or permutohedral where that takes too many landmarks.
    """
    if settings.method == "auto":
        try:
            return filters_of(features, batch, replace(settings, method="separable"))
        except NotSeparable as error:
            logger.debug("method='auto' runs 'permutohedral': %s", error)
            of_lattice = replace(settings, method="permutohedral")
            return filters_of(features, batch, of_lattice, together)[0], str(error)
    if settings.method == "permutohedral" or not features:
        return [LatticeFilter.over(points, together) for points in features], None
    count = 1 if settings.has_gaussian else 0
    grids = [GridFilter.of(points, settings.width) for points in features[:count]]
    others = [points.expand(batch, -1, -1) for points in features[count:]]
    if torch.compiler.is_compiling():  # only where a gradient is wanted
        return [*grids, *(PairFilter(points, settings.precision) for points in others)], None
    told = _known([
        *(grid.counts() for grid in grids),
        *(torch.stack(points.detach().aminmax(dim=1), 1) for points in others),  # [B, 2, D]
    ])  # fmt: skip
    cut = [grid.cut(*map(int, counts)) for grid, counts in zip(grids, told, strict=False)]
    filters = [_filter(*each, settings) for each in zip(others, told[count:], strict=True)]
    return [*cut, *filters], None


def _known(tensors: Sequence[Tensor]) -> list[np.ndarray[Any, Any]]:
    """The numbers of some tensors of one device; the host waits once for all of them."""
    numbers = torch.cat([tensor.flatten().double() for tensor in tensors]).tolist()
    parts = np.split(np.array(numbers), np.cumsum([tensor.numel() for tensor in tensors])[:-1])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _filter(points: Tensor, ranges: np.ndarray[Any, Any], settings: FilterSettings) -> Filter:
    if settings.method == "separable":
        dims = min(settings.spatial_dims, points.shape[2], MOST_AXES)
        options = settings.tolerance, settings.precision, ranges.tolist()
        return SeparableFilter.over(points, dims, *options)
    if not np.isfinite(ranges).all():  # here, and not at each call of the filter
        raise ValueError(not_finite("features"))
    if points.requires_grad and torch.is_grad_enabled():
        return PairFilter(points, settings.precision)
    return TileFilter.over(points, settings.precision, settings.eps)


def lattice_groups(
    unary: Tensor,
    features: Sequence[Tensor],
    compatibilities: Sequence[Tensor],
    settings: FilterSettings,
) -> Iterator[tuple[slice, list[Term]]]:
    """Images that share lattices, and their terms with one lattice each, for `kernels.mean_field`.

    Only the lattices of one group and those of features that all images share exist at a time.
    """
    batch, labels, count = unary.shape
    together = images_together(features, batch, labels)
    shared: dict[int, Term] = {}  # of features that all images share
    for first in range(0, batch, together):
        images = slice(first, min(first + together, batch))
        own = [k for k in range(len(features)) if k not in shared]
        points = [features[k] if len(features[k]) == 1 else features[k][images] for k in own]
        size, terms = images.stop - first, dict(shared)
        ones = unary.new_ones(size, count, 1)
        for k, of_images, lattice in zip(own, points, reference_lattices(points), strict=True):
            filter, mass_of = LatticeFilter([lattice]), ones[: len(of_images)]
            terms[k] = Term.normalized(filter, compatibilities[k], settings.normalization, mass_of)
        shared = {k: term for k, term in terms.items() if len(features[k]) == 1}
        repeated = {k: _repeated(term, size, together) for k, term in shared.items()}
        yield images, [(terms | repeated)[k] for k in range(len(features))]


class ImageTerms:
    """The terms of each image of a batch on a CPU, made when they are asked for.

    The pixels of an image are visited tile by tile, for the caches. The terms of features that all
    images share are made once, in advance. kept: where the smoothness of a grid may be found, and
    is left for the next batch.
    """

    def __init__(
        self,
        features: Sequence[Tensor],
        compatibilities: Sequence[Tensor],
        batch: int,
        settings: FilterSettings,
        kept: KeptTerm | None = None,
    ) -> None:
        self.features = [points.detach() for points in features]
        self.compatibilities, self.settings = compatibilities, settings
        width, count = settings.width, features[0].shape[1] if features else 0
        self.order: Tensor | None = None
        self.shared: dict[int, Term] = {}
        if kept is not None and settings.has_gaussian and width and batch:
            points, norm = self.features[0][0], settings.normalization

            def make() -> Term:
                self.order = pixel_order(count // width, width)
                return self._term(0, 0)

            term = self.shared[0] = kept.term(points, compatibilities[0], norm, make)
            self.order = cast(LatticeFilter, term.filter).order  # one object in all terms
        elif width:
            self.order = pixel_order(count // width, width)
        if batch > 1:
            others = [k for k, f in enumerate(features) if len(f) == 1 and k not in self.shared]
            self.shared |= {k: self._term(k, 0) for k in others}

    def of(self, image: int) -> list[Term]:
        """The terms of one image."""
        return [self.shared.get(k) or self._term(k, image) for k in range(len(self.features))]

    def _term(self, k: int, image: int) -> Term:
        features = self.features[k]
        points = features[image if len(features) > 1 else 0]
        if self.order is not None:
            points = torch.from_numpy(points.numpy().take(self.order.numpy(), axis=0))
        return Term.on_cpu(points, self.order, self.compatibilities[k], self.settings.normalization)


def _repeated(term: Term, batch: int, together: int) -> Term:
    """The term of one image for each image of a batch; see `LatticeFilter.repeated`."""
    filter = cast(LatticeFilter, term.filter).repeated(batch, together)
    return replace(term, filter=filter)


def images_together(features: Sequence[Tensor], batch: int, labels: int) -> int:
    """How many of the images share a lattice: as many as a GPU has room for; one on a CPU."""
    if not features or features[0].device.type == "cpu" or batch <= 1:
        return 1
    count = features[0].shape[1]
    corners = sum(points.shape[2] + 1 for points in features)
    # Bytes, rather too many: a corner is sorted, kept and moved among those of all terms, and half
    # of the corners are vertices with two rows of labels; a point has unary energies, Q and logits.
    each = count * (72 * corners + 4 * labels * (6 + corners))
    # One more point an image may fill up a block of pydensecrf's.
    most = min(batch, MOST_POINTS // count, MOST_ENTRIES // (corners * (count + 1)))
    if most * each >= memory.ASK_FROM:
        free = memory.available(features[0].device)
        most = most if free is None else min(most, free // 2 // each)
    return max(1, most)


def not_finite(name: str) -> str:
    return (
        f"{name} must be finite, but hold NaN or Inf; for the logarithm of probabilities, "
        "clip these first"
    )
