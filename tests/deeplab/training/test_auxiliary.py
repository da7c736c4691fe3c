"""The auxiliary classifier of v3: torchvision's layers, weights and loss, and runs with one."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_training import SHORT, equal, run, stop_at

from deeplab.errors import InputError
from deeplab.model import build, deeplab_v3_mobilenet
from deeplab.training.auxiliary import AuxiliaryHead, load_auxiliary
from deeplab.training.checkpoint import Files, read_state
from deeplab.training.losses import StepLoss
from deeplab.training.schedule import make_optimizer
from deeplab.weights import load_model, load_weights

V3 = replace(SHORT, steps=2, model="deeplab_v3_mobilenet", auxiliary=0.5)


def randomised(module):
    """Also statistics of batch normalisation that are not those of a new module."""
    torch.manual_seed(1)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.uniform_(-0.5, 1.5)
    return module


@pytest.mark.parametrize(
    ("name", "made_by"),
    [
        pytest.param("deeplab_v3_resnet50", "deeplabv3_resnet50", marks=pytest.mark.slow),
        ("deeplab_v3_mobilenet", "deeplabv3_mobilenet_v3_large"),
    ],
)
def test_scores_and_loss_are_torchvisions(tmp_path, torchvision, name, made_by):
    make = getattr(torchvision.deeplabv3, made_by)
    theirs = make(weights=None, weights_backbone=None, num_classes=7, aux_loss=True)
    theirs = randomised(theirs).double().eval()
    path = tmp_path / "theirs.pth"
    torch.save(theirs.state_dict(), path)
    model = build(name, num_classes=7).double().eval()
    load_weights(model, path)
    head = AuxiliaryHead(model).double().eval()
    assert load_auxiliary(head, path) == ()
    rgb = torch.randint(0, 256, (2, 3, 33, 33), dtype=torch.uint8)
    labels = torch.randint(0, 7, (2, 33, 33))
    labels[0, :9] = 255
    x = model.preprocess(rgb)
    with torch.no_grad():
        out, aux = head.scores(model, x, upsample=True)
        expected = theirs(x)
        torch.testing.assert_close(out, expected["out"], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(aux, expected["aux"], rtol=1e-9, atol=1e-9)
        step = StepLoss(model, auxiliary=head, auxiliary_weight=0.5)
        loss = step(rgb, labels, step.denominators(labels))
    terms = [F.cross_entropy(expected[key], labels, ignore_index=255) for key in ("out", "aux")]
    assert loss.item() == pytest.approx((terms[0] + 0.5 * terms[1]).item(), rel=1e-9)


def test_layers_of_other_classes_and_files_without_any_leave_the_head_as_it_was(
    tmp_path, torchvision
):
    theirs = torchvision.deeplabv3.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=7, aux_loss=True
    )
    head = AuxiliaryHead(deeplab_v3_mobilenet(5))
    classifier = head.classifier.weight.detach().clone()
    torch.save(theirs.state_dict(), tmp_path / "seven.pth")
    assert load_auxiliary(head, tmp_path / "seven.pth") == ("classifier.weight", "classifier.bias")
    assert torch.equal(head.classifier.weight, classifier)
    assert torch.equal(head.conv.weight, theirs.aux_classifier[0].weight)
    alone = {n: t for n, t in theirs.state_dict().items() if not n.startswith("aux")}
    torch.save(alone, tmp_path / "alone.pth")
    before = head.conv.weight.detach().clone()
    stay = load_auxiliary(head, tmp_path / "alone.pth")
    assert set(stay) == {n for n in head.state_dict() if not n.endswith("tracked")}
    assert torch.equal(head.conv.weight, before)


def test_of_a_file_whose_layers_are_odd_each_is_taken_whole_or_not_at_all(tmp_path, torchvision):
    theirs = torchvision.deeplabv3.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=7, aux_loss=True
    )
    state = theirs.state_dict() | {"aux_classifier.9.strange": torch.ones(2)}
    del state["aux_classifier.4.bias"]
    torch.save(state, tmp_path / "odd.pth")
    head = AuxiliaryHead(deeplab_v3_mobilenet(7))
    before = head.classifier.weight.detach().clone()
    assert load_auxiliary(head, tmp_path / "odd.pth") == ("classifier.weight", "classifier.bias")
    assert torch.equal(head.classifier.weight, before)


@pytest.mark.slow
def test_a_run_trains_it_resumes_with_it_and_writes_weights_without_it(pictures, tmp_path):
    whole = run(V3, pictures)
    assert whole.loss != run(replace(V3, auxiliary=0.0), pictures).loss
    out = tmp_path / "w.safetensors"
    run(V3, stop_at(1, pictures), out)
    stored = read_state(Files(out).state)["auxiliary"]
    again = run(V3, pictures, out, resume=True)
    assert again.loss == whole.loss
    assert equal(again.model, whole.model)
    trained = read_state(Files(out).state)["auxiliary"]
    assert not torch.equal(trained["conv.weight"], stored["conv.weight"])
    assert not torch.equal(trained["classifier.bias"], stored["classifier.bias"])
    assert equal(load_model(Files(out).last), whole.model.cpu())


def test_its_weights_decay_and_its_biases_and_norms_do_not():
    model = deeplab_v3_mobilenet(5)
    head = AuxiliaryHead(model)
    groups = {g["name"]: g for g in make_optimizer(model, V3, head).param_groups}
    decaying, other = groups["auxiliary_weight"], groups["auxiliary_other"]
    assert decaying["weight_decay"] == V3.weight_decay > other["weight_decay"] == 0
    assert {id(p) for p in decaying["params"]} == {id(head.conv.weight), id(head.classifier.weight)}
    found = [id(p) for g in groups.values() for p in g["params"]]
    both = [*model.parameters(), *head.parameters()]
    assert sorted(found) == sorted(id(p) for p in both)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "deeplab_v2_small"}, "auxiliary must be 0 to train deeplab_v2_small: only Dee"),
        ({"model": "deeplab_v3plus_resnet18"}, "auxiliary must be 0 to train deeplab_v3plus_resn"),
        ({"crf": True}, "auxiliary must be 0 for a model with a CRF; leave one of them out"),
    ],
)
def test_models_that_cannot_have_one_are_refused(pictures, changes, message):
    with pytest.raises(InputError, match=message):
        run(replace(V3, **changes), pictures)
    model = build("deeplab_v3_resnet50", 3, scales=(1.0, 0.5))
    with pytest.raises(InputError, match="auxiliary must be 0 for a model with several scales"):
        AuxiliaryHead(model)
