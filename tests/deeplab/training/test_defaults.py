"""The model that a run takes where it is told none: from its weights, or of the machine's size."""

from dataclasses import asdict

import pytest
import torch

from deeplab.errors import InputError
from deeplab.model import build, deeplab_v2_small
from deeplab.model.backbones import BACKBONES
from deeplab.training import TrainConfig
from deeplab.training.defaults import choose
from deeplab.training.recipe import flat_settings, make_config
from deeplab.weights import load_weights, save_weights

ON_A_CPU = {"device": "cpu"}
OWN = {"data.name": "folder", "data.root": "mine"}


def given(**settings):
    return flat_settings(ON_A_CPU | settings, "--set")


def chosen(**settings):
    """The configuration of a run, and what is told of it."""
    said = given(**settings)
    choice = choose(said)
    config = make_config(choice.settings | said)
    return config, choice.told(config)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Where files of weights are made once."""
    return tmp_path_factory.mktemp("weights")


def imagenet(folder, backbone):
    """A classifier of pictures as torchvision has it, of nothing but zeros."""
    with torch.device("meta"):
        body = build("deeplab_v3plus", 2, backbone=backbone).backbone.state_dict()
    state = {name: torch.zeros(tensor.shape) for name, tensor in body.items()}
    path = folder / f"{backbone}.pth"
    torch.save(state | {"fc.weight": torch.zeros(1000, 8), "fc.bias": torch.zeros(1000)}, path)
    return path


def test_a_segmenters_own_file_decides_the_model_and_its_options(files):
    path = files / "own.safetensors"
    options = {"rates": [2, 4], "scales": [1.0, 0.5], "frozen_bn": True}
    save_weights(deeplab_v2_small(3, **options), path)
    config, told = chosen(weights=str(path), **OWN)
    model = build(config.model, 3, **config.model_options)
    assert options.items() <= model.config.items()
    assert load_weights(model, path).skipped == ()
    assert (config.optimizer, config.lr, config.steps) == ("adamw", 1e-4, 1500)
    assert config.loss_stride == 8  # as several scales want it
    assert config.warmup == 50
    assert chosen(weights=str(path), steps=120, **OWN)[0].warmup == 12
    assert told.startswith(f"{path}: weights of a whole network: deeplab_v2_small, 1500 steps of 8")
    assert "choose otherwise with" in told


def test_scales_of_a_model_of_another_stride_or_behind_a_crf_have_a_loss_at_full_size(files):
    path = files / "scaled.safetensors"
    save_weights(build("deeplab_v3plus_resnet18", 3, scales=(1.0, 0.5)), path)
    assert chosen(weights=str(path), **OWN)[0].loss_stride == 1
    save_weights(deeplab_v2_small(3, scales=(1.0, 0.5)), path)
    assert chosen(weights=str(path), crf=True, **OWN)[0].loss_stride == 1


def test_the_model_of_a_file_that_does_not_say_it_is_recognised(files):
    path = files / "state.pth"
    torch.save(deeplab_v2_small(5).state_dict(), path)
    config, told = chosen(weights=str(path), **OWN)
    assert config.model == "deeplab_v2_small"
    assert load_weights(build(config.model, 5, **config.model_options), path).skipped == ()
    assert "weights of a whole network" in told


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_large"])
def test_a_body_gets_the_head_of_v3plus(files, backbone):
    path = imagenet(files, backbone)
    config, told = chosen(weights=str(path), **OWN)
    assert (config.model, config.lr, config.loss_stride) == ("deeplab_v3plus", 5e-4, 1)
    assert config.model_options == {"backbone": backbone, "output_stride": 16}
    model = build(config.model, 3, **config.model_options)
    with pytest.warns(UserWarning, match=r"has no weights for head \(\d\d tensors\) of this model"):
        loaded = load_weights(model, path)
    assert {name.partition(".")[0] for name in loaded.initialised} == {"backbone"}
    assert f"{path}: weights of a body alone: deeplab_v3plus on {backbone}, 1500 steps" in told


def test_a_body_that_no_model_has_is_refused(files):
    path = files / "wide.pth"
    tensors = {f"layer{n}.0.conv1.weight": torch.zeros(1) for n in range(1, 5)}
    torch.save({"conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(2, 2)} | tensors, path)
    known = ", ".join(BACKBONES)
    with pytest.raises(InputError, match=f"wide.pth: its body is none .* known are {known} and"):
        chosen(weights=str(path), **OWN)
    with pytest.raises(InputError, match=r"gone\.pth"):
        chosen(weights="gone.pth")


@pytest.mark.parametrize(
    "settings",
    [{}, {"model": "deeplab_v2_small", "weights": "gone.pth"}, {"model": "deeplab_v3", **OWN}],
    ids=["scenes", "model and weights", "model"],
)
def test_nothing_is_chosen_where_the_model_is_said_or_scenes_are_the_data(settings):
    assert choose(given(**settings)) is None


def test_without_weights_the_machine_decides(monkeypatch):
    config, told = chosen(**OWN)
    light = asdict(TrainConfig())
    assert {n: v for n, v in asdict(config).items() if v != light[n]}.keys() == {"device", "data"}
    assert told.startswith("no weights to start from, on a CPU: deeplab_v2_small, 6000 steps")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config, told = chosen(device="auto", **OWN)
    assert (config.model, config.batch_size) == ("deeplab_v3plus_resnet50", 16)
    assert told.startswith("no weights to start from, on a GPU: deeplab_v3plus_resnet50, 6000")


def test_what_is_said_comes_before_what_is_chosen(files):
    path = files / "said.safetensors"
    save_weights(deeplab_v2_small(3), path)
    said = {"weights": str(path), "steps": 7, "lr": 0.5, "model_options.frozen_bn": True}
    config, told = chosen(**said, **OWN)
    assert (config.steps, config.lr) == (7, 0.5)
    assert config.model_options["frozen_bn"]
    assert ", 7 steps of 8 crops of 193 pixels, adamw at lr 0.5;" in told
