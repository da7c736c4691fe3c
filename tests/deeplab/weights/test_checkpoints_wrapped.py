"""State dicts within others, and names behind those of wrappers: read as if they were bare."""

import pytest
import torch
from checkpoints import filled, isht7, kazuto1011, output, refused

from deeplab.model import build
from deeplab.weights import load_checkpoint, load_weights

PREFIXES = [
    *("module.", "model.", "net.", "network.", "_orig_mod.", "model.module.", "module.model."),
    *("_orig_mod.module.", "module._orig_mod.model.net."),
]
KEYS = ("state_dict", "model_state", "model_state_dict", "model", "network", "net")


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_prefix_of_a_wrapper_is_cut_off(theirs, path, prefix):
    for source, state in (
        ("kazuto1011", kazuto1011(theirs)),
        ("isht7", isht7(theirs)),
        ("state_dict", theirs.state_dict()),
    ):
        ours, loaded = filled(path, prefixed(state, prefix))
        assert (loaded.source, loaded.skipped) == (source, ())
        assert torch.equal(output(ours), output(theirs))


def test_torchvisions_deeplabv3_is_read_behind_a_prefix(path, torchvision):
    body = torchvision.resnet.resnet18(weights=None).state_dict()
    torch.save({"model": prefixed(body, "module.")}, path)
    ours = build("deeplab_v2_resnet18", num_classes=5, style="torchvision")
    with pytest.warns(UserWarning, match="has no weights for head"):
        assert load_weights(ours, path).source == "torchvision"
    assert torch.equal(ours.backbone.conv1.weight, body["conv1.weight"])


@pytest.mark.parametrize("keys", [*((key,) for key in KEYS), ("model", "state_dict")], ids="-".join)
def test_the_dict_that_a_trainer_saved_it_in_is_opened(theirs, path, keys):
    content = prefixed(kazuto1011(theirs), "model.")
    for key in reversed(keys):
        content = {"epoch": 3, "optimizer": {"state": {}}, key: content}
    ours, loaded = filled(path, content)
    assert loaded.skipped == ()
    assert torch.equal(output(ours), output(theirs))


def test_what_lies_beside_the_model_is_left_out_and_said(theirs, path):
    state = prefixed(kazuto1011(theirs), "model.") | {"criterion.weight": torch.ones(3)}
    ours, loaded = filled(path, {"state_dict": state})
    assert loaded.dropped["criterion.weight"] == "beside the model"
    assert torch.equal(output(ours), output(theirs))


def test_two_models_in_a_file_are_not_chosen_between(theirs, path):
    state = kazuto1011(theirs)
    torch.save(prefixed(state, "model.") | prefixed(state, "net."), path)
    assert "holds several models, under model. and net.; save one of them alone" in refused(path)


def test_a_dict_that_holds_itself_ends(path):
    content = {"some.weight": torch.ones(1)}
    content["model"] = content
    torch.save(content, path)
    assert "of unknown origin" in refused(path)


def test_a_state_dict_of_ours_leaves_its_crf_layer_out(path):
    theirs = build("deeplab_v2_small", 4)
    torch.save(theirs.state_dict() | {"crf.kernels.0.weight": torch.ones(1)}, path)
    opened = load_checkpoint(path)
    assert opened.loaded.dropped["crf.kernels.0.weight"] == "CRF layer"
    assert "a state dict of this package, taken for deeplab_v2_small" in opened.taken_for()
    for name, tensor in opened.model.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name
