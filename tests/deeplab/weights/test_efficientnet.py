"""EfficientNet-Lite0 from EfficientNet-PyTorch's names into timm's, held against timm itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import done, picture
from PIL import Image
from torch import Tensor, nn
from weights_files import refused, small

from deeplab.model import build
from deeplab.weights import load_checkpoint, load_model, load_weights, names, registry
from deeplab.weights.sources import read_checkpoint

SHARED = Path(__file__).parents[4] / "shared" / "data"
BACKBONE = "timm:tf_efficientnet_lite0"
FILE = SHARED / "weights" / "efficientnet-lite0-57934424.pth"
with_weights = pytest.mark.skipif(not FILE.is_file(), reason="no ../shared/data/weights here")

ONE_BLOCK = (  # of EfficientNet-PyTorch, in the order in which it computes
    *("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"),
)


def layers_there() -> list[str]:
    """The layers of EfficientNet-Lite0 under EfficientNet-PyTorch's names, as they compute."""
    of_block = [ONE_BLOCK[2:], *[ONE_BLOCK] * 15]
    blocks = [f"_blocks.{i}.{layer}" for i, layers in enumerate(of_block) for layer in layers]
    return ["_conv_stem", "_bn0", *blocks, "_conv_head", "_bn1", "_fc"]


def layers_of(model: nn.Module, size: int = 32) -> list[str]:
    """The convolutions, norms and linear layers of a model as they compute."""
    found: list[str] = []
    kinds = nn.Conv2d | nn.BatchNorm2d | nn.Linear
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda *_, name=name: found.append(name))
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    return found


def test_every_layer_has_the_name_of_the_layer_that_computes_in_its_place(timm: Any) -> None:
    theirs = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    ours = [names.efficientnet_in_timm(f"{layer}.weight") for layer in layers_there()]
    assert ours == [f"{layer}.weight" for layer in layers_of(theirs)]


@pytest.mark.parametrize(
    "name",
    ["_blocks.16._bn1.weight", "_blocks.0._expand_conv.weight", "_blocks.1._se_reduce.weight"],
)
def test_a_layer_that_lite0_does_not_have_is_unknown(name: str) -> None:
    found = names.from_efficientnet({name: torch.ones(1), "_conv_stem.weight": torch.ones(1)})
    assert found.unknown == [name]
    assert list(found.tensors) == ["backbone.encoder.conv_stem.weight"]


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """The file's tensors by timm's names."""
    state = torch.load(FILE, weights_only=True)
    return {str(names.efficientnet_in_timm(name)): tensor for name, tensor in state.items()}


@pytest.fixture(scope="module")
def classifier(timm: Any, published: dict[str, Tensor]) -> nn.Module:
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(published)
    return model.eval()


def photograph(name: str, size: int) -> Tensor:
    """`[1, 3, size, size]`, as the file's authors preprocess it."""
    with Image.open(SHARED / "pydensecrf" / name) as image:
        pixels = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    return torch.tensor((pixels.astype(np.float32) - 127) / 128).permute(2, 0, 1)[None]


@with_weights
def test_timms_classifier_names_the_animal_of_a_photograph(timm: Any, classifier: Any) -> None:
    with torch.no_grad():
        best = int(classifier(photograph("im1.png", 224)).argmax())
    assert timm.data.ImageNetInfo().index_to_description(best).startswith("American egret")


@with_weights
def test_norms_of_one_shape_are_told_apart(timm: Any, published: dict[str, Tensor]) -> None:
    """Swapped with the next of its shape, a norm leaves no animal: shapes alone tell nothing."""
    swapped = published | {
        f"blocks.1.0.{one}.{part}": published[f"blocks.1.0.{other}.{part}"]
        for one, other in (("bn1", "bn2"), ("bn2", "bn1"))
        for part in ("weight", "bias", "running_mean", "running_var")
    }
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    model.load_state_dict(swapped)
    with torch.no_grad():
        best = int(model(photograph("im1.png", 224)).argmax())
    assert not timm.data.ImageNetInfo().index_to_description(best).startswith("American egret")


@with_weights
def test_the_body_has_the_features_of_the_classifier(timm: Any, classifier: Any) -> None:
    checkpoint = read_checkpoint(FILE)
    assert checkpoint.source == "efficientnet"
    assert set(checkpoint.translated.dropped.values()) == {
        "counter",
        "classifier of whole pictures",
    }
    body = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True).eval()
    state = {
        n.removeprefix("backbone.encoder."): t for n, t in checkpoint.translated.tensors.items()
    }
    missing, unexpected = body.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    x = photograph("im1.png", 97)
    theirs: list[Tensor] = []
    for stage in (0, 1, 2, 4, 6):
        classifier.blocks[stage].register_forward_hook(lambda *args: theirs.append(args[2]))
    with torch.no_grad():
        classifier(x)
        ours = body(x)
    assert len(ours) == len(theirs) == 5
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


@with_weights
def test_as_a_finished_network_the_file_is_refused_with_what_it_is_for() -> None:
    message = refused(lambda: load_checkpoint(FILE))
    assert f"train one from it: deeplab train --weights {FILE}" in message
    assert "backbone.conv1.weight" in refused(lambda: load_weights(small(), FILE))


@with_weights
def test_a_network_on_timms_encoder_takes_the_whole_body(timm: Any, classifier: Any) -> None:
    model = build("deeplab_v3plus", 3, backbone=BACKBONE, output_stride=32).eval()
    with pytest.warns(UserWarning, match=r"no weights for head \(40 tensors\) of"):
        loaded = load_weights(model, FILE)
    state = model.state_dict()
    body = {n for n in state if n.startswith("backbone.") and not n.endswith(names.COUNTER)}
    assert set(loaded.initialised) == body
    x = photograph("im1.png", 97)
    with torch.no_grad():
        assert torch.equal(
            model.backbone(x), classifier.blocks(classifier.bn1(classifier.conv_stem(x)))
        )


@with_weights
@pytest.mark.slow
def test_training_starts_from_its_name(
    timm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = registry.named("tf_efficientnet_lite0_imagenet")
    monkeypatch.setenv("DEEPLAB_HOME", str(tmp_path / "home"))
    row.path.parent.mkdir(parents=True)
    shutil.copy(FILE, row.path)
    out = tmp_path / "w.safetensors"
    start = ("--weights", row.name, "--out", out)  # from which the model follows
    options = ("--lr", 1e-9)
    size = ("--steps", 1, "--batch-size", 2, "--crop", 33, "--scenes", 2, "--validation-scenes", 1)
    said = done("train", *start, *options, *size, "--workers", 0, "--precision", "float32").stderr
    assert f"a body alone: deeplab_v3plus on {row.backbone}, 1 step of 2 crops of 33" in said
    trained = load_model(out)
    assert trained.config["backbone"] == BACKBONE
    theirs = read_checkpoint(FILE).translated.tensors
    for name, parameter in trained.backbone.named_parameters():
        torch.testing.assert_close(parameter, theirs[f"backbone.{name}"])
    photo = picture(tmp_path / "photo.png", 40, 50)
    done("segment", photo, "--weights", out, "--no-crf", "--out", tmp_path / "out")


@with_weights
def test_the_name_in_the_registry_is_of_that_file() -> None:
    from deeplab.weights import download

    row = registry.named("tf_efficientnet_lite0_imagenet")
    assert row.member == FILE.name
    assert download.of_file(FILE).startswith(FILE.stem.rpartition("-")[2])
