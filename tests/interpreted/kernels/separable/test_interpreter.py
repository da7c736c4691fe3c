"""The separable filter in the interpreter: its small problems have several blocks; compilers."""

from __future__ import annotations

import pytest
import torch
from opchecks import OPCHECKS
from separable_problems import make

import kernels
from kernels.separable import ops


def test_pieces_and_blocks_are_several_in_the_image() -> None:
    _, features, spatial = make("image")
    separable = kernels.build_separable(features, spatial_dims=spatial)
    assert (separable.pieces[:, 1] - separable.pieces[:, 0]).max() > 16
    assert len(separable.landmarks) > 16


def test_a_crowded_cell_is_cut_into_pieces() -> None:
    _, features, spatial = make("one colour in one place")
    separable = kernels.build_separable(features, spatial_dims=spatial)
    assert separable.starts.diff().tolist() == [3, 0, 0, 0]


def test_opchecks_pass() -> None:
    values, features, spatial = make("one point")
    leaf = values.requires_grad_()
    options = spatial, 0.1, 64, "triton", "ieee"
    arguments = leaf[None], features[None], *options
    torch.library.opcheck(ops.separable_filter, arguments, test_utils=OPCHECKS)
    s = kernels.build_separable(features, spatial_dims=spatial)
    tensors = s.landmarks, s.mixing, s.axes, s.shape, s.order, s.colours, s.fractions, s.diagonal
    arguments = leaf, *tensors, s.pieces, s.starts, "triton", "ieee"
    torch.library.opcheck(ops.separable_apply, arguments, test_utils=OPCHECKS)


def test_bf16_is_refused_by_the_interpreter() -> None:
    values, features, spatial = make("one point")
    separable = kernels.build_separable(features, spatial_dims=spatial)
    with pytest.raises(ValueError, match="cannot compute in bf16"):
        kernels.apply_separable(separable, values, impl="triton", precision="bf16")
