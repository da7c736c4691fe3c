"""Which entries of a lattice each vertex sums, cut so that no program sums much more than others.

An entry is a point and one of its corners, number point * (D+1) + corner; `entries` lists them by
row. A row may have thousands of them (a clear sky) or nearly all (a large sigma), so that they are
cut into pieces of at most `PIECE` entries:

    piece   entries [first, last)  ->  row, or a partial row behind the last row
    sum     partial rows [first, last)  ->  row, where a row has several pieces

Sizes follow from the numbers of rows and of entries, whose tables are filled up with empty pieces:
nothing here waits for the device.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from kernels import memory
from kernels.gaussian.permutohedral.lattice import Lattice

PIECE = 128  # entries
ASK_FROM = 2**30  # bytes


def cut(starts: Tensor, entries: int) -> tuple[Tensor, Tensor]:
    """Cut the entries [starts[r], starts[r+1]) of each row r into pieces.

    Args:
        starts: `[R+1]`, not decreasing, from 0 to `entries`.

    Returns:
        Pieces int32 `[3, P]`: first and last entry, and the row to write; a row without entries has
        one, to write zeros. Sums int32 `[3, S]`: first and last partial row, and the row. Row -1 is
        none. Partial rows are numbered from R on.
    """
    rows = len(starts) - 1
    device = starts.device
    starts = starts.long()
    lengths = starts[1:] - starts[:-1]
    pieces_of = ((lengths + (PIECE - 1)) // PIECE).clamp_(min=1)
    several = pieces_of > 1
    ends = pieces_of.cumsum(0)
    partial_ends = (pieces_of * several).cumsum(0)

    piece = torch.arange(rows + entries // PIECE, device=device)
    row = torch.searchsorted(ends, piece, right=True)
    real = row < rows
    row = row.clamp_(max=max(rows - 1, 0))
    behind = ends[row] - piece  # pieces of the row from this one on
    first = starts[row] + (pieces_of[row] - behind) * PIECE
    last = torch.minimum(first + PIECE, starts[row + 1])
    target = torch.where(several[row], rows + partial_ends[row] - behind, row)
    empty = piece.new_zeros(())
    pieces = torch.stack(
        [first.where(real, empty), last.where(real, empty), target.where(real, empty - 1)]
    )

    long = torch.arange(entries // PIECE, device=device)  # at most so many rows have several pieces
    row = torch.searchsorted(several.cumsum(0), long, right=True)
    real = row < rows
    row = row.clamp_(max=max(rows - 1, 0))
    last = rows + partial_ends[row]
    sums = torch.stack([last - pieces_of[row], last, row.where(real, empty - 1)])
    return pieces.int(), sums.int()


def num_partials(entries: int) -> int:
    """The most partial rows that `cut` may number."""
    return 2 * (entries // PIECE)


def completed(lattice: Lattice) -> Lattice:
    """The lattice with all its splat fields, of whichever build, and without ghosts."""
    if lattice.entries is not None and not len(lattice.ghosts):
        return lattice
    corners = lattice.corners
    if len(lattice.ghosts):
        owners = torch.arange(lattice.num_rows, dtype=torch.int32, device=corners.device)
        owners[lattice.ghosts[:, 0].long()] = lattice.ghosts[:, 1]
        corners = owners[corners.long()]
    row, entries = torch.sort(corners.flatten(), stable=True)
    wanted = torch.arange(lattice.num_rows + 1, dtype=torch.int32, device=corners.device)
    starts = torch.searchsorted(row, wanted)
    pieces, sums = cut(starts, len(entries))
    return dataclasses.replace(
        lattice,
        corners=corners,
        ghosts=lattice.ghosts[:0],
        entries=entries.int(),
        pieces=pieces,
        sums=sums,
    )


def require_memory(needed: int, device: torch.device, what: str) -> None:
    """Refuse what `device` cannot hold, before it is allocated.

    The driver is asked from `ASK_FROM` bytes on: that costs more than a small filter.

    Raises:
        MemoryError: more bytes than are free.
    """
    if needed >= ASK_FROM:
        memory.require(needed, device, what, "take the image in parts")
