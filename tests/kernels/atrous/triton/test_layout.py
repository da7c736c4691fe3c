"""Memory layouts for the Triton kernels: views where possible, zeros where padded."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
from kernels.atrous import ops
from kernels.atrous.triton import layout


def test_aligned_channels_last_pixels_are_a_view():
    x = torch.randn(2, 32, 5, 7).contiguous(memory_format=torch.channels_last)
    pixels, step = layout.pixels_of(x)
    assert pixels.tensor.data_ptr() == x.data_ptr()
    assert (pixels.pixels, pixels.inputs, pixels.stride, step) == (70, 32, 32, 32)


def test_aligned_branches_are_a_view():
    x = torch.randn(2, 96, 5, 7).contiguous(memory_format=torch.channels_last)
    pixels, step = layout.pixels_of(x, rates=3)
    assert pixels.tensor.data_ptr() == x.data_ptr()
    assert (pixels.inputs, pixels.stride, step) == (32, 96, 32)


@pytest.mark.parametrize("rates", [1, 3])
def test_other_pixels_are_copied_and_padded_with_zeros(rates):
    x = torch.randn(2, 6, 5, 7)
    pixels, step = layout.pixels_of(x, rates)
    rows = pixels.tensor.view(2, 5, 7, rates, step)
    assert step == 16
    assert torch.equal(rows[..., : 6 // rates].flatten(3), x.permute(0, 2, 3, 1))
    assert rows[..., 6 // rates :].eq(0).all()


def test_channels_last_weights_are_a_view_as_a_model_stores_them():
    weight = torch.randn(4 * 20, 32, 3, 3).contiguous(memory_format=torch.channels_last)
    taps = layout.taps_of(weight.unflatten(0, (4, 20)))
    assert taps.tensor.data_ptr() == weight.data_ptr()
    assert (taps.rate_stride, taps.output_stride, taps.tap_stride) == (20 * 288, 288, 32)


@pytest.mark.parametrize("pad_outputs", [False, True])
def test_strides_of_taps_find_every_weight(pad_outputs):
    weight = torch.randn(2, 5, 6, 3, 3)
    taps = layout.taps_of(weight, pad_outputs)
    strides = taps.rate_stride, taps.output_stride, taps.input_stride, taps.tap_stride
    seen = taps.tensor.as_strided((2, 5, 6, 9), strides)
    assert torch.equal(seen, weight.flatten(3))
    assert taps.tensor.abs().sum().item() == pytest.approx(weight.abs().sum().item())  # or zero
    assert taps.tensor.shape[1] == (16 if pad_outputs else 5)


def test_transposed_taps_read_outputs_as_inputs():
    weight = torch.randn(2, 5, 6, 3, 3)
    taps = layout.taps_of(weight, pad_outputs=True).transposed(outputs=6)
    strides = taps.rate_stride, taps.output_stride, taps.input_stride, taps.tap_stride
    seen = taps.tensor.as_strided((2, 6, 5, 9), strides)
    assert torch.equal(seen, weight.transpose(1, 2).flatten(3))


@pytest.mark.parametrize(
    ("batch", "most", "expected"), [(3, 100, [3]), (3, 25, [2, 1]), (2, 10, [1, 1]), (0, 10, [])]
)
def test_groups_are_as_many_images_as_fit(batch, most, expected):
    x, _ = layout.pixels_of(torch.randn(batch, 16, 2, 5))
    parts = [x.images(part) for part in layout.groups(batch, 10, most)]
    assert [part.batch for part in parts] == expected
    assert torch.equal(torch.cat([part.tensor for part in parts] or [x.tensor]), x.tensor)


def test_the_weight_gradient_has_inputs_contiguous():
    gradient = ops._empty_weight_gradient(torch.zeros(2, 5, 6, 3, 3))
    assert gradient.shape == (2, 5, 6, 3, 3)
    assert gradient.stride(2) == 1
