"""The permutohedral lattice in plain PyTorch: the oracle, on any device, in float32 or float64.

    y = alpha * W B_D ... B_1 B_0 W^T v,   alpha = 1 / (1 + 2^-D)

W holds the barycentric weights of N points in their simplices, B_j blurs along lattice direction j:
new = old + (before + after) / 2. Steps of direction j lead to the keys key + 1 (everywhere), with
key_j - D in coordinate j.

Source: Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice"
(2010); pages below are theirs. Float32 rounds as Krähenbühl and Koltun's densecrf does, operation
by operation, so that every point falls into the same simplex as there.
"""

import math

import torch
import torch.nn.functional as F

from kernels.permutohedral.lattice import Lattice


@torch.no_grad()
def build(features: torch.Tensor) -> Lattice:
    """The lattice of `features` `[N, D]`, already divided by sigma, finite and placeable.

    It comes in one part and without ghosts. No gradient flows to the features.
    """
    count, dims = features.shape
    keys, weights = _simplices(features)
    keys = keys.reshape(-1, dims)
    corners = _number(keys)
    rows = int(corners.max()) + 1 if count else 0
    vertices = keys.new_empty(rows, dims).index_put_((corners,), keys)
    return Lattice(
        corners=corners.reshape(count, dims + 1).int(),
        weights=weights,
        neighbours=_neighbours(vertices),
        ghosts=torch.empty(0, 2, dtype=torch.int32, device=features.device),
        parts=torch.tensor([[0, 0, 0], [count, rows, 0]], device=features.device),
    )


def filter(lattice: Lattice, values: torch.Tensor, reverse: bool = False) -> torch.Tensor:
    """Filter `values` `[N, C]`; `reverse` blurs in the opposite order, which is the adjoint.

    Differentiable in the values, any number of times.
    """
    none = lattice.num_rows
    owners = torch.arange(none + 1, device=values.device)
    owners[lattice.ghosts[:, 0].long()] = lattice.ghosts[:, 1].long()
    corners = owners[lattice.corners.long()]  # all parts share the owners' rows: no ghost is used

    rows = values.new_zeros(none + 1, values.shape[1])
    for corner, weight in zip(corners.T, lattice.weights.T, strict=True):
        rows = rows.index_add(0, corner, values * weight[:, None])
    neighbours = F.pad(lattice.known_neighbours, (0, 1), value=none)  # the zero row stays zero
    for before, after in reversed(neighbours) if reverse else neighbours:
        rows = rows + 0.5 * (rows[before] + rows[after])
    output = torch.zeros_like(values)
    for corner, weight in zip(corners.T, lattice.weights.T, strict=True):
        output = output + (weight * lattice.scale)[:, None] * rows[corner]
    return output


def _simplices(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys `[N, D+1, D]` of the corners of each point's simplex, and their weights `[N, D+1]`."""
    dims = features.shape[1]
    elevated = _elevate(features)
    inverse = _constant(1 / (dims + 1), features)
    nearest = torch.round(elevated * inverse)
    origin = nearest * (dims + 1)  # the corner of remainder 0 (p. 5)

    offset = elevated - origin
    smaller = offset[:, :, None] < offset[:, None, :]
    later = torch.ones(dims + 1, dims + 1, dtype=torch.bool, device=features.device).tril(-1)
    tied = (offset[:, :, None] == offset[:, None, :]) & later  # the later index ranks higher
    rank = (smaller | tied).sum(2) + nearest.sum(1, keepdim=True).long()
    wrap = (rank < 0).long() - (rank > dims).long()  # back to the plane of zero sum
    rank = rank + wrap * (dims + 1)
    origin = origin + wrap * (dims + 1)

    offset = (elevated - origin) * inverse
    ordered = offset.gather(1, rank.argsort(1, descending=True))  # p. 10: from rank D down to 0
    weights = torch.cat(
        [ordered[:, :1] + (1 - ordered[:, -1:]), ordered[:, 1:] - ordered[:, :-1]], dim=1
    )
    remainder = torch.arange(dims + 1, device=features.device)[:, None]
    beyond = (rank[:, None, :dims] > dims - remainder).long()  # [N, D+1, D]
    keys = origin[:, None, :dims].long() + remainder - (dims + 1) * beyond
    return keys, weights


def _elevate(features: torch.Tensor) -> torch.Tensor:
    """Map `[N, D]` into the plane of zero sum in D+1 dimensions, `[N, D+1]` (p. 5 and 6)."""
    dims = features.shape[1]
    spread = _constant(math.sqrt(2 / 3) * (dims + 1), features).item()
    total = torch.zeros_like(features[:, 0])
    elevated = [total] * (dims + 1)
    for j in range(dims, 0, -1):
        scale = _constant(spread / math.sqrt(j * (j + 1)), features)
        scaled = features[:, j - 1] * scale
        elevated[j] = total - j * scaled
        total = total + scaled
    elevated[0] = total
    return torch.stack(elevated, dim=1)


def _constant(value: float, like: torch.Tensor) -> torch.Tensor:
    """A number rounded to the dtype of `like`; on the CPU, whence it meets tensors anywhere."""
    return torch.tensor(value, dtype=like.dtype, device="cpu")


def _neighbours(vertices: torch.Tensor) -> torch.Tensor:
    """Rows before and after each of the R distinct `vertices` `[R, D]`, int32 `[D+1, 2, R]`."""
    count, dims = vertices.shape
    rows = torch.arange(count, device=vertices.device)
    neighbours = rows.new_full((dims + 1, 2, count), count)
    for j, (before, after) in enumerate(neighbours):
        step = torch.ones_like(vertices[:1])
        step[:, j : j + 1] = -dims  # nothing for j = D: that coordinate is not in the key
        own, following = _number(torch.cat([vertices, vertices + step])).reshape(2, count)
        row_of = rows.new_full((2 * count,), count)
        row_of[own] = rows
        after.copy_(row_of[following])
        exists = after < count
        before[after[exists]] = rows[exists]
    return neighbours.int()


def _number(keys: torch.Tensor) -> torch.Tensor:
    """Number the distinct rows of `keys` `[M, D]` in lexicographic order: `[M]`.

    Coordinate by coordinate, so that nothing overflows: both numbers below are less than M.
    """
    numbers = torch.zeros_like(keys[:, 0])
    for column in keys.T:
        rank = torch.unique(column, return_inverse=True)[1]
        numbers = torch.unique(numbers * len(keys) + rank, return_inverse=True)[1]
    return numbers
