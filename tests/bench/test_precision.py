"""The comparison of precisions counts equal labels of the network and of its CRF."""

import precision
import pytest

from deeplab.data.scenes import scene
from deeplab.weights import SHIPPED


def test_agreement_is_a_share_of_all_pixels_and_of_the_worst_picture(monkeypatch) -> None:
    images = [scene(1, size=33).image, scene(2, size=65).image]
    found = precision.agreement(SHIPPED, images)
    for shares in found.values():
        assert 0.9 < shares["least"] <= shares["all"] <= 1
    assert list(found) == ["network", "with CRF"]
    monkeypatch.setattr(precision.torch, "bfloat16", precision.torch.float32)
    same = precision.agreement(SHIPPED, images[:1])
    assert same["network"] == same["with CRF"] == {"all": 1.0, "least": 1.0}


def test_a_pattern_without_pictures_is_a_wrong_argument(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        precision.main(["--pictures", str(tmp_path / "*.jpg")])
    assert ended.value.code == 2
    assert "must name pictures" in capsys.readouterr().err
