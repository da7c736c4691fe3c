"""How many pictures a forward pass has to have: two where BatchNorm trains behind pooling."""

from dataclasses import replace

import pytest
import torch
from tiny_training import TINY, Signalling, run, tiny_pictures

from deeplab.distributed import Processes
from deeplab.errors import InputError
from deeplab.model import DeepLab
from deeplab.model.heads import DeepLabV3Head
from deeplab.model.resnet import ResNet
from deeplab.training import setup


def small_v3(name: str, num_classes: int, crf=None, frozen_bn: bool = False) -> DeepLab:
    """v3's layers, few and narrow."""
    style = {"style": "torchvision"}
    body = ResNet((1, 1, 1, 1), width=4, frozen_bn=frozen_bn, **style)
    head = DeepLabV3Head(body.out_channels, num_classes, (2,), frozen_bn=frozen_bn, channels=8)
    config = {"model": name, "num_classes": num_classes, "frozen_bn": frozen_bn, **style}
    return DeepLab(body, head, config=config)


@pytest.fixture
def v3(monkeypatch):
    monkeypatch.setattr(setup, "build", small_v3)
    return replace(TINY, model="deeplab_v3_resnet50", steps=1)


@pytest.mark.parametrize(
    ("changes", "sum_of_it"),
    [
        ({"batch_size": 1}, r"gets 1: batch_size 1 / \(accumulate 1 x 1 process\); raise batch"),
        ({"accumulate": 2}, r"gets 1: batch_size 2 / \(accumulate 2 x 1 process\); raise batch"),
    ],
)
def test_one_picture_at_a_time_is_refused_before_the_first_step(v3, changes, sum_of_it):
    data = Signalling(tiny_pictures(), -1, 0)
    message = rf"batch_size: deeplab_v3_resnet50 trains BatchNorm .* 2 pictures .*{sum_of_it}"
    with pytest.raises(InputError, match=message):
        run(replace(v3, **changes), data)
    assert data.calls == 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 4, "accumulate": 2},
        {"batch_size": 1, "model_options": {"frozen_bn": True}},
        {"accumulate": 2, "model_options": {"frozen_bn": True}},
    ],
)
def test_two_pictures_or_constant_batch_norm_train(v3, changes):
    assert run(replace(v3, **changes), tiny_pictures()).steps == 1


def test_models_without_image_pooling_train_on_one_picture():
    assert run(replace(TINY, batch_size=1, steps=1), tiny_pictures()).steps == 1


def test_pictures_are_counted_in_each_process_unless_batch_norm_is_synchronised(v3):
    model = small_v3(v3.model, 3)
    two = Processes(0, 2, torch.device("cpu"))
    with pytest.raises(InputError, match=r"batch_size 2 / \(accumulate 1 x 2 processes\)"):
        setup.check_batch(v3, model, two)
    setup.check_batch(replace(v3, batch_size=4), model, two)
    setup.check_batch(replace(v3, sync_bn=True), model, two)


def test_a_model_in_training_says_so_itself():
    model = small_v3("deeplab_v3_resnet50", 3).train()
    x = torch.zeros(1, 3, 33, 33)
    with pytest.raises(ValueError, match=r"x: a batch of one picture.* two or more, or build the"):
        model(x)
    assert model.eval()(x).shape == (1, 3, 33, 33)
    assert small_v3("deeplab_v3_resnet50", 3, frozen_bn=True).train()(x).shape[0] == 1
