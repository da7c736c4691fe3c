"""Lattices of several images as one, whose images share no vertex: launches of one serve all.

Everything that an image's lattice numbers moves behind what the images before it number: points,
rows, ghosts, entries and partial rows. "No vertex" becomes the R of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from kernels.permutohedral.lattice import Lattice


def joined(lattices: Sequence[Lattice]) -> Lattice:
    """One lattice over the points of all `lattices`, at least one, in this order.

    They have no `entries`, as those that Triton did not build.
    """
    if len(lattices) == 1:
        return lattices[0]
    firsts = [0, *accumulate(lattice.num_rows for lattice in lattices)]
    rows = firsts[-1]
    placed = list(zip(lattices, firsts, strict=False))
    chains = None
    if all(lattice.chains is not None for lattice in lattices):
        chains = torch.cat([_moved(a.chains, a.num_rows, first, rows) for a, first in placed], 1)
    parts, end = [], lattices[0].parts.new_zeros(1, 3)
    for lattice in lattices:
        parts.append(lattice.parts[:-1] + end)
        end = end + lattice.parts[-1:]
    return Lattice(
        corners=torch.cat([lattice.corners + first for lattice, first in placed]),
        weights=torch.cat([lattice.weights for lattice in lattices]),
        neighbours=torch.cat(
            [_moved(a.known_neighbours, a.num_rows, first, rows) for a, first in placed], 2
        ),
        ghosts=torch.cat([lattice.ghosts + first for lattice, first in placed]),
        parts=torch.cat([*parts, end]),
        chains=chains,
    )


def repeated(lattice: Lattice, images: int) -> Lattice:
    """The lattice of `images`, at least one, that all have the points of `lattice`.

    Nothing here waits for a GPU, and launches do not grow with the number of images.
    """
    if images == 1:
        return lattice
    rows, last = lattice.num_rows, lattice.parts[-1:]
    image = torch.arange(images, dtype=torch.int32, device=lattice.corners.device)
    ahead = image[:, None, None]  # images before each

    def along(table: Tensor) -> Tensor:
        """A table of rows `[..., R]`, image behind image."""
        return _moved(table[..., None, :], rows, rows * image[:, None], rows * images).flatten(-2)

    return Lattice(
        corners=(lattice.corners + rows * ahead).flatten(0, 1),
        weights=lattice.weights.repeat(images, 1),
        neighbours=along(lattice.known_neighbours),
        ghosts=(lattice.ghosts + rows * ahead).flatten(0, 1),
        parts=torch.cat([(lattice.parts[:-1] + ahead * last).flatten(0, 1), images * last]),
        chains=None if lattice.chains is None else along(lattice.chains),
        **_repeated_splat(lattice, images, image[:, None]),
    )


def _moved(table: Tensor | None, none: int, by: int | Tensor, all_rows: int) -> Tensor:
    """Rows `by` further on; `none`, which stands for no row, becomes `all_rows`."""
    assert table is not None
    return torch.where(table < none, table + by, all_rows)


def _repeated_splat(lattice: Lattice, images: int, image: Tensor) -> dict[str, Tensor]:
    """`entries`, `pieces` and `sums` of `repeated`; none where the lattice has none."""
    entries, pieces, sums = lattice.entries, lattice.pieces, lattice.sums
    if entries is None or pieces is None or sums is None:
        return {}
    rows, count, real = lattice.num_rows, len(entries), lattice.corners.numel()
    partials = 2 * sums.shape[1]  # at most so many of an image (segments.num_partials)
    first_partial = (images - 1) * rows + partials * image  # what theirs move by

    def targets(row: Tensor) -> Tensor:
        moved = torch.where(row < rows, row + rows * image, row + first_partial)
        return torch.where(row < 0, row, moved)

    # Those that carry no values keep numbers beyond all that do.
    dead = entries + (images - 1) * real + (count - real) * image
    return {
        "entries": torch.where(entries < real, entries + real * image, dead).flatten(),
        "pieces": torch.stack([*(pieces[:2, None] + count * image), targets(pieces[2])]).flatten(1),
        "sums": torch.stack([*(sums[:2, None] + first_partial), targets(sums[2])]).flatten(1),
    }
