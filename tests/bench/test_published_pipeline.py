"""The pipeline of a checkout gets our weights, or is refused; both clocks are summed up."""

import time
from pathlib import Path

import numpy as np
import published_pipeline as pipeline
import pytest
import torch
from torch import nn

from deeplab.model import deeplab_v2_small

THEIRS = """
from torch import nn
class DeepLabV2(nn.Sequential):
    def __init__(self, classes, blocks, rates):
        branches = [nn.Conv2d({inputs}, classes, 3) for _ in rates]
        super().__init__({body}, *branches)
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch):
    def write(body: str, inputs: int) -> Path:
        (tmp_path / "libs" / "models").mkdir(parents=True)
        file = tmp_path / "libs" / "models" / "deeplabv2.py"
        file.write_text(THEIRS.format(body=body, inputs=inputs))
        return tmp_path

    yield write
    for name in ("libs", "libs.models", "libs.models.deeplabv2"):
        monkeypatch.delitem(pipeline.sys.modules, name, raising=False)


def test_their_network_gets_the_weights_of_ours_in_order(checkout) -> None:
    ours = deeplab_v2_small(pipeline.CLASSES)
    ours.backbone = nn.Conv2d(3, 512, 1)
    path = checkout("nn.Conv2d(3, 512, 1)", inputs=512)
    theirs = pipeline.their_network(path, ours)
    assert torch.equal(theirs[0].weight, ours.backbone.weight)
    for kind in ("weight", "bias"):
        stacked = torch.cat([theirs[i].get_parameter(kind) for i in (1, 2, 3, 4)])
        assert torch.equal(stacked, ours.head.get_parameter(f"classifier.{kind}"))


def test_another_network_is_refused(checkout) -> None:
    with pytest.raises(ValueError, match="must have the DeepLab v2 of kazuto1011"):
        pipeline.their_network(checkout("nn.Conv2d(3, 8, 1)", inputs=8), deeplab_v2_small(21))


def test_a_folder_that_is_no_checkout_is_a_wrong_argument(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        pipeline.main([str(tmp_path)])
    assert ended.value.code == 2
    assert "must be a checkout of kazuto1011/deeplab-pytorch" in capsys.readouterr().err


def test_each_side_is_first_in_every_other_round() -> None:
    called: list[str] = []

    def side(name: str, seconds: float) -> pipeline.Pipeline:
        def call(_: pipeline.Image) -> np.ndarray:
            called.append(name)
            time.sleep(seconds)
            return np.zeros(1)

        return pipeline.Pipeline(logits=call, labels=call)

    image = np.zeros((1, 1, 3), np.uint8)
    times = pipeline.timed_in_turn(side("ours", 0.0), side("theirs", 0.02), image, rounds=3)
    assert called == [*["ours", "theirs"] * 2, *["theirs", "ours"] * 2, *["ours", "theirs"] * 2]
    for pairs in times.values():
        assert [pair[1]["wall"] >= 0.02 for pair in pairs] == [True] * 3


def test_a_ratio_is_the_median_of_those_within_rounds() -> None:
    found = pipeline._summary([(1.0, 2.0), (2.0, 6.0), (1.0, 5.0)])
    assert found == {"ours_seconds": 1.0, "theirs_seconds": 5.0, "ours_is_faster_by": 3.0}


def test_in_bfloat16_ours_may_differ_half_as_much_again_as_autocast(monkeypatch) -> None:
    network, image = nn.Identity(), np.zeros((2, 5, 3), np.uint8)
    expected = np.zeros((2, 5), int)
    others = expected.copy()
    others[0, :2] = 1  # a fifth
    seen: list[nn.Module] = []

    def of_network(checkout: Path, given: nn.Module) -> pipeline.Pipeline:
        seen.append(given)
        return pipeline.Pipeline(lambda image: None, lambda image: others)

    monkeypatch.setattr(pipeline, "their_pipeline", of_network)
    for dtype, most in ((torch.float32, 1e-3), (torch.bfloat16, 0.3)):
        monkeypatch.setattr(pipeline, "chosen", lambda *given, dtype=dtype: dtype)
        found = pipeline.different_at_most(Path(), network, image, expected)
        assert found == pytest.approx(most)
    (lowered,) = seen
    product = nn.Linear(3, 2)
    assert not torch.equal(
        pipeline.InBFloat16(product)(torch.ones(1, 3)), product(torch.ones(1, 3))
    )
    assert lowered(torch.ones(1, 3)).dtype == torch.float32
