"""deeplab.weights: what is written comes back, and every bad file is refused in one clear line."""

import json
import os
import pickle
import struct
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn
from weights_files import Dangerous, assert_same_state, refused, small

from deeplab.model import DeepLab, build
from deeplab.weights import load_model, load_weights, read_metadata, save_weights

LABELS = {"class_names": ["sky", "road"], "palette": [[0, 0, 0], [128, 64, 128]]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def saved(path):
    save_weights(small(), path, LABELS)
    return path


def rewrite(path, changes=None, metadata=None):
    """The same file with other tensors and metadata (as text); None where one is left out."""
    tensors, texts = load_file(path) | (changes or {}), raw_metadata(path) | (metadata or {})
    save_file(
        {name: tensor for name, tensor in tensors.items() if tensor is not None},
        path,
        {key: text for key, text in texts.items() if text is not None},
    )


def raw_metadata(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])["__metadata__"]


def test_weights_and_metadata_come_back(path):
    model = small(3, rates=(2, 5))
    nn.init.uniform_(model.backbone.bn1.running_mean)
    facts = {"recipe": {"lr": 0.01, "steps": [1, 2]}, "miou": 0.5, "commit": "abc", "notes": None}
    save_weights(model, path, facts)
    options = {"rates": [2, 5], "style": "caffe", "scales": None, "resize": "caffe"}
    options |= {"in_channels": 3, "mean": None, "deviation": None}
    options |= {"frozen_bn": False, "output_stride": 8}
    about = {"model": "deeplab_v2_small", "num_classes": 3, "options": options}
    assert read_metadata(path) == facts | about
    loaded = load_model(path)
    assert isinstance(loaded, DeepLab)
    assert loaded.config == model.config
    assert not loaded.training
    assert_same_state(loaded, model)
    x = torch.randn(1, 3, 33, 20)
    assert torch.equal(loaded(x), model.eval()(x))


@pytest.mark.parametrize("name", ["deeplab_v1_largefov", "deeplab_v2_vgg16"])
def test_the_vgg_models_come_back_with_their_heads(path, name):
    model = build(name, num_classes=2, rates=(3,))
    save_weights(model, path)
    assert_same_state(load_model(path), model)


def test_load_weights_overwrites_every_tensor_of_another_initialisation(saved):
    model = small(seed=1)
    load_weights(model, saved)
    assert_same_state(model, small())


def test_a_loaded_model_trains_what_the_saved_one_trained(path):
    for frozen_bn in (True, False):
        save_weights(small(frozen_bn=frozen_bn), path)
        loaded = load_model(path)
        assert loaded.backbone.bn1.weight.requires_grad is not frozen_bn
        assert loaded.head.classifier.weight.requires_grad


def test_loaded_tensors_do_not_live_in_the_file(saved):
    for tensor in load_model(saved).state_dict().values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_weights_of_trained_norms_load_into_frozen_ones(saved):
    model = small(seed=1, frozen_bn=True)
    load_weights(model, saved)
    x = torch.randn(1, 3, 20, 20)
    torch.testing.assert_close(model(x), small().eval()(x))


def test_half_precision_and_channels_last_are_stored_and_converted_back(path):
    model = small().bfloat16().to(memory_format=torch.channels_last)
    save_weights(model, path)
    assert load_file(path)["backbone.conv1.weight"].dtype == torch.bfloat16
    loaded = load_model(path)
    assert loaded.backbone.conv1.weight.dtype == torch.float32
    assert torch.equal(loaded.backbone.conv1.weight, model.backbone.conv1.weight.float())


def test_saving_again_with_the_metadata_read_is_welcome(saved):
    before = read_metadata(saved)
    save_weights(load_model(saved), saved, before)
    assert read_metadata(saved) == before


class HasWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))


def test_a_crf_layer_is_no_part_of_the_weights(saved, path):
    model = small(seed=1, crf=HasWeights())
    load_weights(model, saved)
    assert model.crf.weight == 1
    save_weights(model, path)
    assert load_model(path).crf is None


def test_metadata_that_are_no_json_are_given_as_text(path):
    deep = "[" * 100_000
    save_file({"a": torch.zeros(1)}, path, {"format": "pt", "deep": deep, "n": "3"})
    assert read_metadata(path) == {"format": "pt", "deep": deep, "n": 3}


def test_a_file_of_another_tool_with_the_same_tensors_loads(saved):
    save_file(load_file(saved), saved)
    model = small(seed=1)
    load_weights(model, saved)
    assert_same_state(model, small())
    assert "model, num_classes, options missing" in refused(load_model, saved)


# Reading: files that are no weights.


def header(content, tail=b"\0" * 4):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + tail


def entry(*shape):
    return {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}


GOOD = save({"a": torch.zeros(3, 4)}, {"model": '"deeplab_v2_small"'})
BAD_FILES = {
    "empty": b"",
    "text": b"these are not the weights you are looking for\n",
    "shorter than its header": GOOD[:20],
    "cut off": GOOD[:-1],
    "longer than its tensors": GOOD + b"\0",
    "header of 2**63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "header longer than the file": struct.pack("<Q", 90_000_000) + b"{}",
    "header is no JSON": header(b"[}"),
    "header is a list": header(b"[]"),
    "header nests": header(b"[" * 50_000),
    "header is not UTF-8": header(b'{"\xff": 3}'),
    "shape of negative size": header({"a": entry(-1)}),
    "no tensors before its end": header({"__metadata__": {"model": '"deeplab_v2_small"'}}),
    "tensor larger than the file": header({"a": entry(2**40)}),
    "size that overflows": header({"a": entry(2**62, 8)}),
    "tensors that overlap": header({"a": entry(1), "b": entry(1)}),
    "metadata that are no strings": header({"__metadata__": {"model": {"a": 1}}}, b""),
}
READERS = pytest.mark.parametrize(
    "read",
    [load_model, read_metadata, lambda path: load_weights(small(), path)],
    ids=["load_model", "read_metadata", "load_weights"],
)


@READERS
@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_is_no_safetensors_is_named(path, kind, read):
    path.write_bytes(BAD_FILES[kind])
    message = refused(read, path)
    assert message.startswith(f"{path}: not a readable safetensors file")
    if kind in ("empty", "text"):
        assert f"but {'an empty file' if kind == 'empty' else 'a text'}; " in message
    else:
        assert "fetch or write it again" in message


@READERS
def test_a_pickle_is_refused_and_not_executed(path, tmp_path, read):
    executed = tmp_path / "executed"
    for write in (pickle.dump, torch.save):
        with path.open("wb") as file:
            write(Dangerous(executed), file)
        assert "another format (deeplab convert reads .pth and .caffemodel)" in refused(read, path)
        assert not executed.exists()


@READERS
def test_a_missing_file_a_folder_and_a_pipe_are_named(path, tmp_path, read):
    said = "no such weights file; check the path, or take a name of deeplab weights list"
    assert refused(read, path) == f"{path}: {said}"
    assert "not a folder or device" in refused(read, tmp_path)
    os.mkfifo(path)
    assert "not a folder or device" in refused(read, path)
    assert "n" * 300 in refused(read, tmp_path / ("n" * 300))


@pytest.mark.parametrize("cut", [7, 8, 9, 2_000, 100_000, -1])
def test_weights_cut_off_anywhere_are_refused(saved, cut):
    saved.write_bytes(saved.read_bytes()[:cut])
    assert "cut off" in refused(load_model, saved)


# Reading: weights that do not fit.


def assert_unchanged_after(read, model, path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    message = refused(read, model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rates": (1, 2)}, "the file has rates [6, 12, 18, 24], this model has rates [1, 2]"),
        ({"style": "torchvision"}, "the file has style caffe, this model has style torchvision"),
    ],
)
def test_weights_of_another_model_are_told_by_their_metadata(saved, options, said):
    model = small(**options)
    message = assert_unchanged_after(load_weights, model, saved)
    assert message.startswith(f"{saved}: weights of another model: {said}")


def test_weights_of_another_architecture_are_told_by_their_metadata(saved):
    message = refused(load_weights, build("deeplab_v2_vgg16", num_classes=2), saved)
    assert "the file has model deeplab_v2_small, this model has model deeplab_v2_vgg16" in message


ADDED = {"ema\x1b[31m.weight": torch.zeros(1)}
RESHAPED = {"backbone.conv1.weight": torch.zeros(16, 3, 3, 3)}
INTEGERS = {"backbone.bn1.weight": torch.zeros(16, dtype=torch.int32)}
EIGHT_BITS = {"backbone.bn1.bias": torch.zeros(16).to(torch.float8_e4m3fn)}
NOT_A_NUMBER = {"head.classifier.bias": torch.tensor([0.0, 0, 0, torch.nan, 0, 0, 0, 0])}


@pytest.mark.parametrize("load_into", [True, False], ids=["load_weights", "load_model"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"head.classifier.bias": None}, "1 missing: head.classifier.bias;"),
        (ADDED, r"1 unexpected: ema\x1b[31m.weight;"),
        (RESHAPED, "backbone.conv1.weight [16, 3, 3, 3] instead of [16, 3, 7, 7]"),
        (INTEGERS, "backbone.bn1.weight I32 instead of float32"),
        (EIGHT_BITS, "backbone.bn1.bias F8_E4M3 instead of float32"),
        (NOT_A_NUMBER, "NaN or Inf in 1 tensors: head.classifier.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_listed(saved, changes, said, load_into):
    rewrite(saved, changes)
    if load_into:
        message = assert_unchanged_after(load_weights, small(seed=1), saved)
    else:
        message = refused(load_model, saved)
    assert message.startswith(f"{saved}: ")
    assert said in message


def test_all_kinds_of_mismatch_come_in_one_error_and_long_lists_are_counted(saved):
    left_out = {name: None for name in load_file(saved) if "layer1" in name}
    rewrite(saved, RESHAPED | ADDED | left_out)
    message = refused(load_weights, small(), saved)
    assert "42 missing: backbone.layer1.0.conv1.weight, " in message
    assert " and 36 more; 1 unexpected: ema" in message
    assert "; 1 of another shape or type: backbone.conv1.weight" in message


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"model": None}, "do not say which model it belongs to (model missing)"),
        ({"model": '"unet"'}, "unknown name 'unet'; expected one of"),
        ({"model": "[1]"}, "describe no model"),
        ({"num_classes": "true"}, "num_classes must be an integer, not True"),
        ({"num_classes": "2.5"}, "num_classes must be an integer, not 2.5"),
        ({"num_classes": "[1]"}, "num_classes must be an integer, not [1]"),
        ({"num_classes": "-1", "class_names": None}, "num_classes must be an integer from 1 up"),
        ({"options": "[]"}, "options must be the arguments of a model"),
        ({"options": '{"crf": 1}'}, "options must be the arguments of a model"),
        ({"options": '{"rates": 6}'}, "describe no model"),
        ({"options": '{"rates": [6, -1]}'}, "rates must hold at least one integer"),
        ({"class_names": '["sky"]'}, "class_names must be 2 names"),
        ({"palette": '"red"'}, "palette must be a list"),
    ],
)
def test_metadata_that_describe_no_model_are_refused(saved, metadata, said):
    rewrite(saved, metadata=metadata)
    message = refused(load_model, saved)
    assert message.startswith(f"{saved}: ")
    assert said in message


@pytest.mark.parametrize("claimed", [10**12, 10**30])
def test_a_file_that_claims_a_giant_model_is_refused_without_allocating_it(saved, claimed):
    rewrite(saved, metadata={"num_classes": str(claimed), "class_names": None, "palette": None})
    assert str(saved) in refused(load_model, saved)


def test_loading_imports_no_symbolic_algebra(saved):
    """Building on "meta" must stay cheap: drawing weights there would import sympy and more."""
    code = (
        "import sys; from deeplab.weights import load_model; "
        f"load_model({str(saved)!r}); print('sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# The shipped file.


def test_without_a_path_the_shipped_file_is_loaded(saved, monkeypatch):
    monkeypatch.setattr("deeplab.weights.file.SHIPPED", saved)
    assert_same_state(load_model(), small())


def test_an_installation_without_the_shipped_file_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("deeplab.weights.file.SHIPPED", tmp_path / "gone.safetensors")
    assert "missing from this installation; reinstall" in refused(load_model)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ('{"depth": 5, "gates": []}', "option depth, option gates;"),
        ('{"resize": "lanczos"}', "resize 'lanczos' (known: caffe, torch);"),
        ('{"style": "tf", "resize": "torch"}', "style 'tf' (known: caffe, torchvision, smp);"),
    ],
)
def test_conventions_of_a_newer_version_are_named_in_one_line(saved, options, said):
    rewrite(saved, metadata={"options": options})
    for message in (
        refused(load_model, saved),
        assert_unchanged_after(load_weights, small(), saved),
    ):
        assert message.startswith(f"{saved}: its metadata have what this version does not know: ")
        assert said in message
        assert "update deeplab-triton" in message
        assert message.isprintable()


def test_how_a_model_resizes_comes_back_and_files_before_it_resize_as_caffe(path):
    save_weights(small(3, scales=(1.0, 0.5), resize="torch"), path)
    loaded = load_model(path)
    assert (loaded.resize, loaded.scales, loaded.aligned) == ("torch", (1.0, 0.5), False)
    rewrite(path, metadata={"options": '{"scales": [1.0, 0.5]}'})
    loaded = load_model(path)
    assert (loaded.resize, loaded.scales, loaded.aligned) == ("caffe", (1.0, 0.5), True)
    with pytest.raises(ValueError, match="resize must be one of caffe, torch, not 'pil'"):
        small(3, resize="pil")
