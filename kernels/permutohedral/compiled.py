"""What `cpu.py` runs of the permutohedral lattice: the functions that numba compiles.

They obey the contract of `kernels._numba.jit`: no allocation, no exception, tuples last. Of these,
only the length counts: `lanes` is as long as a row of values is wide, `simplex` and `columns` have
D+1 entries, `words` as many as a packed key, `together` as many as points are placed at once. Where
a loop counts in unsigned numbers, numba does not ask of each index whether it is negative.
"""

import numpy as np
from numba import njit

from kernels._numba import simd

ROW = (0,)  # in a slot of a table: int64 `[slots, 1 + words]`, the row of a vertex and its key
AHEAD = np.uint64(12)  # rows to prefetch ahead in the blur, about a memory latency's worth


@njit(forceinline=True)
def splat_points(
    first, last, first_row, last_row, values, corners, weights, rows, lanes, columns
):  # fmt: skip
    """rows[corner] += weight * values, for the points of one part and into its own rows."""
    for row in range(first_row, last_row):
        simd.store(rows, row, simd.zero(lanes))
    padded = simd.scratch(np.float32, lanes)
    for c in range(len(lanes)):
        padded[c] = np.float32(0)
    for i in range(np.uint64(first), np.uint64(last)):
        for c in range(values.shape[1]):
            padded[c] = values[i, c]
        point = simd.load(padded, 0, lanes)
        for k in range(len(columns)):
            add_to_row(rows, corners[i, k], weights[i, k], point, lanes)


@njit(inline="always")
def add_to_row(rows, row, weight, point, lanes):
    """rows[row] += weight * point."""
    simd.store(rows, row, simd.add_scaled(simd.load(rows, row, lanes), weight, point))


@njit(forceinline=True)
def slice_points(first, last, rows, corners, weights, scale, output, lanes, columns):
    """output = scale * the weighted sum of the corners' rows."""
    padded = simd.scratch(np.float32, lanes)
    for i in range(np.uint64(first), np.uint64(last)):
        point = simd.zero(lanes)
        for k in range(len(columns)):
            weight = np.float32(scale * weights[i, k])
            point = simd.add_scaled(point, weight, simd.load(rows, corners[i, k], lanes))
        simd.store(padded, 0, point)
        for c in range(output.shape[1]):
            output[i, c] = padded[c]


@njit(forceinline=True)
def blur_chains(first, last, chain, spare, rows, lanes):
    """row + (before + after) / 2 in place, along the chains that begin in [first, last).

    A chain is two or three rows long, so that a branch at its end would be guessed wrong: the end
    is a row like the others, but what would be written there goes to `spare`, a row of this call.
    """
    none = rows.shape[0] - 1
    half = np.float32(0.5)
    begin, end = chain_start(first, chain, none), chain_start(last, chain, none)
    if begin == end:
        return
    previous = simd.zero(lanes)
    centre = simd.load(rows, chain[begin], lanes)
    end_of_last = np.uint64(end - 1)
    for i in range(np.uint64(begin), end_of_last):
        simd.prefetch(rows, chain[min(i + AHEAD, end_of_last)], lanes)
        following = simd.load(rows, chain[i + np.uint64(1)], lanes)
        total = simd.add_scaled(centre, half, previous)
        total = simd.add_scaled(total, half, following)
        simd.store_unless(rows, chain[i], none, spare, total)
        previous, centre = centre, following


@njit(forceinline=True)
def blur_all(reverse, chains, spare, rows, lanes):
    """`blur_chains` of all directions, one after another, or from the last to the first."""
    for step in range(len(chains)):
        chain = chains[len(chains) - 1 - step if reverse else step]
        blur_chains(0, len(chain), chain, spare, rows, lanes)


@njit(inline="always")
def chain_start(i, chain, none):
    """Where the first chain does that begins at i or behind it."""
    while 0 < i < len(chain) and chain[i - 1] != none:
        i += 1
    return i


@njit(forceinline=True)
def add_ghosts(first, last, ghosts, rows, lanes):
    """Add each ghost to its owner."""
    for i in range(first, last):
        ghost, owner = ghosts[i, 0], ghosts[i, 1]
        total = simd.load(rows, owner, lanes)
        total = simd.add_scaled(total, np.float32(1), simd.load(rows, ghost, lanes))
        simd.store(rows, owner, total)


@njit(forceinline=True)
def copy_ghosts(first, last, ghosts, rows, lanes):
    """Copy each owner to its ghosts."""
    for i in range(first, last):
        simd.store(rows, ghosts[i, 0], simd.load(rows, ghosts[i, 1], lanes))


# Building


@njit(forceinline=True)
def connect(
    first, last, neighbours, hashes, vertices, table, steps, hashed_steps, chains, lengths, words
):  # fmt: skip
    """Along directions [first, last): the neighbours, their chains, and how long these are.

    `neighbours` has room for all directions, or for one that the next takes over.
    """
    for j in range(first, last):
        place = j if len(neighbours) > 1 else 0
        before, after = neighbours[place, 0], neighbours[place, 1]
        for row in range(len(before)):
            before[row] = after[row] = len(before)
        find_neighbours(hashes, vertices, table, steps[j], hashed_steps[j], before, after, words)
        lengths[j] = link(before, after, chains[j])


@njit(forceinline=True)
def link_all(first, last, neighbours, chains, lengths):
    """The chains of directions [first, last), and how long they are."""
    for j in range(first, last):
        lengths[j] = link(neighbours[j, 0], neighbours[j, 1], chains[j])


@njit(inline="always")
def link(before, after, chain):
    """Write the rows of one direction along its chains, each ended by R; return how many.

    Where chains begin is found first, without a branch that would be guessed wrong. It is kept in
    the end of `chain`: with two rows in each chain that is left, no chain is written over it.
    """
    none = len(before)
    heads = chain[none:]
    found = 0
    for row in range(np.uint64(none)):
        heads[found] = row
        found += np.int64((before[row] == none) & (after[row] != none))
    count = 0
    for head in range(found):
        row = heads[head]
        while row != none:
            chain[count] = row
            count += 1
            row = after[row]
        chain[count] = none
        count += 1
    return count


@njit(forceinline=True)
def place_points(
    progress, last, points, scales, low, strides, steps, multipliers, hashed_steps, table, corners,
    weights, simplex, words, together,
):  # fmt: skip
    """Find the simplices of points: write corner ids and weights, and fill the table.

    `progress` is the point to go on with, below `last`, and the number of vertices in the table.
    Returns 1 where the table must grow before another point, 0 where all points are placed.

    For as many points at once as `together` is long: what is arithmetic alone, in vectors; then
    where their corners may be in the table, which is asked for; then the look-ups.
    """
    dims = len(simplex) - 1
    elevated = simd.scratch_table(np.float32, simplex, together)
    origin = simd.scratch_table(np.float32, simplex, together)
    offset = simd.scratch_table(np.float32, simplex, together)
    rank = simd.scratch_table(np.float32, simplex, together)
    ordered = simd.scratch_table(np.uint64, together, simplex)  # coordinate of each rank
    origin_keys = simd.scratch_table(np.int64, together, words)
    hashes = simd.scratch_table(np.uint64, together, simplex)
    key = simd.scratch(np.int64, words)
    filled = progress[1]
    for begin in range(progress[0], last, len(together)):
        count = min(len(together), last - begin)
        elevate(begin, count, points, scales, elevated)
        find_simplices(len(scales) + 1, elevated, origin, offset, rank)
        for i in range(np.uint64(count)):
            point = np.uint64(begin) + i
            for j in range(dims + 1):
                ordered[i, np.uint64(rank[j, i])] = j
            following = offset[ordered[i, dims], i]
            weights[point, 0] = following + (np.float32(1) - offset[ordered[i, 0], i])
            for r in range(1, dims + 1):
                this = offset[ordered[i, dims - r], i]
                weights[point, r] = this - following
                following = this

            hashed = np.uint64(0)
            for w in range(len(words)):
                packed = np.int64(0)
                for j in range(dims):
                    packed += (np.int64(origin[j, i]) - low[j]) * strides[j, w]
                origin_keys[i, w] = packed
                hashed += np.uint64(packed) * multipliers[w]
            for r in range(dims + 1):
                if r > 0:
                    hashed += hashed_steps[ordered[i, dims - r + 1]]
                hashes[i, r] = hashed
                simd.prefetch(table, first_slot(hashed, table), words + ROW)
        for i in range(np.uint64(count)):
            for w in range(len(words)):
                key[w] = origin_keys[i, w]
            for r in range(dims + 1):
                if r > 0:
                    for w in range(len(words)):
                        key[w] += steps[ordered[i, dims - r + 1], w]
                slot = slot_of(key, hashes[i, r], table, words)
                if table[slot, 0] < 0:
                    put(table, slot, filled, key, words)
                    filled += 1
                corners[np.uint64(begin) + i, r] = table[slot, 0]
            if 2 * (filled + dims + 1) > len(table):
                progress[0], progress[1] = begin + i + 1, filled
                return 1
    progress[0], progress[1] = last, filled
    return 0


@njit(forceinline=True)
def elevate(first, count, points, scales, elevated):
    """elevated `[D+1, together]` = the points first, first + 1, ... on the lattice's hyperplane."""
    dims = len(scales)
    for i in range(np.uint64(elevated.shape[1])):
        elevated[0, i] = 0
    for j in range(dims, 0, -1):
        for i in range(np.uint64(count)):
            elevated[j, i] = points[j - 1, np.uint64(first) + i] * scales[j - 1]
        for i in range(np.uint64(count), np.uint64(elevated.shape[1])):
            elevated[j, i] = 0
        for i in range(np.uint64(elevated.shape[1])):
            scaled, total = elevated[j, i], elevated[0, i]
            elevated[j, i] = total - np.float32(j) * scaled
            elevated[0, i] = total + scaled


@njit(forceinline=True)
def find_simplices(size, elevated, origin, offset, rank):
    """The simplex of each point of `elevated` `[size, together]`; all tables have its shape.

    origin: the simplex's corner of remainder 0. offset: from there to the point, over D+1. rank:
    the place of each coordinate of the offset in descending order.

    All numbers are float32, whole ones too, so that a loop over the points is one of vectors. Their
    number is known to the compiler; D is not, since loops over it would be unrolled for nothing.
    """
    many = elevated.shape[1]
    one, sides = np.float32(1), np.float32(size)
    inverse = one / sides
    for i in range(np.uint64(many)):
        rank[0, i] = 0
    for j in range(size):
        for i in range(np.uint64(many)):
            nearest = np.rint(inverse * elevated[j, i])
            origin[j, i] = nearest * sides
            offset[j, i] = elevated[j, i] - origin[j, i]
            rank[0, i] += nearest
    for j in range(1, size):  # the sum brings the rounded point back to the plane of zero sum
        for i in range(np.uint64(many)):
            rank[j, i] = rank[0, i]
    for j in range(size - 1):
        for m in range(j + 1, size):
            for i in range(np.uint64(many)):
                less = np.float32(offset[j, i] < offset[m, i])
                rank[j, i] += less
                rank[m, i] += one - less
    for j in range(size):
        for i in range(np.uint64(many)):
            wrap = np.float32(rank[j, i] < 0) * sides - np.float32(rank[j, i] >= sides) * sides
            rank[j, i] += wrap
            origin[j, i] += wrap
            offset[j, i] = (elevated[j, i] - origin[j, i]) * inverse


@njit(forceinline=True)
def sort_by_hash(table, multipliers, hashes, vertices, words):
    """Write the hashes of a table's vertices in ascending order, and with them row and slot of each
    vertex; return how many.

    Slots are in the order of the hashes, but for vertices whose own slot was taken: they stand a
    few slots further on, or, where those would be behind the last one, at the beginning.
    """
    count = 0
    for behind_last in range(2):
        for slot in range(len(table)):
            if table[slot, 0] < 0:
                if behind_last:  # they come before the first free slot
                    break
                continue
            hashed = hash_of(table, slot, multipliers, words)
            if (first_slot(hashed, table) > np.uint64(slot)) != behind_last:
                continue
            place = count
            while place > 0 and hashes[place - 1] > hashed:
                hashes[place] = hashes[place - 1]
                for c in range(2):
                    vertices[c, place] = vertices[c, place - 1]
                place -= 1
            hashes[place], vertices[0, place], vertices[1, place] = hashed, table[slot, 0], slot
            count += 1
    return count


@njit(inline="always")
def find_neighbours(hashes, vertices, table, step, hashed_step, before, after, words):
    """Along one direction: the row after each vertex, and so the row before that one.

    In the order of `sort_by_hash`. The hash after a vertex is its own and a constant, modulo 2^64:
    in order too, but for where the modulus begins anew.
    """
    anew = first_not_below(hashes, np.uint64(0) - hashed_step)
    for begin, end in ((0, anew), (anew, len(hashes))):
        if begin < end:
            merge(begin, end, hashes, vertices, table, step, hashed_step, before, after, words)


@njit(inline="always")
def merge(begin, end, hashes, vertices, table, step, hashed_step, before, after, words):
    """One direction of `find_neighbours`, where the hashes after the vertices are in order.

    Without a branch on what is found, which no processor can guess. A key of one word is known by
    its hash, an odd multiple of it modulo 2^64; of others a hash may have several.
    """
    none, count = len(before), len(hashes)
    key = simd.scratch(np.int64, words)
    i = begin
    other = first_not_below(hashes, hashes[begin] + hashed_step)
    while i < end and other < count:
        wanted, there = hashes[i] + hashed_step, hashes[other]
        row, next_row = vertices[0, i], vertices[0, other]
        same = wanted == there
        if len(words) > 1 and same:
            for w in range(len(words)):
                key[w] = table[vertices[1, i], 1 + w] + step[w]
            found = table[slot_of(key, wanted, table, words), 0]
            same = found >= 0
            next_row = found if same else next_row
        before_next = before[next_row]
        before[next_row] = row if same else before_next
        after[row] = next_row if same else none
        i += np.int64(wanted <= there)
        other += np.int64(there < wanted)
    while i < end:
        after[vertices[0, i]] = none
        i += 1


@njit(inline="always")
def first_not_below(hashes, hashed):
    """Where in ascending `hashes` the first is that is not below `hashed`."""
    low, high = 0, len(hashes)
    while low < high:
        middle = (low + high) // 2
        if hashes[middle] < hashed:
            low = middle + 1
        else:
            high = middle
    return low


@njit(forceinline=True)
def absorb(table, local, first_row, multipliers, pairs, words):
    """Add a part's vertices to the table; write (row, owner) of those it had already, and count."""
    key = simd.scratch(np.int64, words)
    count = 0
    for i in range(len(local)):
        if local[i, 0] < 0:
            continue
        row = first_row + local[i, 0]
        for w in range(len(words)):
            key[w] = local[i, 1 + w]
        slot = slot_of(key, hash_of(local, i, multipliers, words), table, words)
        if table[slot, 0] < 0:
            put(table, slot, row, key, words)
        else:
            pairs[count, 0] = row
            pairs[count, 1] = table[slot, 0]
            count += 1
    return count


@njit(forceinline=True)
def rehash(table, multipliers, grown, words):
    """Put the vertices of a table into a larger, empty one."""
    for old in range(len(table)):
        if table[old, 0] >= 0:
            slot = first_slot(hash_of(table, old, multipliers, words), grown)
            while grown[slot, 0] >= 0:
                slot = slot_after(slot, grown)
            for c in range(1 + len(words)):
                grown[slot, c] = table[old, c]


@njit(inline="always")
def hash_of(table, i, multipliers, words):
    """The hash of the key in slot i. The hash of a sum of keys is the sum of their hashes."""
    hashed = np.uint64(0)
    for w in range(len(words)):
        hashed += np.uint64(table[i, 1 + w]) * multipliers[w]
    return hashed


@njit(inline="always")
def slot_of(key, hashed, table, words):
    """The slot of this key, or the free one where it would be put."""
    slot = first_slot(hashed, table)
    while table[slot, 0] >= 0:
        difference = np.int64(0)
        for w in range(len(words)):
            difference |= table[slot, 1 + w] ^ key[w]
        if difference == 0:
            break
        slot = slot_after(slot, table)
    return slot


@njit(inline="always")
def put(table, slot, row, key, words):
    """Fill a free slot."""
    table[slot, 0] = row
    for w in range(len(words)):
        table[slot, 1 + w] = key[w]


@njit(inline="always")
def first_slot(hashed, table):
    """Where to look first: the hash scaled to the slots, so that its order is kept."""
    return ((hashed >> np.uint64(32)) * np.uint64(len(table))) >> np.uint64(32)


@njit(inline="always")
def slot_after(slot, table):
    """The slot to look at next; the first one behind the last."""
    return (slot + np.uint64(1)) & np.uint64(len(table) - 1)
