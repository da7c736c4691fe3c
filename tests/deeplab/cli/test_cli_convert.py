"""`deeplab convert`, and other commands that are given a foreign checkpoint."""

import re

import pytest
import torch
from commands import assert_refused, done, run
from PIL import Image

from deeplab.cli.convert import From
from deeplab.model import build
from deeplab.weights import SOURCES, load_model, read_metadata, save_weights


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
    make = torchvision.deeplabv3.deeplabv3_resnet50
    theirs = make(weights=None, weights_backbone=None, num_classes=21, aux_loss=False).eval()
    source, out = tmp_path / "v3.pth", tmp_path / "made" / "v3.safetensors"
    torch.save(theirs.state_dict(), source)
    result = done("convert", source, out, "--data", "voc2012")
    assert "v3.pth: of torchvision, taken for deeplab_v3_resnet50 with 21 classes" in said(result)
    model = load_model(out)
    x = torch.randn(1, 3, 33, 33)
    with torch.no_grad():
        torch.testing.assert_close(model(x), theirs(x)["out"], rtol=1e-4, atol=1e-5)
    metadata = read_metadata(out)
    assert metadata["class_names"][15] == "person"
    assert metadata["converted_from"] == "v3.pth (torchvision)"


RESNET18 = ["--model", "deeplab_v2_resnet18"]
VOC5 = [*RESNET18, "--data", "voc2012", "--classes", "5"]
NO_HEAD = r"has a classifier of whole pictures.* no weights for the head .*deeplab train --weights"


@pytest.mark.parametrize(
    ("checkpoint", "out", "options", "message"),
    [
        ("resnet18.pth", "o.safetensors", [], NO_HEAD),
        ("resnet18.pth", "o.safetensors", RESNET18, NO_HEAD),
        ("resnet18.pth", "o.safetensors", ["--model", "unet"], "--model unet: unknown"),
        ("resnet18.pth", "o.safetensors", VOC5, "--classes 5: voc2012 has 21"),
        ("resnet18.pth", "o.safetensors", [*RESNET18, "--classes", "0"], "--classes"),
        ("resnet18.pth", "resnet18.pth", RESNET18, "is the checkpoint itself"),
        ("resnet18.pth", "o.pth", RESNET18, "ends in .safetensors"),
        ("absent.pth", "o.safetensors", RESNET18, "absent.pth: no such weights file"),
        ("photo.jpg", "o.safetensors", [], "must be weights, not a JPEG picture"),
    ],
)
def test_what_cannot_be_converted_is_said_and_nothing_is_written(
    published, tmp_path, checkpoint, out, options, message
):
    Image.new("RGB", (32, 24)).save(tmp_path / "photo.jpg")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    result = run("convert", tmp_path / checkpoint, tmp_path / out, *options)
    assert result.exit_code == 2
    assert re.search(message, said(result)), said(result)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_segment_says_what_to_do_with_a_foreign_file(published, tmp_path):
    Image.new("RGB", (32, 24)).save(tmp_path / "p.png")
    out = ["--out", tmp_path / "out"]
    assert_refused(tmp_path, NO_HEAD, "segment", tmp_path / "p.png", "--weights", published, *out)


def test_what_a_file_of_ours_says_about_its_weights_is_kept(tmp_path):
    source, out = tmp_path / "source.safetensors", tmp_path / "out.safetensors"
    save_weights(build("deeplab_v2_small", num_classes=21), source, {"miou": 0.5, "crf": {}})
    done("convert", source, out, "--model", "deeplab_v2_small", "--data", "voc2012")
    assert read_metadata(out) == read_metadata(source) | {
        "converted_from": "source.safetensors (safetensors)",
        "class_names": read_metadata(out)["class_names"],
        "palette": read_metadata(out)["palette"],
    }


def test_convert_prints_a_path_that_looks_like_markup_as_it_is(tmp_path):
    source, out = tmp_path / "small.safetensors", tmp_path / "a[" / "b].safetensors"
    save_weights(build("deeplab_v2_small", 3), source)
    options = ("--model", "deeplab_v2_small", "--classes", "3")
    done("convert", source, out, *options)
    assert out.is_file()


def test_the_sources_of_the_option_are_those_that_are_read():
    """They are written out there, so that --help need not import what reads them."""
    assert [str(each) for each in From] == list(SOURCES)
