"""A large picture in overlapping tiles, whose probabilities are blended where they overlap.

    P(p) = sum_t w_t(p) P_t(p),     sum_t w_t(p) = 1,     w_t(y, x) = u_t(y) v_t(x)

along each axis a weight rises over the overlap with the tile before and falls over that with the
next, linearly in the middle quarter of it:

    |------ tile ------|
    1 1 1 1 1 1 1 1 \\ 0 0
              0 0 / 1 1 1 1 1 1 1 1
             |------ tile ------|

The outermost 3/8 of an overlap count nothing: there a network sees its padding, and a CRF lacks
many of the neighbours. Of the default overlap they are 144 pixels; atrous rates reach up to 192.

Tiles go row by row. What no later tile touches is finished and given away, so that all that is kept
of a picture is the overlap with the row below (on the disk where that is large) and with the tile
to the right: memory grows with the width of a picture, not with its area.

Tiles start at multiples of the pixels from one score of the network to the next and are as long as
the upsampling of scores divides evenly, so that the scores of a tile lie exactly where the network
has computed them. Those of a whole picture do so where its sides are such lengths themselves; else
they are stretched to its edges, by less than one score in all.
"""

from __future__ import annotations

import errno
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deeplab.errors import InputError
from deeplab.model import DeepLab

IN_MEMORY = 2**30  # bytes; larger arrays lie in a temporary file
LARGEST_DENOMINATOR = 8  # of scales whose grids tiles are made to fit


@dataclass(frozen=True)
class Part:
    """A finished rectangle of a picture: where it is, and its values `[C, rows, columns]`."""

    rows: slice
    columns: slice
    values: Tensor


@dataclass(frozen=True)
class Span:
    """A tile along one axis: pixels `start` to `stop`; those below `done` are finished with it.

    weight: float32 `[stop - start]`; those of all spans sum to 1 at each pixel.
    """

    start: int
    stop: int
    done: int
    weight: Tensor


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut: tiles of `tile` pixels a side, neighbours sharing `overlap` at least.

    unit: tiles start at multiples of it. extra: `tile` is a multiple of unit and this many more.
    """

    tile: int
    overlap: int
    unit: int
    extra: int

    @classmethod
    def of(cls, model: DeepLab, scales: Sequence[float], tile: int, overlap: int) -> Tiling:
        """For a network seen at these scales, and at those of its own (MSC); tile: at most.

        Raises ValueError for an overlap of more than half a tile, where three would meet, and a
        tile that is too short for the network's grid and the overlap. Scales whose grids would
        take more than that are left out of it: at those, tiles are off by parts of a pixel.
        """
        if not 0 <= overlap <= tile // 2:
            raise ValueError(f"overlap must be from 0 to half a tile, {tile // 2}, not {overlap}")
        backbone = getattr(model.backbone, "output_stride", model.output_stride)
        stride = math.lcm(model.output_stride, backbone)
        extra = 1 if model.aligned else 0
        least = _least(stride, overlap, extra)
        if tile < least:
            raise ValueError(
                f"tile must be at least {least} pixels for this model and an overlap of {overlap}, "
                f"not {tile}"
            )
        unit = stride
        for scale in (*scales, *(model.scales or ())):
            finer = math.lcm(unit, stride * _denominator(scale))
            if _least(finer, overlap, extra) <= tile:
                unit = finer
        return cls(tile - (tile - extra) % unit, overlap, unit, extra)

    def spans(self, length: int) -> list[Span]:
        """The tiles along an axis of `length` pixels, about evenly spaced.

        The last ends where the picture does, whatever its length.
        """
        if length <= self.tile:
            return [Span(0, length, length, torch.ones(length))]
        step = (self.tile - self.overlap) // self.unit  # in units, as the last start
        last = -((self.tile - length) // self.unit)
        count = -(-last // step) + 1
        starts = [self.unit * (i * last // (count - 1)) for i in range(count)]
        stops = [min(start + self.tile, length) for start in starts]
        weights = []
        for i, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            weight = torch.ones(stop - start)
            if i > 0:
                weight *= _rise(stops[i - 1] - start, stop - start)
            if i < count - 1:
                weight *= _rise(stop - starts[i + 1], stop - start).flip(0)
            weights.append(weight)
        total = torch.zeros(length)
        for start, stop, weight in zip(starts, stops, weights, strict=True):
            total[start:stop] += weight
        done = [*starts[1:], length]
        return [
            Span(start, stop, end, weight / total[start:stop])
            for start, stop, end, weight in zip(starts, stops, done, weights, strict=True)
        ]


def _least(unit: int, overlap: int, extra: int) -> int:
    """The shortest tile that reaches a unit beyond the overlap."""
    return unit * (1 + -(-max(0, overlap - extra) // unit)) + extra


def _denominator(scale: float) -> int:
    """That of a scale, by which a grid has to be multiplied; 1 where it is no simple fraction."""
    fraction = Fraction(scale).limit_denominator(LARGEST_DENOMINATOR)
    return fraction.denominator if math.isclose(fraction, scale) else 1


def _rise(overlap: int, length: int) -> Tensor:
    """0 to 1 over an overlap at the start of a tile: flat, linear in the middle quarter, flat."""
    place = (torch.arange(length) + 0.5) / max(1, overlap)
    return (4 * place - 1.5).clamp(0, 1)


def blended(
    rows: Sequence[Span], columns: Sequence[Span], values: Callable[[slice, slice], Tensor]
) -> Iterator[Part]:
    """The blend of `values(rows, columns)` `[C, h, w]` over all tiles, part by part, float32.

    The parts are disjoint and cover the picture; their values are on the CPU.
    """
    above: np.ndarray | None = None  # [C, rows, W] of the rows before, from the first row here on
    for row in rows:
        below: np.ndarray | None = None
        left: Tensor | None = None  # [C, h, columns] of the tiles before, from the first here on
        for column in columns:
            where = slice(row.start, row.stop), slice(column.start, column.stop)
            tile = values(*where).float().cpu() * (row.weight[:, None] * column.weight)
            if left is not None:
                tile[:, :, : left.shape[2]] += left
            finished = column.done - column.start
            left = tile[:, :, finished:].clone()
            tile = tile[:, :, :finished]
            here = slice(column.start, column.done)
            if above is not None:
                tile[:, : above.shape[1]] += torch.from_numpy(above[:, :, here])
            end = row.done - row.start
            if row.done < row.stop:
                if below is None:
                    below = room((len(tile), row.stop - row.done, columns[-1].stop))
                below[:, :, here] = tile[:, end:].numpy()
            yield Part(slice(row.start, row.done), here, tile[:, :end])
        above = below


def room(shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> np.ndarray:
    """An array to fill: in memory, or above IN_MEMORY in a temporary file that is gone with it.

    The file has no name, so that nothing is left of it however the process ends. Raises InputError
    where the disk has no room for it.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= IN_MEMORY:
        return np.empty(shape, dtype)
    try:
        with tempfile.TemporaryFile() as file:
            _reserve(file.fileno(), size)
            return np.memmap(file, dtype, "w+", shape=shape)
    except OSError as error:
        raise InputError(
            f"{tempfile.gettempdir()}: {size / 1e9:.1f} GB beside the memory are needed "
            f"({error.strerror or error}); have TMPDIR name a folder of a larger disk"
        ) from error


def _reserve(file: int, size: int) -> None:
    """Bytes of the disk for a file, where that can be had: a full disk ends a process that writes
    to a mapped file without them."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # not on this file system
                raise
