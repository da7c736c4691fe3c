"""A moving average of the weights: the formula, and what a run scores, writes and resumes."""

from dataclasses import replace

import pytest
import torch
from tiny_training import SHORT, equal, run, stop_at, tiny_pictures

from deeplab.data.scenes import CLASSES
from deeplab.errors import InputError
from deeplab.evaluation.evaluate import evaluate
from deeplab.model import deeplab_v2_small
from deeplab.training.average import AveragedModel
from deeplab.training.checkpoint import Files, read_state
from deeplab.weights import load_model

AVERAGED = replace(SHORT, ema=0.5, validate_every=2)


def test_each_update_moves_the_average_by_its_share_statistics_too():
    model = deeplab_v2_small(3).double()
    average = AveragedModel(model, 0.25)
    names = ("head.classifier.weight", "backbone.bn1.running_var", "backbone.bn1.bias")
    expected = {name: model.state_dict()[name].clone() for name in names}
    for step in range(6):
        for tensor in model.state_dict().values():
            tensor.add_(torch.rand(tensor.shape) if tensor.is_floating_point() else 1)
        average.update(model, step)
        decay = min(0.25, (1 + step) / (10 + step))  # 1 / 10, 2 / 11, 3 / 12, 1 / 4, ...
        for name in names:
            expected[name] = decay * expected[name] + (1 - decay) * model.state_dict()[name]
    found = average.model.state_dict()
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-14, atol=0)
    assert found["backbone.bn1.num_batches_tracked"] == 6
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


def test_a_run_scores_and_writes_the_average_and_trains_the_weights_as_without(pictures, tmp_path):
    out = tmp_path / "w.safetensors"
    result = run(AVERAGED, pictures, out)
    plain = run(replace(AVERAGED, ema=0.0), pictures)
    assert result.loss == plain.loss
    assert not equal(result.model, plain.model)
    state = read_state(Files(out).state)
    trained, average = state["model"], state["average"]
    assert all(torch.equal(t, trained[name]) for name, t in plain.model.state_dict().items())
    assert equal(load_model(Files(out).last), result.model)
    assert all(torch.equal(t, average[name]) for name, t in result.model.state_dict().items())
    scores = evaluate(result.model, tiny_pictures(), class_names=list(CLASSES)).network
    assert result.metrics["pixel_accuracy"] == scores.pixel_accuracy


def test_a_resumed_run_has_the_average_of_one_piece(pictures, tmp_path):
    out = tmp_path / "w.safetensors"
    whole = run(AVERAGED, pictures)
    run(AVERAGED, stop_at(1, pictures), out)
    again = run(AVERAGED, pictures, out, resume=True)
    assert again.steps == whole.steps
    assert equal(again.model, whole.model)
    with pytest.raises(InputError, match=r"ema 0\.5 then, 0\.9 now"):
        run(replace(AVERAGED, ema=0.9), pictures, out, resume=True)
