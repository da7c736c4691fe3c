"""Training as a whole: a run learns, starts from weights, and its file says what made it."""

import io
import json
from dataclasses import asdict, replace

import pytest
import torch
from tiny_training import SHORT, Signalling, run

from deeplab.crf_settings import CRFSettings
from deeplab.data.scenes import CLASSES, PALETTE
from deeplab.errors import InputError
from deeplab.evaluation.evaluate import evaluate
from deeplab.training import train
from deeplab.training.config import SCENES_CRF
from deeplab.training.logs import _progress_bar
from deeplab.weights import load_model, read_metadata


def test_a_few_steps_overfit_two_pictures(pictures):
    changes = {"lr": 0.03, "head_lr_scale": 1.0, "scales": (1.0, 1.0), "mirror": False}
    config = replace(SHORT, steps=30, **changes)
    before = run(replace(config, steps=1), pictures)
    after = run(config, pictures)
    assert after.loss < 0.5 * before.loss
    assert after.metrics["miou"] > before.metrics["miou"] + 0.2
    assert not after.model.training


def test_weights_to_start_from_are_taken(pictures, tmp_path):
    first = run(SHORT, pictures, tmp_path / "w.safetensors").model
    config = replace(SHORT, steps=1, lr=1e-30, weights=str(tmp_path / "w.safetensors"))
    same = run(config, pictures).model.state_dict()
    assert all(torch.equal(same[n], p) for n, p in first.named_parameters())


def test_another_head_than_that_of_the_weights_is_said_aloud(pictures, tmp_path, capfd):
    first = run(SHORT, pictures, tmp_path / "w.safetensors").model
    config = replace(SHORT, steps=1, lr=1e-30, weights=str(tmp_path / "w.safetensors"))
    names = [f"class {i}" for i in range(len(CLASSES) + 1)]
    palette = [[i, i, i] for i in range(len(names))]
    other = run(config, pictures, class_names=names, palette=palette).model
    assert torch.equal(other.backbone.conv1.weight, first.backbone.conv1.weight)
    said = capfd.readouterr().err
    assert "w.safetensors: has no weights for head.classifier.weight, head.classifier.bias" in said
    assert said.count("has no weights") == 1


def test_weights_file_says_what_made_it(pictures, tmp_path):
    out = tmp_path / "w.safetensors"
    result = run(SHORT, pictures, out, metadata={"crf": {"sigma_rgb": 5}})
    metadata = read_metadata(out)
    assert metadata["class_names"] == list(CLASSES)
    assert metadata["palette"] == PALETTE[: len(CLASSES)].tolist()
    recipe = json.loads(json.dumps(asdict(SHORT)))
    assert metadata["recipe"] == recipe
    assert metadata["step"] == 3
    assert metadata["metrics"] == result.metrics
    assert metadata["crf"] == {"sigma_rgb": 5}
    loaded = load_model(out)
    x = torch.zeros(1, 3, 33, 33)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), result.model(x))


def test_a_crf_trains_with_the_network_and_comes_back_with_its_weights(pictures, tmp_path):
    out = tmp_path / "w.safetensors"
    start = {"iterations": 2, "bilateral_weight": 6.0, "bilateral_sigma_xy": 20.0}
    config = replace(SHORT, crf=True)
    result = run(config, pictures, out, metadata={"crf": start})
    learned = result.model.crf.learned
    assert learned.weights.tolist() != [3.0, 6.0]
    assert not torch.equal(learned.compatibility, 1 - torch.eye(len(CLASSES)))
    assert set(result.metrics) == {"images", "network", *result.metrics["network"]}

    stored = CRFSettings().changed(read_metadata(out)["crf"])
    assert stored == CRFSettings.of(result.model.crf)
    assert stored.bilateral.sigma_xy == pytest.approx(20.0)
    logits, image = torch.randn(1, len(CLASSES), 9, 9), torch.zeros(1, 3, 9, 9)
    again = stored.layer(len(CLASSES))(logits, image)
    torch.testing.assert_close(again, result.model.crf(logits, image).detach())


def test_progress_is_shown_on_standard_error_only(pictures, capsys):
    train(SHORT, dataset=pictures, validation=pictures)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"{SHORT.steps}/{SHORT.steps}" in shown.err


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_progress_tells_counts_and_times_whole_however_narrow_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    bar = _progress_bar()
    bar.console.file = io.StringIO()
    state = "loss 2.351  lr 0.0006347  mIoU 4.3%  99.0/s  wait 75%  0.5 GiB"
    bar.add_task("train", total=20_000, completed=12_345, status=state)
    bar.console.print(bar.get_renderable())
    shown = bar.console.file.getvalue()
    assert "12345/20000" in shown
    assert shown.count(":") == 4  # two times
    assert "…" not in shown
    assert " ".join(state.split()[-2:]) in " ".join(shown.split())


def test_place_that_cannot_be_written_is_found_before_training(pictures, tmp_path):
    data = Signalling(pictures, -1, 0)
    with pytest.raises(InputError, match="cannot write"):
        run(SHORT, data, tmp_path / "no" / "w.safetensors")
    assert data.calls == 0


def test_validations_score_the_views_that_the_recipe_says(pictures, monkeypatch):
    seen: list[tuple[float, ...]] = []

    def scored(*args, scales, **kwargs):
        seen.append(scales)
        return evaluate(*args, scales=scales, **kwargs)

    monkeypatch.setattr("deeplab.training.trainer.evaluate", scored)
    result = run(replace(SHORT, validation_scales=(0.5, 1.0)), pictures)
    again = evaluate(result.model, pictures, scales=(0.5, 1.0), class_names=CLASSES)
    assert set(seen) == {(0.5, 1.0)}
    assert result.metrics["miou"] == again.network.miou


def test_scenes_come_with_their_crf_settings(tmp_path, pictures):
    out = tmp_path / "w.safetensors"
    config = replace(SHORT, steps=1, scenes=1, validation_scenes=1)
    train(config, out, validation=pictures, progress=False)
    assert CRFSettings().changed(read_metadata(out)["crf"]) == CRFSettings().changed(SCENES_CRF)
