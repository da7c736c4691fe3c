"""The kernels of mean field compile without spills, for any number of labels and terms."""

from __future__ import annotations

import re

import pytest
import torch
from targets import SHARED_MEMORY, assert_fits, assert_serves_any_size, lattice, meta
from torch import Tensor

from kernels.meanfield import triton
from kernels.meanfield.term import LatticeTerm

COUNT = 187_500
STACKING = {"corners_kernel", "move_kernel", "neighbours_kernel"}
OWN = {"start_kernel", "update_kernel", *STACKING}
SHARED = {"fold_kernel", "splat_kernel", "sum_kernel", "blur_kernel"}


def term(dims: int, rows: int, compatibility: Tensor) -> LatticeTerm:
    return LatticeTerm(lattice(dims, COUNT, rows), compatibility, meta(COUNT), meta(COUNT))


def infer(labels: int, transposed: bool = True, matrix: bool = False, ordered: bool = True) -> None:
    """Two updates of a Gaussian and a bilateral term."""
    unary = meta(labels, COUNT).T if transposed else meta(COUNT, labels)
    compatibility = meta(labels, labels) if matrix else meta(labels)
    order = meta(COUNT, dtype=torch.int64) if ordered else None
    terms = [term(2, 24_500, compatibility), term(5, 224_001, compatibility)]
    triton.mean_field(unary, terms, 2, None, order, True, torch.empty_like(unary))


@pytest.mark.parametrize("target", SHARED_MEMORY)
@pytest.mark.parametrize("labels", [2, 21, 150, 256])
def test_updates_spill_nothing(binaries, target, labels):
    found = binaries(target, lambda: infer(labels), OWN)
    assert {binary.kernel for binary in found} == OWN
    for binary in found:
        assert_fits(binary, target)


@pytest.mark.parametrize("target", SHARED_MEMORY)
def test_labels_side_by_side_and_no_order_spill_nothing(binaries, target):
    for binary in binaries(target, lambda: infer(21, transposed=False, ordered=False), OWN):
        assert_fits(binary, target)


@pytest.mark.parametrize("labels", [21, 24])  # 24 fill their rows
def test_updates_store_rows_in_vectors_and_without_shared_memory(binaries, labels):
    found = binaries("sm_90", lambda: infer(labels), {"update_kernel"})
    within, last = found  # the second writes the caller's layout
    assert re.search(r"st\.global(\.\w+)*\.v4", within.assembly)
    assert within.shared == 0
    assert last.assembly != within.assembly


def test_an_iteration_is_nine_launches(launches):
    """Splat, its sums, six directions, update: as many for one term as for two; and products."""
    for matrix in (False, True):
        found = [launch.name for launch in launches(lambda m=matrix: infer(21, matrix=m))]
        iteration = ["splat_kernel", "sum_kernel", *["blur_kernel"] * 6, "update_kernel"]
        iteration[-1:-1] = ["product_kernel"] * 2 * matrix  # with a matrix, one a term
        both = 2 * len(iteration)
        assert found[0] == "start_kernel"
        assert found[-both:] == iteration * 2
        assert set(found[1:-both]) == STACKING | {"fold_kernel"}


def test_sizes_are_no_reason_to_compile_anew(launches):
    """Of as many labels."""
    found = launches(lambda: infer(21))
    assert {launch.name for launch in found} == OWN | SHARED
    assert_serves_any_size(found)
