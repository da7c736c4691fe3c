"""`deeplab convert`, and other commands that are given a foreign checkpoint."""

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from deeplab.cli import app
from deeplab.model import build
from deeplab.weights import load_model, read_metadata, save_weights


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(result):
    return " ".join(result.output.split())


@pytest.fixture
def published(tmp_path, torchvision):
    """torchvision's layout of a real model, the smallest one."""
    path = tmp_path / "resnet18.pth"
    torch.save(torchvision.resnet.resnet18(weights=None).state_dict(), path)
    return path


@pytest.mark.slow
def test_convert_writes_a_file_that_load_model_reads(tmp_path, torchvision):
    torch.manual_seed(0)
    theirs = torchvision.deeplabv3.deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=False
    ).eval()
    source, out = tmp_path / "v3.pth", tmp_path / "made" / "v3.safetensors"
    torch.save(theirs.state_dict(), source)
    result = invoke("convert", source, out, "--data", "voc2012")
    assert result.exit_code == 0, result.output
    assert "v3.pth: of torchvision, taken for deeplab_v3_resnet50 with 21 classes" in said(result)
    model = load_model(out)
    x = torch.randn(1, 3, 33, 33)
    with torch.no_grad():
        torch.testing.assert_close(model(x), theirs(x)["out"], rtol=1e-4, atol=1e-5)
    metadata = read_metadata(out)
    assert metadata["class_names"][15] == "person"
    assert metadata["converted_from"] == "v3.pth (torchvision)"


def test_convert_refuses_a_head_that_does_not_fit_and_writes_nothing(published, tmp_path):
    out = tmp_path / "out.safetensors"
    for model in ([], ["--model", "deeplab_v2_resnet18"]):
        result = invoke("convert", published, out, *model)
        assert result.exit_code == 2
        assert "no weights for the head of a segmentation network" in said(result)
        assert f"deeplab train --weights {published}" in said(result)
    assert not out.exists()


def test_convert_names_an_unknown_model_and_a_contradiction(published, tmp_path):
    result = invoke("convert", published, tmp_path / "o.safetensors", "--model", "unet")
    assert (result.exit_code, "--model unet: unknown" in result.output) == (2, True)
    options = ("--model", "deeplab_v2_resnet18", "--data", "voc2012", "--classes", "5")
    result = invoke("convert", published, tmp_path / "o.safetensors", *options)
    assert (result.exit_code, "--classes 5: voc2012 has 21" in result.output) == (2, True)


def test_what_a_file_of_ours_says_about_its_weights_is_kept(tmp_path):
    source, out = tmp_path / "source.safetensors", tmp_path / "out.safetensors"
    save_weights(build("deeplab_v2_small", num_classes=21), source, {"miou": 0.5, "crf": {}})
    result = invoke("convert", source, out, "--model", "deeplab_v2_small", "--data", "voc2012")
    assert result.exit_code == 0, result.output
    assert read_metadata(out) == read_metadata(source) | {
        "converted_from": "source.safetensors (safetensors)",
        "class_names": read_metadata(out)["class_names"],
        "palette": read_metadata(out)["palette"],
    }


def test_convert_calls_a_picture_a_picture(tmp_path):
    picture = tmp_path / "photo.jpg"
    Image.new("RGB", (32, 24)).save(picture)
    result = invoke("convert", picture, tmp_path / "o.safetensors", "--model", "deeplab_v2_small")
    assert result.exit_code == 2
    assert "expected weights, got a JPEG picture" in " ".join(result.output.split())


def test_convert_leaves_the_checkpoint_itself_alone(published, tmp_path):
    before = published.read_bytes()
    result = invoke("convert", published, published, "--model", "deeplab_v2_resnet18")
    assert (result.exit_code, "is the checkpoint itself" in result.output) == (2, True)
    assert published.read_bytes() == before
    result = invoke("convert", published, tmp_path / "o.pth", "--model", "deeplab_v2_resnet18")
    assert (result.exit_code, "ends in .safetensors" in result.output) == (2, True)


def test_convert_blames_a_missing_file_on_its_path_and_refuses_no_classes(published, tmp_path):
    absent, out = tmp_path / "absent.pth", tmp_path / "o.safetensors"
    result = invoke("convert", absent, out, "--model", "deeplab_v2_resnet18")
    assert result.exit_code == 2
    assert "--model" not in result.output
    assert "absent.pth: no such weights file" in " ".join(result.output.split())
    result = invoke("convert", published, out, "--model", "deeplab_v2_resnet18", "--classes", "0")
    assert (result.exit_code, "--classes" in result.output) == (2, True)
    assert "has no weights" not in result.output


def test_segment_says_what_to_do_with_a_foreign_file(published, tmp_path):
    picture = tmp_path / "p.png"
    Image.new("RGB", (32, 24)).save(picture)
    result = invoke("segment", picture, "--weights", published, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "has a classifier of whole pictures, such as ImageNet's" in said(result)
    assert f"deeplab train --weights {published}" in said(result)
    assert not (tmp_path / "out").exists()


def test_convert_prints_a_path_that_looks_like_markup_as_it_is(tmp_path):
    source, out = tmp_path / "small.safetensors", tmp_path / "a[" / "b].safetensors"
    save_weights(build("deeplab_v2_small", 3), source)
    options = ("--model", "deeplab_v2_small", "--classes", "3")
    result = invoke("convert", source, out, *options)
    assert result.exit_code == 0, result.output
    assert out.is_file()
