"""How tensors lie in memory for the Triton kernels: pixels before channels, in aligned rows.

Without a promise of 16-element alignment a kernel compiles to scalar loads. So rows of channels are
padded with zeros to a multiple of 16 where they are not one already; a tensor that lies right is
used as it is, and nothing is copied.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

ALIGNMENT = 16  # elements, of rows in memory
WORKSPACE = 256 * 2**20  # bytes that multiply-then-shift holds at once: offsets fit 32 bits
PARTIAL_SUMS = 64 * 2**20  # bytes that the gradient to the weights takes where pixels are split


class Pixels(NamedTuple):
    """A map `[B, H, W, channels]` seen as rows, one a pixel, `stride` elements apart.

    inputs: channels to read from a row (of one rate), a multiple of 16.
    """

    tensor: Tensor
    batch: int
    height: int
    width: int
    inputs: int
    stride: int

    @property
    def pixels(self) -> int:
        return self.batch * self.height * self.width

    def images(self, part: slice) -> Pixels:
        """Some of the images."""
        tensor = self.tensor[part]
        return self._replace(tensor=tensor, batch=len(tensor))

    def as_row(self) -> Pixels:
        """All pixels of the batch as one row of one image."""
        return self._replace(batch=1, height=1, width=self.pixels)


class Taps(NamedTuple):
    """Weights as `w[rate, output, tap, input]`, with the strides to find an element.

    Reading outputs as inputs (`transposed`) gives the weights of the gradient to the input.
    """

    tensor: Tensor
    kernel: int
    outputs: int
    rate_stride: int
    output_stride: int
    tap_stride: int
    input_stride: int

    def transposed(self, outputs: int) -> Taps:
        """The weights with `outputs` of their inputs as outputs."""
        strides = self.rate_stride, self.input_stride, self.tap_stride, self.output_stride
        return Taps(self.tensor, self.kernel, outputs, *strides)


class Epilogue(NamedTuple):
    """What becomes of a sum z before it is stored: act(scale * (z + bias) + shift); None: nothing.

    bias is `[R, Cout]`, the others are of the output's channels; all are contiguous.
    """

    bias: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    activation: str | None = None


def aligned(channels: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-channels // ALIGNMENT) * ALIGNMENT


def tap_blocks(rates: int, kernel: int, fuse: str) -> int:
    """How many taps multiply-then-shift multiplies by; the centre of a sum counts once."""
    taps = kernel * kernel
    return 1 + rates * (taps - 1) if fuse == "sum" else rates * taps


def pixels_of(x: Tensor, rates: int = 1) -> tuple[Pixels, int]:
    """x `[B, rates * C, H, W]` as `Pixels`, and the channels from one rate to the next.

    A dense channels_last tensor with aligned C is a view; any other is copied, C padded with zeros.
    """
    batch, channels, height, width = x.shape
    each = channels // rates
    wanted = aligned(each)
    rows = x.permute(0, 2, 3, 1)
    if each != wanted or not rows.is_contiguous():
        padded = x.new_empty(batch, height, width, rates, wanted)
        padded[..., :each] = rows.unflatten(3, (rates, each))
        padded[..., each:] = 0
        rows = padded
    return Pixels(rows, batch, height, width, wanted, rates * wanted), wanted


def groups(batch: int, area: int, most: int) -> list[slice]:
    """Cut the images of a batch, of `area` pixels each, into groups of at most `most` pixels."""
    images = most // area
    return [slice(first, first + images) for first in range(0, batch, images)]


def taps_of(weight: Tensor, pad_outputs: bool = False) -> Taps:
    """weight `[R, Cout, Cin, k, k]` as `Taps`, inputs padded with zeros to a multiple of 16.

    Weights that are channels_last (Cin contiguous, then k, k, Cout, R) are a view. `pad_outputs`
    also pads Cout, for reading outputs as inputs.
    """
    rates, outputs, inputs, kernel, _ = weight.shape
    rows, columns = aligned(outputs) if pad_outputs else outputs, aligned(inputs)
    last = weight.permute(0, 1, 3, 4, 2)
    if (rows, columns) != (outputs, inputs) or not last.is_contiguous():
        padded = weight.new_empty(rates, rows, kernel, kernel, columns)
        if (rows, columns) != (outputs, inputs):
            padded.zero_()
        padded[:, :outputs, :, :, :inputs] = last
        last = padded
    taps = kernel * kernel
    return Taps(last, kernel, outputs, rows * taps * columns, taps * columns, columns, 1)
