"""Rows as vectors: each function against NumPy."""

import numpy as np
import pytest
import torch
from numba import njit

from kernels._numba import simd

pytestmark = pytest.mark.processors

WIDTHS = [1, 4, 8, 20, 24, 64, 136]


def _rows(width, count=3):
    generator = np.random.default_rng(width)
    return generator.normal(size=(count, width)).astype(np.float32)


@njit
def _axpy(output, i, weight, rows, a, b, lanes):
    simd.prefetch(rows, b, lanes)
    total = simd.load(rows, a, lanes)
    simd.store(output, i, simd.add_scaled(total, weight, simd.load(rows, b, lanes)))


@njit
def _clear(output, i, lanes):
    simd.store(output, i, simd.zero(lanes))


@njit
def _put_unless(output, i, none, spare, rows, a, lanes):
    simd.store_unless(output, i, none, spare, simd.load(rows, a, lanes))


@njit
def _softmax(output, i, rows, a, lanes):
    simd.store(output, i, simd.softmax2(simd.load(rows, a, lanes)))


@pytest.mark.parametrize("width", WIDTHS)
def test_add_scaled_writes_one_row_and_no_other(width):
    rows, output = _rows(width), np.full((3, width), np.nan, np.float32)
    _axpy(output, 1, np.float32(0.3), rows, 0, 2, (0,) * width)
    np.testing.assert_allclose(output[1], rows[0] + np.float32(0.3) * rows[2], rtol=1e-6, atol=1e-7)
    assert np.isnan(output[[0, 2]]).all()


@pytest.mark.parametrize("width", WIDTHS)
def test_zero_clears_a_row(width):
    output = np.full((2, width), np.nan, np.float32)
    _clear(output, 0, (0,) * width)
    assert (output[0] == 0).all()
    assert np.isnan(output[1]).all()


@pytest.mark.parametrize("width", WIDTHS)
def test_store_unless_writes_a_row_or_the_spare_one(width):
    rows = _rows(width)
    for i, none in ((1, 2), (2, 2)):
        output, spare = np.full((2, 3, width), np.nan, np.float32)
        _put_unless(output, i, none, spare, rows, 0, (0,) * width)
        written, kept = (spare[0], output) if i == none else (output[i], spare)
        np.testing.assert_array_equal(written, rows[0])
        assert np.isnan(kept).all()
        assert np.isnan(output).sum() + np.isnan(spare).sum() == 5 * width


@njit
def _softmax_with(output, other, rows, a, number, lanes):
    vector, other[0] = simd.softmax2_with(simd.load(rows, a, lanes), number)
    simd.store(output, 0, vector)
    simd.store(output, 1, simd.subtract(vector, other[0]))


@njit
def _difference(output, rows, a, lanes):
    simd.store(output, 0, simd.softmax2_difference(simd.load(rows, a, lanes)))


@njit
def _transposed(output, rows, columns, lanes):
    table = simd.scratch_table(np.float32, columns, lanes)
    for i in range(len(lanes)):
        for j in range(len(columns)):
            table[j, i] = rows[i, j]
    for j in range(len(columns)):
        simd.store(output, j, simd.load(table, j, lanes))


@njit
def _reversed_twice(output, rows, lanes):
    """Through two arrays on the stack, one a call of a loop."""
    kept = simd.scratch(np.float32, lanes)
    counts = simd.scratch(np.int64, lanes)
    for i in range(len(rows)):
        for c in range(len(lanes)):
            kept[len(lanes) - 1 - c] = rows[i, c]
            counts[c] = i
        for c in range(len(lanes)):
            output[i, c] = kept[len(lanes) - 1 - c] + counts[c]


@pytest.mark.parametrize("width", WIDTHS)
def test_arrays_on_the_stack_hold_what_is_put_there(width):
    rows, output = _rows(width), np.empty((3, width), np.float32)
    _reversed_twice(output, rows, (0,) * width)
    np.testing.assert_allclose(output, rows + np.arange(3)[:, None], rtol=1e-6)


@pytest.mark.parametrize("spread", [0.1, 10, 100, 1e4])
@pytest.mark.parametrize("width", WIDTHS)
def test_softmax2_is_as_accurate_as_torch(width, spread):
    rows, output = _rows(width) * np.float32(spread), np.empty((1, width), np.float32)
    _softmax(output, 0, rows, 1, (0,) * width)
    logits = torch.from_numpy(rows[1]).double() * np.log(2)
    exact = torch.softmax(logits, 0)
    torchs = torch.softmax((torch.from_numpy(rows[1]) * np.float32(np.log(2))), 0)
    budget = 2 * (torchs.double() - exact).abs().max() + torch.finfo(torch.float32).eps
    assert (torch.from_numpy(output[0]).double() - exact).abs().max() <= budget


def test_softmax2_of_forbidden_labels_is_zero():
    rows = np.array([[0, -np.inf, 0, -1e30, -np.inf, -np.inf, -np.inf, -np.inf]], np.float32)
    output = np.empty_like(rows)
    _softmax(output, 0, rows, 0, (0,) * 8)
    np.testing.assert_array_equal(output[0], [0.5, 0, 0.5, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("number", [0.3, -np.inf, 40.0])
@pytest.mark.parametrize("width", [1, 4, 8, 20])
def test_softmax2_with_a_number_is_softmax2_of_all(width, number):
    rows, output, other = _rows(width), np.empty((2, width), np.float32), np.empty(1, np.float32)
    _softmax_with(output, other, rows, 1, np.float32(number), (0,) * width)
    logits = torch.from_numpy(np.append(rows[1], np.float32(number))).double() * np.log(2)
    exact = torch.softmax(logits, 0).numpy()
    np.testing.assert_allclose([*output[0], other[0]], exact, rtol=0, atol=2e-7)
    np.testing.assert_array_equal(output[1], output[0] - other[0])
    assert other[0] == 0 or number > -np.inf


def test_softmax2_difference_is_that_of_two_shares():
    x = np.array([[0, 1e-4, -0.3, 1, -7, 30, 1e30, -np.inf]], np.float32)
    output = np.empty_like(x)
    _difference(output, x, 0, (0,) * 8)
    exact = np.tanh(x[0].astype(np.float64) * np.log(2) / 2)
    np.testing.assert_allclose(output[0], exact, rtol=0, atol=2e-7)
    assert output[0, 6:].tolist() == [1, -1]


def test_a_table_on_the_stack_holds_its_rows_one_after_another():
    rows = _rows(6, count=8)
    output = np.empty((6, 8), np.float32)
    _transposed(output, rows, (0,) * 6, (0,) * 8)
    np.testing.assert_array_equal(output, rows.T)
