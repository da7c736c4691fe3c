"""Sigmas too small for a lattice: the error names the argument, and its advice works."""

import re
from typing import Any

import numpy as np
import pytest
import torch

import crf
import crf.pydensecrf.densecrf as dcrf
from crf.pydensecrf.utils import create_pairwise_bilateral

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
IMAGE[0, 0] = 255


def _bilateral(sxy: Any, srgb: Any) -> dcrf.DenseCRF2D:
    dense = dcrf.DenseCRF2D(8, 6, 2)
    dense.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=IMAGE, compat=3)
    return dense


def _factor(error: pytest.ExceptionInfo[ValueError]) -> float:
    found = re.search(r"at least (\S+) times as large", str(error.value))
    assert found
    return float(found[1])


@pytest.mark.parametrize("sxy", [40, 3.5e-5])  # positions take hardly anything, or 0.4, of the room
@pytest.mark.parametrize("small", [1e-4, 3e-5, 1e-40])
def test_a_small_srgb_is_named_and_the_factor_asked_for_is_enough_and_needed(small, sxy):
    with pytest.raises(ValueError, match=f"^srgb={small!r} is too small") as error:
        _bilateral(sxy, small)
    assert "float64" not in str(error.value)  # the drop-in computes in float32
    assert np.isfinite(_bilateral(sxy, small * _factor(error)).inference(1)).all()
    with pytest.raises(ValueError, match="too small"):
        _bilateral(sxy, small * _factor(error) * 0.9)


def test_no_warning_comes_before_the_error():
    with np.errstate(all="raise"), pytest.raises(ValueError, match="srgb"):
        _bilateral(40, 1e-40)


def test_the_argument_at_fault_is_named_as_it_was_given():
    with pytest.raises(ValueError, match=r"^sxy=\(1e-06, 3\) is too small"):
        _bilateral((1e-6, 3), 5)
    with pytest.raises(ValueError, match=r"^srgb=1e-05 and sxy=1e-06 are too small") as error:
        _bilateral(1e-6, 1e-5)
    _bilateral(1e-6 * _factor(error), 1e-5 * _factor(error))
    with pytest.raises(ValueError, match=r"^sxy=1e-06 is too small"):
        dcrf.DenseCRF2D(8, 6, 2).addPairwiseGaussian(sxy=1e-6, compat=3)


def test_features_that_the_caller_divided_are_called_features():
    features = create_pairwise_bilateral((3, 3), (1e-5,) * 3, IMAGE, chdim=2)
    message = r"^features are too large .* schan of crf.pydensecrf.utils"
    with pytest.raises(ValueError, match=message):
        dcrf.DenseCRF(48, 2).addPairwiseEnergy(features, compat=3)
    with pytest.raises(ValueError, match=r"^features must be finite"):
        dcrf.DenseCRF(48, 2).addPairwiseEnergy(np.full_like(features, np.nan), compat=3)


def _layer(**terms: Any) -> crf.DenseCRF:
    return crf.DenseCRF(2, iterations=1, **{"gaussian": None, "bilateral": None, **terms})


@pytest.mark.parametrize("call", ["forward", "refine_logits", "diagnose", "return_kl"])
def test_the_layer_names_the_term_and_its_sigma(call):
    layer = _layer(gaussian=crf.Gaussian(3, 3.0), bilateral=crf.Bilateral(4, 49.0, 1e-4))
    given = torch.zeros(1, 2, 6, 8), torch.from_numpy(IMAGE).permute(2, 0, 1)[None]
    options = {"return_kl": True} if call == "return_kl" else {}
    method = getattr(layer, "forward" if options else call)
    with pytest.raises(ValueError, match=r"^bilateral.sigma_rgb=0.0001 is too small.*\"exact\""):
        method(*given, **options)


def test_the_layer_names_the_features_of_a_term_of_ones_own():
    layer = _layer(pairwise=[crf.Pairwise("depth", 2.0)])
    with pytest.raises(ValueError, match=r"^features\['depth'\] are too large"):
        layer(torch.zeros(1, 2, 6, 8), features={"depth": 1e9 * torch.rand(1, 48, 2)})


def test_a_learned_sigma_is_named_with_its_number():
    layer = _layer(gaussian=crf.Gaussian(3, 3.0), learnable=True, learn_sigmas=False)
    assert layer.learned is not None
    with torch.no_grad():
        layer.learned.raw_sigmas["gaussian_sigma_xy"].fill_(-15.0)  # softplus: 3e-7
    with pytest.raises(ValueError, match=r"^gaussian.sigma_xy=3\.\d+e-07 is too small"):
        layer(torch.zeros(1, 2, 6, 8))
