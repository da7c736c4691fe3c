"""What `small.py` runs: a lattice with its mass, and a mean field, as one compiled function each.

They are made of the functions of the two modules named compiled.py, one after another, and obey the
same contract.
"""

import numpy as np
from numba import njit

from kernels._numba import simd
from kernels.meanfield.compiled import finish, fold_corners, load, update
from kernels.permutohedral.compiled import (
    blur_all,
    connect,
    place_points,
    slice_points,
    sort_by_hash,
    splat_points,
)


@njit(forceinline=True)
def set_up(
    visits, points, scales, low, strides, steps, multipliers, hashed_steps, keys, ids, corners,
    weights, hashes, vertices, neighbours, chains, lengths, rows, scale, ordered, mass, simplex,
    words, lanes,
):  # fmt: skip
    """Build the lattice of `points`; filter ones, of which point i goes to mass[visits[i]].

    Further points than `visits` have vertices only. There is room for all vertices that so many
    points can have. Returns how many there are; `lengths` are those of the chains of each
    direction, and last the greatest. `ordered` is room for as many numbers as `mass`.
    """
    progress = simd.scratch(np.int64, (0, 0))
    progress[0] = progress[1] = 0
    for slot in range(len(ids)):
        ids[slot] = -1
    place_points(
        progress, len(points), points, scales, low, strides, steps, multipliers, hashed_steps, keys,
        ids, corners, weights, simplex, words,
    )  # fmt: skip
    none = progress[1]
    found = sort_by_hash(keys, ids, multipliers, hashes, vertices, words)
    connect(
        0, len(simplex), hashes[:found], vertices, keys, ids, steps, hashed_steps,
        neighbours[:, :, :none], chains, lengths, words,
    )  # fmt: skip
    longest = 0
    for j in range(len(simplex)):
        longest = max(longest, lengths[j])
    for j in range(len(simplex)):
        for i in range(lengths[j], longest):
            chains[j, i] = none
    lengths[len(simplex)] = longest

    count = len(visits)
    for i in range(count):
        ordered[i, 0] = 1
    splat_points(0, count, 0, none + 1, ordered, corners, weights, rows, lanes)
    blur_all(False, chains[:, :longest], rows[len(rows) - 1], rows[: none + 1], lanes)
    slice_points(0, count, rows, corners, weights, scale, ordered, lanes)
    for i in range(count):
        mass[visits[i], 0] = ordered[i, 0]
    return none


@njit(forceinline=True)
def mean_field(
    iterations, values, visits, corners, weights, before, after, chains, gains_in, gains_out,
    offsets, ends, zeroed, limits, in_order, all_corners, splatting, slicing, logits, rows,
    next_rows, block, factor_in, padding, softmax, factor_out, output, lanes, columns,
):  # fmt: skip
    """All updates of an image that is one part, from energies to `output`; at least one."""
    count = len(visits)
    column = 0
    for t in range(len(corners)):
        for i in range(count):
            in_order[0, i], in_order[1, i] = before[t][visits[i]], after[t][visits[i]]
        fold_corners(
            0, count, limits[t], len(block), corners[t], weights[t], in_order[0], in_order[1],
            gains_in[t], gains_out[t], column, offsets[t], all_corners, splatting, slicing,
        )  # fmt: skip
        column += corners[t].shape[1]
        simd.store(rows, ends[t], simd.zero(lanes))
        simd.store(next_rows, ends[t], simd.zero(lanes))
    load(0, count, values, visits, factor_in, padding, logits)
    for step in range(iterations):
        update(
            0, count, offsets, ends, zeroed, limits, block, logits, all_corners,
            slicing[:, : 0 if step == 0 else slicing.shape[1]], splatting, rows, next_rows, True,
            lanes, columns,
        )  # fmt: skip
        rows, next_rows = next_rows, rows
        for t in range(len(chains)):
            of_term = rows[offsets[t] : ends[t] + 1]
            blur_all(False, chains[t], block[0], of_term, lanes)
    finish(
        0, count, block, logits, all_corners, slicing, rows, visits, softmax, factor_out, output,
        lanes, columns,
    )  # fmt: skip
