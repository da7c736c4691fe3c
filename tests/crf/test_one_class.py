"""One class: the layer says that there is nothing to decide, the drop-in takes it as pydensecrf."""

import warnings

import numpy as np
import pytest
import torch

import crf
from crf.pydensecrf import densecrf


def test_a_layer_of_one_class_warns_that_it_decides_nothing_and_gives_ones() -> None:
    with pytest.warns(UserWarning, match="num_classes=1: with one class every marginal is 1") as w:
        layer = crf.DenseCRF(1, iterations=2)
    assert len(w) == 1
    assert w[0].filename == __file__  # the caller's line
    marginals = layer(torch.randn(1, 1, 4, 5), 255 * torch.rand(1, 3, 4, 5))
    torch.testing.assert_close(marginals, torch.ones(1, 1, 4, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crf.DenseCRF(2)


def test_the_drop_in_takes_one_label_in_silence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        field = densecrf.DenseCRF2D(5, 4, 1)
        field.setUnaryEnergy(np.zeros((1, 20), np.float32))
        field.addPairwiseGaussian(sxy=3, compat=3)
        field.addPairwiseBilateral(sxy=9, srgb=9, rgbim=np.zeros((4, 5, 3), np.uint8), compat=3)
        np.testing.assert_array_equal(field.inference(2), np.ones((1, 20), np.float32))
