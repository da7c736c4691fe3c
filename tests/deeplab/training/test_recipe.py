"""Recipes: those that ship are the papers', and what is wrong in one is named with its file."""

import re
from dataclasses import replace

import pytest
from commands import assert_refused, done, run

from deeplab.cli.shared.options import key_value
from deeplab.data.datasets import DATASETS
from deeplab.errors import InputError
from deeplab.model import MODELS, build
from deeplab.training import TrainConfig, train
from deeplab.training.recipe import RECIPES, make_config, one_setting, read_recipe, shipped_recipes
from deeplab.training.schedule import learning_rate, make_optimizer


def shipped(name: str) -> TrainConfig:
    return make_config(read_recipe(name))


def test_these_recipes_ship():
    names = "camvid_efficientnet_lite0 camvid_resnet101 camvid_small cityscapes_resnet101 "
    names += "coco_resnet101 scenes scenes_quick voc12_resnet101 voc12_resnet101_coco "
    names += "voc12_vgg16 voc12_vgg16_largefov"
    assert " ".join(sorted(shipped_recipes())) == names


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_names_a_model_and_data_that_exist_and_says_where_it_comes_from(name):
    config = shipped(name)
    assert config.data.name in DATASETS
    few = {"rates": [6]} if config.model in MODELS else {}  # the quicker to build
    build(config.model, num_classes=2, **config.model_options | few)
    assert (RECIPES / f"{name}.toml").read_text().startswith("# ")
    assert config.starts_from or config.weights or "small" in config.model


def shown_help() -> str:
    return " ".join(done("train", "--help").stdout.split())


def test_the_help_names_every_recipe():
    assert not [name for name in shipped_recipes() if name not in shown_help()]


def test_the_example_for_several_processes_shares_the_batch_of_its_recipe():
    example = shown_help().split("torchrun ")[1].split(" deeplab evaluate")[0]
    given = dict(re.findall(r"--([a-z-]+) (\S+)", example))
    assert given.keys() == {"nproc-per-node", "config", "weights"}
    config = shipped(given["config"])
    assert config.batch_size % (config.accumulate * int(given["nproc-per-node"])) == 0


def test_the_scenes_recipe_is_the_default():
    assert shipped("scenes") == TrainConfig()


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("voc12_vgg16_largefov", {0: 1e-3, 1999: 1e-3, 2000: 1e-4, 4000: 1e-5, 5999: 1e-5}),
        ("voc12_vgg16", {0: 1e-3, 10_000: 1e-3 * 0.5**0.9, 19_999: 1e-3 * (1 / 20_000) ** 0.9}),
        ("voc12_resnet101", {0: 2.5e-4, 5000: 2.5e-4 * 0.75**0.9, 15_000: 2.5e-4 * 0.25**0.9}),
    ],
)
def test_learning_rates_are_the_papers(name, rates):
    config = shipped(name)
    for step, rate in rates.items():
        assert learning_rate(config, step) == pytest.approx(rate, rel=1e-12), step


def test_step_policy_falls_by_gamma_after_each_step_size_behind_a_warm_up():
    config = TrainConfig(policy="step", lr=1.0, step_size=3, gamma=0.5, warmup=1)
    rates = [learning_rate(config, step) for step in range(7)]
    assert rates == pytest.approx([0.5, 1, 1, 0.5, 0.5, 0.5, 0.25])


@pytest.mark.parametrize("name", ["voc12_vgg16_largefov", "voc12_vgg16", "voc12_resnet101"])
def test_groups_have_the_papers_multipliers_and_decay(name):
    config = shipped(name)
    model = build(config.model, num_classes=21, **config.model_options)
    groups = make_optimizer(model, config).param_groups
    groups = {g["name"]: (g["lr_scale"], g["weight_decay"]) for g in groups}
    expected = {"body_weight": (1, 5e-4), "head_weight": (10, 5e-4), "head_bias": (20, 0)}
    if "vgg" in name:  # ResNet's convolutions have no bias, and its BatchNorm is frozen
        expected["body_bias"] = (2, 0)
    assert groups == expected


RESNET = {"steps": 20_000, "batch_size": 10, "accumulate": 10}
RESNET |= {"scales": (0.5, 0.75, 1.0, 1.25, 1.5), "model_options": {"scales": [1.0, 0.75, 0.5]}}


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("voc12_vgg16_largefov", {"steps": 6000, "batch_size": 30, "scales": (1.0,)}),
        ("voc12_vgg16", {"steps": 20_000, "batch_size": 10, "scales": (1.0,)}),
        ("voc12_resnet101", RESNET),
    ],
)
def test_the_papers_recipes_have_the_papers_numbers(name, facts):
    config = shipped(name)
    common = {"momentum": 0.9, "weight_decay": 5e-4, "crop": 321, "mirror": True, "loss_stride": 8}
    for field, value in (common | facts).items():
        assert getattr(config, field) == value, field


def test_fine_tuning_starts_from_the_file_of_the_pretraining():
    assert shipped("voc12_resnet101_coco").weights == "coco_resnet101.safetensors"
    assert shipped("coco_resnet101").data.name == "coco_voc"


def test_a_recipe_of_ones_own_is_found_by_its_path(tmp_path):
    path = tmp_path / "mine.toml"
    text = 'steps = 7\nlr = 1\n[data]\nname = "folder"\nroot = "x"\n[data.options]\na = 3\n'
    path.write_text(text)
    config = make_config(read_recipe(str(path)))
    assert (config.steps, config.lr, config.data.options) == (7, 1.0, {"a": 3})
    assert shipped("voc12_vgg16.toml") == shipped("voc12_vgg16")


def test_a_recipe_that_is_nowhere_lists_those_that_are():
    message = "voc13: no such recipe; expected a TOML file, or one of c"
    with pytest.raises(InputError, match=message):
        read_recipe("voc13")
    with pytest.raises(InputError, match="no such recipe"):
        read_recipe("../recipes/scenes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step = 3", "mine.toml: step: unknown key; the known ones are .*steps"),
        ("[data]\nfolder = 'x'", "mine.toml: data.folder: unknown key; .* root, "),
        ("data = 'x'", "mine.toml: data must be a table"),
        ("steps = 3.5", "mine.toml: steps must be an integer, not 3.5"),
        ("scales = [1.5, 0.5]", "mine.toml: scales must be 0 < smallest <= largest"),
        ("[data]\noptions = 3", "mine.toml: data.options must be a table, not 3"),
        ("[data]\nroot = 'x'", "mine.toml: data.root must be none for generated scenes; name"),
        ("[model_options]\ncrf = true", "mine.toml: model_options.crf must be none"),
        ("crop = 41\nloss_stride = 8\n[model_options]\nscales = [1, 0.5]", "crop must be 16k "),
        ("[data.options]\nlength = 3", "mine.toml: data.options.* must be none for generated"),
        ("steps = ", "mine.toml: not a readable TOML file"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        make_config(read_recipe(str(path)))


def test_options_and_set_override_a_recipe_and_are_named_when_wrong(tmp_path, monkeypatch):
    seen = []

    class Stop(Exception):
        pass

    def stop(config, *args, **kwargs):
        seen.append(config)
        raise Stop

    monkeypatch.setattr("deeplab.training.train", stop)
    given = ["train", "--config", "voc12_resnet101", "--out", tmp_path / "w.safetensors"]
    changes = ["--lr", "0.1", "--set", "data.root=/data/voc", "--set", "scales=[1.0, 2.0]"]
    with pytest.raises(Stop):
        run(*given, *changes, "--weights", "init.pth")
    with pytest.raises(Stop):
        run("train", "--out", tmp_path / "w.safetensors")  # the recipe of the shipped weights
    config, default = seen
    assert default == TrainConfig()
    expected = shipped("voc12_resnet101")
    data = replace(expected.data, root="/data/voc")
    changed = {"lr": 0.1, "data": data, "scales": (1.0, 2.0), "weights": "init.pth"}
    assert config == replace(expected, **changed)
    for change, message in (
        (["--set", "steps=many"], "--set steps must be an integer, not 'many'"),
        (["--set", "steps"], "--set steps must be KEY=VALUE"),
        (["--crop", "320"], r"--crop must be 8k \+ 1"),
    ):
        assert_refused(tmp_path, message, *given, *change)


def test_values_of_set_are_toml_or_text():
    def read(text):
        return one_setting(*key_value("--set", text, "lr=0.1"))

    assert read("data.root=/a b")["data.root"][0] == "/a b"
    assert read("model_options={rates = [6]}")["model_options.rates"][0] == [6]
    assert read("lr = 1e-3")["lr"][0] == 1e-3
    assert read("starts_from=")["starts_from"][0] == ""


def test_a_recipe_that_starts_from_weights_does_not_start_without(tmp_path):
    config = replace(shipped("camvid_small"), starts_from="ImageNet weights")
    picture = ()  # of any kind: the run does not get so far
    with pytest.raises(InputError, match="starts from ImageNet weights; name the file with"):
        train(config, dataset=[picture], validation=[picture], progress=False)


def test_the_help_shows_defaults_that_say_something(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = done("train", "--help").output
    assert "[default: (6000)]" in shown
    assert "[default: ()]" not in shown
