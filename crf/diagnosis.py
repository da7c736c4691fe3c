"""What a DenseCRF runs for given images: the filter of each term, its size, how accurate it is."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kernels.meanfield import Filter, GridFilter, LatticeFilter, SeparableFilter, TileFilter
from kernels.meanfield.build import FilterSettings, filters_of


@dataclass(frozen=True)
class TermDiagnosis:
    """The filter of one pairwise term of one image.

    Attributes:
        image: its number in the batch.
        term: "gaussian", "bilateral", or the name of a `Pairwise`.
        method: "permutohedral", "exact", "separable", or "rows and columns": the two passes of the
            smoothness term, with exact and separable.
        reason: why this method.
        vertices: of a lattice.
        kept_pairs: of exact: the share of all pairs that is computed; the others are skipped.
        landmarks: of separable.
        bound: of exact: the largest share of its mass that any pixel's sum may miss (`Tiles.bound`,
            at most `eps`), and 0 for rows and columns; rounding is not in it.
        residual: of separable: what landmarks miss of a pixel's own weight, on average
            (`Separable.residual`, at most `tolerance`). The lattice has no such number: its error
            is pydensecrf's.
    """

    image: int
    term: str
    method: str
    reason: str
    vertices: int | None = None
    kept_pairs: float | None = None
    landmarks: int | None = None
    bound: float | None = None
    residual: float | None = None

    @property
    def size(self) -> str:
        """The one of `vertices`, `kept_pairs` and `landmarks` that there is, in words."""
        if self.vertices is not None:
            return f"{self.vertices} vertices"
        if self.kept_pairs is not None:
            return f"{self.kept_pairs:.1%} of pairs"
        return "" if self.landmarks is None else f"{self.landmarks} landmarks"

    @property
    def accuracy(self) -> str:
        """The one of `bound` and `residual` that there is, in words."""
        if self.bound is not None:
            return f"bound {self.bound:.2g}"
        return "pydensecrf's" if self.residual is None else f"residual {self.residual:.2g}"


class Diagnosis(list[TermDiagnosis]):
    """All terms of all images; printed, a table."""

    def __str__(self) -> str:
        head = ("image", "term", "method", "size", "accuracy", "reason")
        rows = [head, *((str(d.image), *(getattr(d, name) for name in head[1:])) for d in self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def diagnose(
    features: Sequence[Tensor],
    names: Sequence[str],
    batch: int,
    settings: FilterSettings,
    reason: str,
) -> Diagnosis:
    """The filters that a call runs, image by image; `reason` is why `settings.method`."""
    found = Diagnosis()
    for b in range(batch):
        of_image = [points[b : b + 1] if len(points) > 1 else points for points in features]
        filters, refused = filters_of(of_image, 1, settings)
        if refused is not None:
            reason_here = f"auto: not separable, {refused.partition(':')[0]}"
        else:
            reason_here = reason
        for name, filter in zip(names, filters, strict=True):
            found.append(_of_filter(b, name, filter, reason_here))
    return found


def _of_filter(image: int, term: str, filter: Filter, reason: str) -> TermDiagnosis:
    if isinstance(filter, LatticeFilter):
        (lattice,) = filter.lattices
        return TermDiagnosis(image, term, "permutohedral", reason, vertices=lattice.num_vertices)
    if isinstance(filter, GridFilter):
        why = "a Gaussian of a grid is two passes, without error but for rounding"
        return TermDiagnosis(image, term, "rows and columns", why, bound=0.0)
    if isinstance(filter, SeparableFilter):
        (separable,) = filter.images
        return TermDiagnosis(
            image, term, "separable", reason,
            landmarks=len(separable.landmarks), residual=separable.residual,
        )  # fmt: skip
    kept, bound = 1.0, 0.0  # all pairs, where a gradient to features is wanted
    if isinstance(filter, TileFilter):
        (tiles,) = filter.tiles
        kept, bound = float(tiles.share), float(tiles.bound)
    return TermDiagnosis(image, term, "exact", reason, kept_pairs=kept, bound=bound)
