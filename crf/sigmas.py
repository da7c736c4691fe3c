"""Sigmas that are too small for the permutohedral lattice: which, and how to mend it.

A lattice holds features whose largest magnitudes add up to a limit over the dimensions. What it
refuses are features; whoever calls has given sigmas, so the error names these.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from crf.potentials import Bilateral, Gaussian, Pairwise, Potential
from kernels.permutohedral import UnplaceableError


@dataclass(frozen=True)
class Divisor:
    """An argument that features are divided by."""

    name: str
    value: Any  # as it was given
    sigmas: Sequence[float | np.float32]  # one for each feature that it divides
    reaches: Sequence[float]  # the largest magnitude of each before

    @property
    def reach(self) -> float:
        """What the largest magnitudes of its features add up to."""
        pairs = zip(self.reaches, self.sigmas, strict=True)
        return math.fsum(float(reach) / float(sigma) for reach, sigma in pairs)


def too_small(divisors: Sequence[Divisor], limit: float, instead: str = "") -> ValueError | None:
    """The error that names which sigmas are too small for a lattice, None if none is.

    A lattice holds features whose largest magnitudes add up to `limit` at most. Named are as few
    as matter: with the others alone there would be room.
    """
    ranked = sorted(divisors, key=lambda divisor: divisor.reach, reverse=True)
    total = math.fsum(divisor.reach for divisor in ranked)
    if total <= limit:
        return None
    count, rest = 0, total
    while count < len(ranked) and rest > limit / 2:
        count += 1
        rest = math.fsum(divisor.reach for divisor in ranked[count:])
    named = ranked[:count]
    factor = math.fsum(divisor.reach for divisor in named) / (limit - rest)
    given = " and ".join(f"{divisor.name}={divisor.value!r}" for divisor in named)
    are, them = ("is", "it") if count == 1 else ("are", "them")
    return ValueError(
        f"{given} {are} too small: divided by {them}, positions and colours reach {total:.3g}, but "
        f"the permutohedral lattice holds {limit:.3g} at most. Make {them} at least "
        f"{_rounded_up(factor):g} times as large{instead}"
    )


@contextmanager
def naming_sigmas(
    potentials: Callable[[], Sequence[Potential]],
    logits: Tensor,
    images: Tensor | None,
    features: Sequence[Tensor],
) -> Iterator[None]:
    """Name the sigma of a term of a layer, or its features, where a lattice refuses them.

    potentials: called where it does: what was learned must come from the device.
    features: `[B, N, D]` of each potential.
    """
    try:
        yield
    except UnplaceableError as error:
        instead = ', or use method="exact"'
        for term, points in zip(potentials(), features, strict=True):
            if isinstance(term, Pairwise):
                reach = float(points.detach().abs().amax((0, 1)).double().sum())
                found = too_large(f"features[{term.name!r}]", reach, error.limit, instead)
            else:
                found = too_small(_divisors(term, logits, images), error.limit, instead)
            if found is not None:
                raise found from None
        raise


def _divisors(term: Gaussian | Bilateral, logits: Tensor, images: Tensor | None) -> list[Divisor]:
    kind = type(term).__name__.lower()
    size = logits.shape[-1] - 1, logits.shape[-2] - 1
    divisors = [Divisor(f"{kind}.sigma_xy", term.sigma_xy, term.sigmas[:2], size)]
    if isinstance(term, Bilateral):
        assert images is not None  # refused before
        colours = images.detach().amax((0, 2, 3)).tolist()
        divisors.append(Divisor(f"{kind}.sigma_rgb", term.sigma_rgb, term.sigmas[2:], colours))
    return divisors


def too_large(name: str, reach: float, limit: float, instead: str = "") -> ValueError | None:
    """The error for features that the caller divided; None if a lattice holds them, or NaN."""
    if not limit < reach < math.inf:
        return None
    return ValueError(
        f"{name} are too large for the permutohedral lattice: their largest magnitudes add up to "
        f"{reach:.3g} over the dimensions, {limit:.3g} at most. Divide them by a larger sigma, or "
        f"move them towards zero{instead}"
    )


def _rounded_up(number: float) -> float:
    """To two digits."""
    step = 10.0 ** (math.floor(math.log10(number)) - 1)
    return math.ceil(number / step) * step
