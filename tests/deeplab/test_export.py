"""deeplab.export: programs that agree with the model, whole files or none, and the command."""

import copy
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import assert_refused, done
from several_processes import Started

from crf import DenseCRF
from deeplab import export as module
from deeplab.errors import InputError
from deeplab.export import export
from deeplab.model import DeepLab
from deeplab.model.heads import ASPP, DeepLabV3Head
from deeplab.model.resnet import ResNet
from deeplab.weights import load_model


def tiny(kind="aspp"):
    torch.manual_seed(0)
    style = "torchvision" if kind == "v3" else "caffe"
    backbone = ResNet((1, 1, 1, 1), width=4, frozen_bn=kind == "aspp", style=style)
    if kind == "v3":
        head = DeepLabV3Head(128, 3, (2, 3), frozen_bn=False, channels=8)
    else:
        head = ASPP(128, 3, (2, 3))
    config = {"model": "tiny", "num_classes": 3, "style": style}
    config["scales"] = (1.0, 0.5) if kind == "msc" else None
    return DeepLab(backbone, head, config=config)


def shallow():
    """A model that compiles quickly: of four stages, one; the others are more of the same."""
    model = tiny()
    model.backbone.layer2 = model.backbone.layer3 = model.backbone.layer4 = torch.nn.Identity()
    model.head = ASPP(16, 3, (2, 3))
    return model


def pictures(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def assert_agrees(program, model, shapes):
    model = copy.deepcopy(model).eval()
    for shape in shapes:
        x = pictures(*shape)
        with torch.no_grad():
            expected = model(x)
        found = torch.as_tensor(program(x))
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= module.TOLERANCE * expected.abs().max()


ANY_SIZE = [(1, 3, 33, 33), (3, 3, 34, 81), (1, 3, 200, 41)]


@pytest.mark.parametrize("kind", ["aspp", pytest.param("msc", marks=pytest.mark.slow), "v3"])
def test_torch_export_serves_any_batch_and_size(kind, tmp_path):
    model = tiny(kind).train()
    written = export(model, tmp_path / "model.pt2")
    assert model.training  # it is left as it was
    assert written.error < 1e-5
    assert_agrees(torch.export.load(written.path).module(), model, ANY_SIZE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt2", "model.pt2.json"]


@pytest.mark.parametrize("kind", [pytest.param("msc", marks=pytest.mark.slow), "v3"])
def test_onnxruntime_serves_any_batch_and_size_with_plain_convolutions(kind, tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    written = export(tiny(kind), tmp_path / "model.onnx")
    session = runtime.InferenceSession(str(written.path), providers=["CPUExecutionProvider"])
    assert_agrees(lambda x: session.run(None, {"x": x.numpy()})[0], tiny(kind), ANY_SIZE)
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_outputs()[0].shape == ["batch", 3, "height", "width"]
    nodes = onnx.load(str(written.path)).graph.node
    assert {node.domain for node in nodes} <= {"", "ai.onnx"}
    assert "Conv" in {node.op_type for node in nodes}


@pytest.mark.slow
def test_aotinductor_serves_any_batch_and_size(tmp_path):
    model = shallow()
    written = export(model, tmp_path / "model.pt2", "aoti")
    program = torch._inductor.aoti_load_package(str(written.path))
    assert_agrees(program, model, [*ANY_SIZE, (1, 3, 320, 180), (1, 3, 321, 72)])


@pytest.mark.parametrize("n", range(1, 40))
def test_the_pool_that_is_compiled_is_the_one_that_rounds_up(n):
    x = torch.randn(1, 2, n, 41 - n)
    rounding_up = torch.nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
    assert torch.equal(module.PaddedMaxPool()(x), rounding_up(x))


def test_a_fixed_size_is_the_only_one_that_the_program_takes(tmp_path):
    written = export(tiny(), tmp_path / "new" / "model.pt2", size=(20, 41))
    program = torch.export.load(written.path).module()
    assert_agrees(program, tiny(), [(1, 3, 20, 41), (3, 3, 20, 41)])
    with pytest.raises(AssertionError):
        program(pictures(1, 3, 21, 41))


@pytest.mark.parametrize("kind", ["aspp", "v3"])
def test_the_description_preprocesses_as_the_model_does(kind, tmp_path):
    names, palette = ["a", "b", "c"], [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    written = export(
        tiny(kind), tmp_path / "m.pt2", metadata={"class_names": names, "palette": palette}
    )
    described = json.loads(written.description.read_text())
    assert described["class_names"] == names
    assert described["palette"] == palette
    assert described["ignore_label"] == 255
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    how = described["preprocessing"]
    channels = ["RGB".index(letter) for letter in how["channels"]]
    x = (image[..., channels] * how["scale"] - how["mean"]) / how["deviation"]
    expected = tiny(kind).preprocess(image)[0].permute(1, 2, 0)
    torch.testing.assert_close(torch.tensor(x, dtype=torch.float32), expected)


def test_a_program_that_disagrees_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_text("earlier")
    for wrong in (lambda y: y + 1e-3 * y.abs().max(), lambda y: y * float("nan")):

        def read(part, wrong=wrong):
            program = torch.export.load(part).module()
            return lambda x: wrong(program(x))

        monkeypatch.setitem(module._READERS, "export", read)
        with pytest.raises(InputError, match=r"differs from the model.*nothing was written"):
            export(tiny(), path, size=(33, 33))
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt2"]
    assert path.read_text() == "earlier"


def test_a_failure_while_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    def write(part, content):
        part.write_bytes(content[:99])
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write", write)
    with pytest.raises(KeyboardInterrupt):
        export(tiny(), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


FILLS_THE_DISK = """
import resource, signal, sys
sys.path.insert(0, sys.argv[1])
from test_export import tiny
from deeplab.errors import InputError
from deeplab.export import export
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    export(tiny(), sys.argv[2], size=(33, 33))
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_full_disk_is_one_clear_error_and_leaves_nothing_behind(suffix, tmp_path):
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    path = tmp_path / f"model{suffix}"
    started = Started(("-c", FILLS_THE_DISK, str(Path(__file__).parent), str(path)))
    out, err = started.communicate()
    assert started.returncode == 0, err
    assert f"model{suffix}: cannot write the program" in out
    assert not list(tmp_path.iterdir())


def test_a_crf_layer_is_refused_with_the_way_out(tmp_path):
    model = tiny()
    model.crf = DenseCRF(3)
    with pytest.raises(InputError, match=r"CRF layer.*model\.crf = None"):
        export(model, tmp_path / "model.pt2")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("model.pth", {}, r"model\.pth must be a name that ends in \.onnx or \.pt2"),
        ("model.pt2", {"format": "onnx"}, r"ends in \.onnx"),
        ("model.onnx", {"format": "aoti"}, r"ends in \.pt2"),
        ("model.pt2", {"format": "tflite"}, "format must be one of export, onnx, aoti"),
        ("model.pt2", {"size": (0, 9)}, "size must be height and width"),
        ("model.pt2", {"size": (90_000, 90_000)}, r"size 90000 x 90000: .*give a smaller size"),
        ("model.pt2", {"metadata": {"palette": np.zeros(3)}}, r"metadata: .*array\.tolist"),
    ],
)
def test_bad_arguments_are_refused(name, options, said, tmp_path):
    with pytest.raises(InputError, match=said):
        export(tiny(), tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"onnxscript.*pip install 'deeplab-triton\[export\]'"):
        export(tiny(), tmp_path / "model.onnx")


def test_a_missing_compiler_is_named(tmp_path, monkeypatch):
    builder = pytest.importorskip("torch._inductor.cpp_builder")

    def none_found():
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(builder, "get_cpp_compiler", none_found)
    with pytest.raises(InputError, match=r"AOTInductor needs a C\+\+ compiler"):
        export(tiny(), tmp_path / "model.pt2", "aoti")


FAILS = """#!/bin/sh
case "$1" in *version) exec g++ "$@" ;; esac
echo 'x.cpp:1:1: error: no such header' >&2
exit 1
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ to pretend to be")
def test_a_compiler_that_fails_is_named_with_its_reason(tmp_path, monkeypatch):
    compiler = tmp_path / "g++"
    compiler.write_text(FAILS)
    compiler.chmod(0o755)
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, str(compiler)))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"cannot compile this here .*no such header"):
        export(shallow(), tmp_path / "out" / "model.pt2", "aoti")
    assert not list((tmp_path / "out").iterdir())


def test_the_command_writes_the_shipped_network_and_says_how_close_it_is(tmp_path):
    path = tmp_path / "scenes.pt2"
    result = done("export", path, "--size", "40x48")
    assert f"{path}  differs from the model by" in result.stdout.replace("\n", "")
    described = json.loads((tmp_path / "scenes.pt2.json").read_text())
    assert described["model"] == "deeplab_v2_small"
    assert len(described["class_names"]) == described["num_classes"]
    program = torch.export.load(path).module()
    assert_agrees(program, load_model(), [(1, 3, 40, 48)])


def test_the_command_refuses_a_size_that_is_none(tmp_path):
    message = "--size 40 must be HEIGHTxWIDTH"
    assert_refused(tmp_path, message, "export", tmp_path / "m.pt2", "--size", "40")
