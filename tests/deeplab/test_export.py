"""deeplab.export: programs that agree with the model, whole files or none, and the command."""

import contextlib
import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import assert_refused, done
from networks import tiny, two_convolutions
from PIL import ExifTags, Image
from several_processes import Started

from crf import DenseCRF
from deeplab import export as module
from deeplab.data.images import read_image
from deeplab.errors import InputError
from deeplab.export import export
from deeplab.model import build
from deeplab.photographs import PHOTO
from deeplab.predict import predict
from deeplab.weights import load_model, read_metadata, save_weights

ROOT = Path(__file__).resolve().parents[2]


def pictures(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def assert_agrees(program, model, shapes, rtol=None, atol=None):
    """Within TOLERANCE of the largest logit, and of each logit within rtol and atol if given."""
    model = copy.deepcopy(model).eval()
    for shape in shapes:
        x = pictures(*shape)
        with torch.no_grad():
            expected = model(x)
        found = torch.as_tensor(program(x))
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= module.TOLERANCE * expected.abs().max()
        if rtol is not None:
            torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


ANY_SIZE = [(1, 3, 33, 33), (3, 3, 34, 81), (1, 3, 200, 41)]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("plain", {"stages": 2, "frozen_bn": True}),
        pytest.param("msc", {"stages": 2}, marks=pytest.mark.slow),
        ("v3", {"stages": 2}),
    ],
)
def test_torch_export_serves_any_batch_and_size(kind, options, tmp_path, monkeypatch):
    read_back = []  # what export itself has loaded from its file: to load it takes seconds

    def read(part):
        read_back.append(torch.export.load(part).module())
        return read_back[0]

    monkeypatch.setitem(module._READERS, "export", read)
    model = tiny(kind, **options).train()
    written = export(model, tmp_path / "model.pt2")
    assert model.training  # it is left as it was
    assert written.error < 1e-5
    sizes = [*ANY_SIZE, (2, 3, 33, 40), (2, 3, 41, 37), (3, 3, 64, 17), (1, 3, 17, 320)]
    assert_agrees(read_back[0], model, sizes, rtol=1.3e-6, atol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt2", "model.pt2.json"]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param("msc", {"stages": 2, "scales": (1.0, 0.5)}, marks=pytest.mark.slow),
        ("v3", {"stages": 2}),
    ],
)
def test_onnxruntime_serves_any_batch_and_size_with_plain_convolutions(kind, options, tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    model = tiny(kind, **options)
    written = export(model, tmp_path / "model.onnx")
    session = runtime.InferenceSession(str(written.path), providers=["CPUExecutionProvider"])
    assert_agrees(lambda x: session.run(None, {"x": x.numpy()})[0], model, ANY_SIZE)
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_outputs()[0].shape == ["batch", 3, "height", "width"]
    nodes = onnx.load(str(written.path)).graph.node
    assert {node.domain for node in nodes} <= {"", "ai.onnx"}
    assert "Conv" in {node.op_type for node in nodes}


@pytest.mark.slow
def test_aotinductor_serves_any_batch_and_size(tmp_path):
    model = tiny(stages=1, frozen_bn=True)
    # One small program needs no headers compiled beforehand, no fast caller of its kernels and no
    # vectors, whose choice takes most of the time (test_model_capture.py compiles with them).
    quick = {
        "aot_inductor.precompile_headers": False,
        "aot_inductor.compile_wrapper_opt_level": "O0",
        "cpp.simdlen": 1,
    }
    with torch._inductor.config.patch(quick):
        written = export(model, tmp_path / "model.pt2", "aoti")
    program = torch._inductor.aoti_load_package(str(written.path))
    assert_agrees(program, model, [*ANY_SIZE, (1, 3, 320, 180), (1, 3, 321, 72)])


def test_the_pool_that_is_compiled_is_the_one_that_rounds_up():
    rounding_up = torch.nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
    for n in range(1, 40):
        x = torch.randn(1, 2, n, 41 - n)
        assert torch.equal(module.PaddedMaxPool()(x), rounding_up(x)), x.shape


def test_a_fixed_size_is_the_only_one_that_the_program_takes(tmp_path):
    model = tiny(stages=2, frozen_bn=True)
    written = export(model, tmp_path / "new" / "model.pt2", size=(20, 41))
    program = torch.export.load(written.path).module()
    assert_agrees(program, model, [(1, 3, 20, 41), (3, 3, 20, 41)])
    with pytest.raises(AssertionError):
        program(pictures(1, 3, 21, 41))


WITHOUT_THE_PACKAGE = """
import runpy, sys
for name in ("deeplab", "crf", "kernels", "torch"):
    sys.modules[name] = None  # to import it is an error
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0])
"""


@pytest.mark.parametrize("style", ["caffe", "torchvision"])
def test_the_example_labels_a_photograph_as_the_model_does_without_this_package(style, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model, palette = two_convolutions(style), [[0, 0, 0], [1, 2, 3]]
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # a quarter to the right, as cameras write it
    Image.open(PHOTO).crop((0, 100, 201, 190)).save(tmp_path / "photo.png", exif=turned)
    image, _ = read_image(tmp_path / "photo.png")
    with torch.no_grad():
        scores = model(model.preprocess(image))[0]
        middle = (scores[0] - scores[1]).median()  # so that both classes occur
        model.head.bias[1] += middle
        scores[1] += middle
    export(model, tmp_path / "m.onnx", size=image.shape[:2], metadata={"palette": palette})
    program = [ROOT / "examples" / "onnx_labels.py", "m.onnx", "photo.png", "labels.png"]
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE, *map(str, program)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    found = Image.open(tmp_path / "labels.png")
    assert found.size == (90, 201)
    assert found.getpalette()[:6] == [0, 0, 0, 1, 2, 3]
    expected = predict(model, image).labels
    clear = (scores[0] - scores[1]).abs() > 2 * module.TOLERANCE * scores.abs().max()
    assert clear.float().mean() > 0.99
    assert np.array_equal(np.asarray(found)[clear], expected[clear])
    assert 0.4 < expected.mean() < 0.6


def test_the_description_names_data_and_weights_without_their_folders(tmp_path):
    recipe = {
        "data": {"name": "folder", "root": "/home/me/camvid", "options": {"classes": "~/a.toml"}},
        "weights": "C:\\models\\start.pth",
        "loss": {"dice": 1.0},
        "scales": [0.5, 1.5],
        "augment": "mine:augment",
    }
    names = {
        "data": {"name": "folder", "root": "camvid", "options": {"classes": "a.toml"}},
        "weights": "start.pth",
    }
    about = {"recipe": recipe, "class_names": ["/b/c", "d"]}  # a class may be called anything
    written = export(two_convolutions(), tmp_path / "m.pt2", size=(33, 33), metadata=about)
    described = json.loads(written.description.read_text())
    assert described["recipe"] == recipe | names
    assert described["class_names"] == ["/b/c", "d"]
    save_weights(build("deeplab_v2_small", 2), tmp_path / "w.safetensors", about)
    assert read_metadata(tmp_path / "w.safetensors")["recipe"] == recipe | names


def test_a_multi_label_model_says_that_its_probabilities_are_sigmoids(tmp_path):
    for multilabel, said in ((False, "softmax over axis 1"), (True, "sigmoid")):
        model = two_convolutions(multilabel=multilabel)
        written = export(model, tmp_path / "m.pt2", size=(33, 33))
        described = json.loads(written.description.read_text())
        assert described["output"]["probabilities"] == said
        assert len(described["palette"]) == 2


@pytest.mark.parametrize("style", ["caffe", "torchvision"])
def test_the_description_preprocesses_as_the_model_does(style, tmp_path):
    names, palette = ["a", "b"], [[0, 0, 0], [1, 2, 3]]
    model = two_convolutions(style)
    written = export(model, tmp_path / "m.pt2", metadata={"class_names": names, "palette": palette})
    described = json.loads(written.description.read_text())
    assert described["class_names"] == names
    assert described["palette"] == palette
    assert described["ignore_label"] == 255
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    how = described["preprocessing"]
    channels = ["RGB".index(letter) for letter in how["channels"]]
    x = (image[..., channels] * how["scale"] - how["mean"]) / how["deviation"]
    expected = model.preprocess(image)[0].permute(1, 2, 0)
    torch.testing.assert_close(torch.tensor(x, dtype=torch.float32), expected)


def test_a_model_of_other_bands_takes_them_and_tells_their_statistics(tmp_path):
    model = build("deeplab_v2_small", 2, in_channels=2, mean=[1, 2], deviation=[3, 4]).eval()
    written = export(model, tmp_path / "m.pt2", size=(33, 41))
    described = json.loads(written.description.read_text())
    assert described["input"]["shape"] == ["batch", 2, 33, 41]
    expected = {"channels": 2, "scale": 1.0, "mean": [1.0, 2.0], "deviation": [3.0, 4.0]}
    assert described["preprocessing"] == expected


def test_a_program_that_disagrees_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_text("earlier")
    for wrong in (lambda y: y + 1e-3 * y.abs().max(), lambda y: y * float("nan")):

        def read(part, wrong=wrong):
            program = torch.export.load(part).module()
            return lambda x: wrong(program(x))

        monkeypatch.setitem(module._READERS, "export", read)
        with pytest.raises(InputError, match=r"differs from the model.*nothing was written"):
            export(two_convolutions(), path, size=(33, 33))
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt2"]
    assert path.read_text() == "earlier"


def test_a_failure_while_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    @contextlib.contextmanager
    def interrupted(part):
        with part.open("wb") as file:
            yield file
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "whole_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(two_convolutions(), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


FILLS_THE_DISK = """
import resource, signal, sys
from networks import two_convolutions
from deeplab.errors import InputError
from deeplab.export import export
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
try:
    export(two_convolutions(), sys.argv[1], size=(33, 33))
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_full_disk_is_one_clear_error_and_leaves_nothing_behind(suffix, tmp_path):
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    path = tmp_path / f"model{suffix}"
    started = Started(("-c", FILLS_THE_DISK, str(path)))
    out, err = started.communicate()
    assert started.returncode == 0, err
    assert f"model{suffix}: cannot write the program" in out
    assert not list(tmp_path.iterdir())


def test_a_crf_layer_is_refused_with_the_way_out(tmp_path):
    model = two_convolutions()
    model.crf = DenseCRF(2)
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
        export(two_convolutions(), tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"onnxscript.*pip install 'deeplab-triton\[export\]'"):
        export(two_convolutions(), tmp_path / "model.onnx")


def test_a_missing_compiler_is_named(tmp_path, monkeypatch):
    builder = pytest.importorskip("torch._inductor.cpp_builder")

    def none_found():
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(builder, "get_cpp_compiler", none_found)
    with pytest.raises(InputError, match=r"AOTInductor needs a C\+\+ compiler"):
        export(two_convolutions(), tmp_path / "model.pt2", "aoti")


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
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    refused = pytest.raises(InputError, match=r"cannot compile this here .*no such header")
    # Not by monkeypatch, which leaves the setting of a part of the configuration deleted.
    with torch._inductor.config.patch({"cpp.cxx": (None, str(compiler))}), refused:
        export(two_convolutions(), tmp_path / "out" / "model.pt2", "aoti")
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
