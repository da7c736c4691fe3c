"""CRF settings: their defaults, what may be in a file, and what no CRF can compute with."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from crf import Bilateral, DenseCRF, Gaussian
from deeplab.crf_settings import CRFSettings
from deeplab.errors import InputError
from deeplab.refine import SCRIBBLES
from deeplab.weights import SHIPPED, read_metadata


def test_settings_default_to_the_papers_and_to_the_examples() -> None:
    assert CRFSettings() == CRFSettings(10, Gaussian(3, 3), Bilateral(4, 49, 5))
    assert CRFSettings(5, Gaussian(3, 3), Bilateral(10, 80, 13)) == SCRIBBLES


def test_settings_change_where_a_value_is_given() -> None:
    assert CRFSettings().changed({"iterations": 3, "gaussian_weight": None}).iterations == 3
    changed = CRFSettings().changed({"bilateral_sigma_xy": [30.0, 40.0], "gaussian_weight": 2.0})
    assert changed == CRFSettings(10, Gaussian(2.0, 3.0), Bilateral(4.0, (30.0, 40.0), 5.0))
    with pytest.raises(InputError, match="unknown sigma; expected iterations, gaussian_weight, "):
        CRFSettings().changed({"sigma": 3})


@pytest.mark.parametrize(
    "settings",
    [
        CRFSettings(),
        CRFSettings(2, Gaussian(2.0, (1.5, 2.5)), Bilateral(3.0, 20.0, (8.0, 9.0, 10.0))),
        CRFSettings(3, Gaussian(-1.0, 0.1), Bilateral(2.5, 67.25, 3.0), ((0.0, 1.5), (0.5, 0.0))),
    ],
    ids=["default", "a sigma for each axis", "learned"],
)
def test_settings_survive_toml_and_a_layer(tmp_path: Path, settings: CRFSettings) -> None:
    (tmp_path / "crf.toml").write_text(settings.to_toml())
    assert CRFSettings.from_toml(tmp_path / "crf.toml") == settings
    assert CRFSettings.of(settings.layer(2)) == settings


def test_a_term_that_is_left_out_is_stored_as_one_of_no_weight(tmp_path: Path) -> None:
    settings = CRFSettings(4, gaussian=None)
    assert settings.layer(2).gaussian is None
    assert CRFSettings.of(settings.layer(2)) == settings
    (tmp_path / "crf.toml").write_text(settings.to_toml())
    assert CRFSettings.from_toml(tmp_path / "crf.toml") == CRFSettings(4, Gaussian(0.0, 3.0))
    given = {"gaussian_sigma_xy": 2.0}
    assert settings.changed(given) == CRFSettings(4, Gaussian(0.0, 2.0))


def test_on_a_picture_twice_as_large_the_enlarged_crf_does_the_same() -> None:
    settings = CRFSettings(5, Gaussian(2.0, 1.0), Bilateral(3.0, (6.0, 5.0), 8.0))
    twice = CRFSettings(5, Gaussian(2.0, 2.0), Bilateral(3.0, (12.0, 10.0), 8.0))
    assert settings.enlarged(2) == twice
    assert twice.enlarged(0.5) == settings
    assert CRFSettings(gaussian=None).enlarged(2).gaussian is None
    torch.manual_seed(0)
    coarse = torch.randint(0, 256, (1, 3, 8, 9)).float()
    image = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    logits = torch.randn(1, 3, 8, 9).repeat_interleave(4, 2).repeat_interleave(4, 3)
    large = [x.repeat_interleave(2, 2).repeat_interleave(2, 3) for x in (logits, image)]
    exact = {"method": "exact", "iterations": 5}

    def refined(of: CRFSettings, logits: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        layer = DenseCRF(3, gaussian=of.gaussian, bilateral=of.bilateral, **exact)  # type: ignore[arg-type]
        found: torch.Tensor = layer(logits, image)
        return found

    found = refined(settings, logits, image)
    off = [(refined(s, *large)[:, :, ::2, ::2] - found).abs().mean() for s in (twice, settings)]
    assert off[0] < 0.25 * off[1]


def test_the_names_of_earlier_versions_are_read() -> None:
    old = {"iterations": 7, "gaussian_weight": 1.0, "gaussian_sigma": 2.0, "compatibility": None}
    assert CRFSettings().changed(old) == CRFSettings(7, Gaussian(1.0, 2.0))
    expected = CRFSettings(10, Gaussian(1.0, 1.0), Bilateral(10.0, 120.0, 8.0))
    assert CRFSettings.stored(read_metadata(SHIPPED)) == expected
    assert CRFSettings.stored({}) == CRFSettings()


WRONG = {
    **{"iterations": (-1, 2.5, True), "gaussian_weight": (-0.5, "much")},
    **{"gaussian_sigma_xy": (0.0, [1.0]), "bilateral_weight": (float("inf"),)},
    **{"bilateral_sigma_xy": (-3.0,), "bilateral_sigma_rgb": (float("nan"),)},
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, many in WRONG.items() for v in many])
def test_settings_without_sense_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"weights.toml: .*CRF {name} must be .*, not"):
        CRFSettings.stored({"crf": {name: value}}, "weights.toml")


@pytest.mark.parametrize(
    "matrix", [[[0.0, 1.0]], [[0.0, np.nan], [1.0, 0.0]], "potts", [[1.0], [1.0, 2.0]], []]
)
def test_a_compatibility_that_is_no_square_matrix_is_named(matrix: list[list[float]]) -> None:
    with pytest.raises(InputError, match="CRF compatibility must be a square matrix"):
        CRFSettings(compatibility=matrix)


def test_a_compatibility_for_other_classes_is_named() -> None:
    with pytest.raises(InputError, match="a row for each of 3 classes, not 2"):
        CRFSettings(compatibility=[[0.0, 1.0], [1.0, 0.0]]).layer(3)


def test_all_bands_of_rgb_are_the_bilateral_term() -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 9, 12), generator=rng).float()
    logits = torch.randn(2, 4, 9, 12, generator=rng)
    settings = CRFSettings(bilateral=Bilateral(4.0, (9.0, 7.0), 60.0))
    expected = settings.refiner(4)(logits, images)
    found = settings.changed({"bands": "all"}).refiner(4)(logits, images)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_band_beyond_three_parts_what_is_alike_in_the_others() -> None:
    levels = torch.full((1, 5, 6, 8), 100.0)
    levels[:, 4, :, 4:] = 200
    logits = torch.zeros(1, 2, 6, 8)
    logits[:, 0, :, :3] = 2
    settings = {"gaussian_weight": 0, "bilateral_sigma_rgb": 10}
    of_three = CRFSettings().changed(settings).refiner(2)(logits, levels[:, :3])
    of_all = CRFSettings().changed(settings | {"bands": "all"}).refiner(2)(logits, levels)
    assert (of_three.argmax(1) == 0).all()
    assert (of_all[:, 0, :, :4] > 0.9).all()
    assert (of_all[:, 0, :, 4:] < 0.6).all()


@pytest.mark.parametrize("bands", [(3, 2, 1), "all"])
def test_bands_are_stored_with_the_settings(bands, tmp_path) -> None:
    settings = CRFSettings(bands=bands)
    path = tmp_path / "crf.toml"
    path.write_text(settings.to_toml())
    assert CRFSettings.from_toml(path) == settings
    assert CRFSettings().changed(json.loads(json.dumps(settings.as_dict()))) == settings
    assert "bands" not in CRFSettings().as_dict()


def test_bands_that_make_no_sense_are_refused() -> None:
    for bands in ((0, 1), (0, 1, -1), (0, 1, 2.0), "some", (0, 1, True)):
        with pytest.raises(InputError, match="CRF bands must be all, or three integers"):
            CRFSettings(bands=bands)
    settings = CRFSettings(bilateral=Bilateral(4.0, 49.0, (5.0, 5.0, 6.0)), bands="all")
    with pytest.raises(InputError, match="bilateral_sigma_rgb must be one number where bands is"):
        settings.refiner(2)
