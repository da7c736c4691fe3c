"""What `cpu.py` runs of a mean field: the functions that numba compiles.

They obey the contract of `kernels._numba.jit`: no allocation, no exception, tuples last. Of these,
only the length counts: `lanes` is as long as a row is wide, `columns` as a point has corners, so
that loops over them are unrolled. Points are numbered unsigned where they are visited most, so that
numba does not ask of each number whether it is negative.
"""

import numpy as np
from numba import njit

from kernels._numba import simd
from kernels.permutohedral.compiled import add_to_row

EIGHT = (0,) * 8  # points of a single channel, taken as one vector


@njit(forceinline=True)
def fold_corners(
    first, last, limits, block_size, corners, weights, before, after, gain_in, gain_out, column,
    offset, all_corners, splatting, slicing,
):  # fmt: skip
    """Put one term's corners beside the others'; write the end of rows in use by each block."""
    for block in range(len(limits)):
        begin = first + block * block_size
        limit = 0
        for i in range(np.uint64(begin), np.uint64(min(begin + block_size, last))):
            entering, leaving = before[i] * gain_in, after[i] * gain_out
            for k in range(corners.shape[1]):
                row = corners[i, k] + offset
                limit = max(limit, row + 1)
                all_corners[i, column + k] = row
                slicing[i, column + k] = weights[i, k] * leaving
                splatting[i, column + k] = weights[i, k] * entering
        limits[block] = limit


@njit(forceinline=True)
def load(first, last, values, visits, factor, padding, output):
    """output = factor * values in the order of the visits, its further columns padded."""
    labels = values.shape[1]
    for i in range(first, last):
        for c in range(labels):
            output[i, c] = factor * values[visits[i], c]
        for c in range(labels, output.shape[1]):
            output[i, c] = padding


@njit(forceinline=True)
def update(
    first, last, first_rows, last_rows, zeroed, limits, block, source, base, relative, corners,
    slicing, splatting, rows, next_rows, softmax, lanes, columns,
):  # fmt: skip
    """One pass over the points of a part: slice, softmax, splat into the part's own rows.

    By blocks as long as `block`, which is room for their points: three short loops keep a processor
    busier than one long one, of which it sees no two points at a time.

    relative: the marginals are splatted less that of one more label, whose logit is in `base`. Of
    two labels `source` has the logit of one less that of the other, and `base` nothing.

    The part's rows are unset before: each is zeroed when the first block that needs it begins.
    `zeroed` is room to count them, one number a term.
    """
    for t in range(len(zeroed)):
        zeroed[t] = first_rows[t]
    for number in range(limits.shape[1]):
        for t in range(len(zeroed)):
            while zeroed[t] < limits[t, number]:
                simd.store(next_rows, zeroed[t], simd.zero(lanes))
                zeroed[t] += 1
        begin = first + number * len(block)
        count = min(len(block), last - begin)
        slice_block(begin, count, source, corners, slicing, rows, block, lanes, columns)
        if softmax and relative:
            subtract_softmax(begin, count, base, block, lanes)
        elif softmax:
            for i in range(count):
                simd.store(block, i, simd.softmax2(simd.load(block, i, lanes)))
        for i in range(count):
            n = np.uint64(begin + i)
            point = simd.load(block, i, lanes)
            for k in range(len(columns)):
                add_to_row(next_rows, corners[n, k], splatting[n, k], point, lanes)
    for t in range(len(zeroed)):
        for row in range(zeroed[t], last_rows[t]):
            simd.store(next_rows, row, simd.zero(lanes))


@njit(inline="always")
def subtract_softmax(begin, count, base, block, lanes):
    """The marginals of the block's logits, less that of the label whose logits `base` holds.

    Those of a single channel eight at a time: the length of `block` is a multiple of that.
    """
    if len(lanes) == 1:
        for i in range((count + len(EIGHT) - 1) // len(EIGHT)):
            points = simd.load(block, i, EIGHT)
            simd.store(block, i, simd.softmax2_difference(points))
    else:
        for i in range(count):
            point, other = simd.softmax2_with(simd.load(block, i, lanes), base[begin + i, 0])
            simd.store(block, i, simd.subtract(point, other))


@njit(inline="always")
def slice_block(begin, count, logits, corners, slicing, rows, block, lanes, columns):
    """block = logits + the weighted sum of the corners' rows, for `count` points.

    Logits alone where `slicing` has no columns.
    """
    for i in range(count):
        n = np.uint64(begin + i)
        point = simd.load(logits, n, lanes)
        if slicing.shape[1] > 0:
            for k in range(len(columns)):
                row = simd.load(rows, corners[n, k], lanes)
                point = simd.add_scaled(point, slicing[n, k], row)
        simd.store(block, i, point)


@njit(forceinline=True)
def finish(
    first, last, block, logits, base, relative, corners, slicing, rows, visits, softmax, factor,
    output, lanes, columns,
):  # fmt: skip
    """The last pass: slice, softmax if it is wanted, and write `factor` times the result.

    By blocks as long as `block`, which is room for their points. `relative` and `base` as in
    `update`, of the last label.
    """
    begin = first
    while begin < last:
        count = min(len(block), last - begin)
        slice_block(begin, count, logits, corners, slicing, rows, block, lanes, columns)
        if relative:
            for i in range(count):
                logit = np.float32(0) if len(lanes) == 1 else base[begin + i, 0]
                point, other = simd.softmax2_with(simd.load(block, i, lanes), logit)
                simd.store(block, i, point)
                output[visits[begin + i], output.shape[1] - 1] = factor * other
        elif softmax:
            for i in range(count):
                simd.store(block, i, simd.softmax2(simd.load(block, i, lanes)))
        for c in range(output.shape[1] - relative):
            for i in range(count):
                output[visits[begin + i], c] = factor * block[i, c]
        begin += count


@njit(forceinline=True)
def mix_labels(first, last, rows, matrix, lanes):
    """rows = rows @ matrix in place, `matrix` `[labels, width]`."""
    for row in range(first, last):
        mixed = simd.zero(lanes)
        for c in range(len(matrix)):
            mixed = simd.add_scaled(mixed, rows[row, c], simd.load(matrix, c, lanes))
        simd.store(rows, row, mixed)
