"""Weights and heads on any backbone: which model a file is of, and what another head takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from weights_files import assert_same_state, refused

from deeplab.model import build
from deeplab.training import setup
from deeplab.training.recipe import flat_settings, make_config
from deeplab.weights import load_checkpoint, load_model, load_weights, save_weights
from deeplab.weights.loading import missing


def state_dict_of(path: Path, name: str, **options: Any) -> Any:
    """A model whose state dict lies at `path`."""
    torch.manual_seed(1)
    model = build(name, 4, **options).eval()
    torch.save(model.state_dict(), path)
    return model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pth"


@pytest.mark.parametrize(
    ("family", "backbone"),
    [
        ("deeplab_v2", "resnet34"),
        ("deeplab_v3", "vgg16"),
        ("deeplab_v3", "resnet18"),
        ("deeplab_v2", "mobilenet_v3_large"),
        ("deeplab_v3plus", "mobilenet_v3_large"),
    ],
)
def test_tensors_tell_head_and_backbone(path: Path, family: str, backbone: str) -> None:
    theirs = state_dict_of(path, family, backbone=backbone)
    opened = load_checkpoint(path)
    assert opened.model.config == theirs.config
    assert_same_state(opened.model, theirs)
    assert f"taken for {family} on {backbone} with 4 classes" in opened.taken_for()


def test_a_network_with_a_name_of_its_own_is_taken_for_that_unless_its_family_is_asked_for(
    path: Path,
) -> None:
    state_dict_of(path, "deeplab_v3plus_resnet18", separable=False)
    assert load_checkpoint(path).model.config["model"] == "deeplab_v3plus_resnet18"
    config = load_checkpoint(path, "deeplab_v3plus", output_stride=8).model.config
    assert (config["model"], config["backbone"]) == ("deeplab_v3plus", "resnet18")
    assert (config["output_stride"], config["separable"]) == (8, False)
    said = refused(load_checkpoint, path, "deeplab_v3")
    assert "has no weights for deeplab_v3: it holds" in said
    assert "it fits deeplab_v3plus_resnet18" in said
    assert "output_stride must be 8, 16 or 32" in refused(
        load_checkpoint, path, None, None, "auto", 9
    )


def test_convert_writes_the_output_stride_that_it_is_told(tmp_path: Path, path: Path) -> None:
    state_dict_of(path, "deeplab_v3", backbone="resnet18")
    out = tmp_path / "out.safetensors"
    result = run("convert", path, out, "--model", "deeplab_v3", "--output-stride", "32")
    assert result.exit_code == 0, result.stderr
    loaded = load_model(out)
    assert loaded.config["output_stride"] == loaded.output_stride == 32
    assert loaded.config["backbone"] == "resnet18"
    said = refused(load_checkpoint, out, None, None, "auto", 8)
    assert "weights of output stride 32, not 8; leave out --output-stride" in said


# A file of this package, and a model with another head or name


def own_file(tmp_path: Path, name: str, **options: Any) -> tuple[Any, Path]:
    torch.manual_seed(1)
    model = build(name, 4, **options)
    file = tmp_path / "own.safetensors"
    save_weights(model, file)
    return model, file


def test_two_names_of_one_network_share_their_weights(tmp_path: Path) -> None:
    theirs, file = own_file(tmp_path, "deeplab_v2_resnet18")
    ours = build("deeplab_v2", 4, backbone="resnet18")
    assert load_weights(ours, file).skipped == ()
    assert_same_state(ours, theirs)


@pytest.mark.filterwarnings("ignore:.*has no weights for")
def test_another_head_on_the_same_backbone_takes_the_body_alone(tmp_path: Path) -> None:
    theirs, file = own_file(tmp_path, "deeplab_v3", backbone="resnet18")
    ours = build("deeplab_v3plus", 4, backbone="resnet18", style="torchvision", separable=False)
    head = {n: t.clone() for n, t in ours.head.state_dict().items()}
    loaded = load_weights(ours, file)
    assert_same_state(ours.backbone, theirs.backbone)
    assert all(torch.equal(t, head[n]) for n, t in ours.head.state_dict().items())
    assert set(loaded.skipped) == {f"head.{name}" for name in head}
    assert set(loaded.initialised) == {n for n in ours.state_dict() if n.startswith("backbone.")}


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("deeplab_v3", {"backbone": "resnet18", "rates": (1, 2, 3)}, "the file has rates [12, 24"),
        ("deeplab_v3plus", {"backbone": "resnet18"}, "the file has style torchvision, this model"),
        (
            "deeplab_v3",
            {"backbone": "resnet34"},
            "the file has backbone resnet18, this model has backbone resnet34",
        ),
    ],
)
def test_other_rates_styles_and_backbones_are_refused(
    tmp_path: Path, name: str, options: dict[str, Any], said: str
) -> None:
    _, file = own_file(tmp_path, "deeplab_v3", backbone="resnet18")
    assert said in refused(load_weights, build(name, 4, **options), file)


def test_tensors_without_weights_are_named_where_they_are_few_and_counted_where_not() -> None:
    with torch.device("meta"):
        model = build("deeplab_v3_resnet50", 2)
    head = [n for n in model.state_dict() if n.startswith("head.") and "num_batches" not in n]
    few = ["head.classifier.weight", "head.classifier.bias"]
    assert missing(model, few) == ", ".join(few)
    assert missing(model, head) == f"head ({len(head)} tensors)"
    some = ["backbone.conv1.weight", *head[1:]]
    of_body = r"backbone \(1 of \d+ tensors\)"
    of_head = rf"head \({len(head) - 1} of {len(head)} tensors\)"
    assert re.fullmatch(f"{of_body} and {of_head}", missing(model, some))


def test_a_body_of_whole_pictures_fits_smps_style_as_well_as_torchvisions(
    path: Path, torchvision: Any
) -> None:
    """smp starts from these files itself: the rates, which differ, are not in a file without."""
    theirs = torchvision.resnet.resnet18(weights=None)
    torch.save(theirs.state_dict(), path)
    ours = build("deeplab_v3plus_resnet18", 2)
    with pytest.warns(UserWarning, match="has no weights for head"):
        load_weights(ours, path)
    assert torch.equal(ours.backbone.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)
    refusal = refused(load_weights, build("deeplab_v2_resnet18", 2), path)
    assert 'build the model with style="torchvision"' in refusal


# Training


def test_a_recipe_names_backbone_and_output_stride() -> None:
    settings = {"model": "deeplab_v3plus", "model_options": {"backbone": "resnet34"}}
    settings["model_options"] |= {"output_stride": 32}  # type: ignore[operator]
    config = make_config(flat_settings(settings, "recipe.toml"))
    model = setup._make_model(config, 3, {}, None, resumed=True)  # type: ignore[arg-type]
    assert (model.config["backbone"], model.backbone.output_stride) == ("resnet34", 32)
    config = make_config(flat_settings({"model": "deeplab_v3plus"}, "recipe.toml"))
    said = refused(lambda: setup._make_model(config, 3, {}, None, resumed=True))  # type: ignore[arg-type]
    assert said.startswith("model_options: deeplab_v3plus does not take them: backbone must be one")
    unknown = {"model": "deeplab_v4"}
    said = refused(lambda: make_config(flat_settings(unknown, "recipe.toml")))
    families = "deeplab_v2_base, deeplab_v2, deeplab_v3, deeplab_v3plus"
    assert f"deeplab_v3plus_resnet18, {families}" in said
