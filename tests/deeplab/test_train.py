"""Training: the schedule, the samples, and that a run learns, repeats and can be interrupted."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deeplab.data.scenes import CLASSES, PALETTE, ScenesDataset
from deeplab.engine import train as training
from deeplab.engine.refine import CRFSettings
from deeplab.engine.train import (
    SCENES_CRF,
    Samples,
    TrainConfig,
    parameter_groups,
    poly_lr,
    segmentation_loss,
    train,
)
from deeplab.errors import InputError
from deeplab.model import deeplab_v2_small
from deeplab.weights import load_model, read_metadata

TINY = TrainConfig(
    steps=3,
    batch_size=2,
    crop=33,
    lr=0.02,
    warmup=0,
    validate_every=100,
    precision="float32",
    workers=0,
)


@pytest.fixture(scope="module")
def pictures():
    return [tuple(scene) for scene in ScenesDataset(0, 2, size=33)]


def run(config, pictures, out=None, **options):
    return train(config, out, dataset=pictures, validation=pictures, progress=False, **options)


def test_poly_schedule_has_the_papers_values():
    assert poly_lr(0.1, 0, 1000) == 0.1
    assert poly_lr(0.1, 500, 1000) == pytest.approx(0.1 * 0.535886731)
    assert poly_lr(0.1, 999, 1000) == pytest.approx(0.1 * 0.001995262)
    assert poly_lr(0.1, 250, 1000, power=1) == pytest.approx(0.075)


def test_warmup_rises_linearly_and_then_leaves_the_schedule_alone():
    ramp = [poly_lr(1.0, i, 10**9, warmup=4) for i in range(6)]
    assert ramp == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0], abs=1e-6)


def test_group_factors_and_schedule_reach_the_optimizer(pictures, monkeypatch):
    seen = []

    class Recorder(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(
                {g["name"]: (g["lr"], g["weight_decay"], g["momentum"]) for g in self.param_groups}
            )
            return super().step(closure)

    monkeypatch.setattr(training.torch.optim, "SGD", Recorder)
    config = dataclasses.replace(TINY, steps=2, lr=0.01, head_lr_scale=10, weight_decay=0.003)
    run(config, pictures)
    second = 0.01 * 0.5**0.9
    expected = {
        "body_weight": (second, 0.003, 0.9),
        "body_norm": (second, 0.0, 0.9),
        "head_weight": (10 * second, 0.003, 0.9),
        "head_bias": (20 * second, 0.0, 0.9),
    }
    assert seen[0]["body_weight"][0] == 0.01
    assert seen[1].keys() == expected.keys()
    for name, values in expected.items():
        assert seen[1][name] == pytest.approx(values), name


@pytest.mark.parametrize("scale", [0.2, 1.0, 10.0])
def test_head_lr_scale_is_relative_to_the_body(scale):
    groups = parameter_groups(deeplab_v2_small(5), dataclasses.replace(TINY, head_lr_scale=scale))
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates["head_weight"] / rates["body_weight"] == pytest.approx(scale)
    assert rates["head_bias"] / rates["body_weight"] == pytest.approx(2 * scale)


def test_a_few_steps_overfit_two_pictures(pictures):
    config = dataclasses.replace(
        TINY, steps=30, lr=0.03, head_lr_scale=1.0, scales=(1.0, 1.0), mirror=False
    )
    before = run(dataclasses.replace(config, steps=1), pictures)
    after = run(config, pictures)
    assert after.loss < 0.5 * before.loss
    assert after.metrics["miou"] > before.metrics["miou"] + 0.2
    assert not after.model.training


def test_same_configuration_gives_the_same_weights_whatever_the_workers(pictures):
    first = run(TINY, pictures).model.state_dict()
    again = run(dataclasses.replace(TINY, workers=2), pictures).model.state_dict()
    other = run(dataclasses.replace(TINY, seed=1), pictures).model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.classifier.weight"], other["head.classifier.weight"])


def test_samples_depend_on_seed_and_index_alone(pictures):
    samples = Samples(pictures, TINY)
    backwards = [samples[i] for i in reversed(range(len(samples)))][::-1]
    for i in range(len(samples)):
        assert torch.equal(samples[i][0], backwards[i][0])
        assert torch.equal(samples[i][1], backwards[i][1])
    assert len(samples) == TINY.steps * TINY.batch_size
    assert not torch.equal(samples[0][0], samples[2][0])


def test_every_epoch_visits_every_picture_once():
    seen = []

    class Counted:
        def __len__(self):
            return 5

        def __getitem__(self, index):
            seen.append(index)
            return np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), np.uint8)

    samples = Samples(Counted(), dataclasses.replace(TINY, crop=9, steps=5, batch_size=2))
    for i in range(10):
        samples[i]
    assert sorted(seen[:5]) == sorted(seen[5:]) == list(range(5))
    assert seen[:5] != seen[5:]


@pytest.mark.parametrize("stride", [1, 8])
def test_loss_is_the_mean_cross_entropy_of_labelled_pixels(stride):
    torch.manual_seed(0)
    model = deeplab_v2_small(4).eval()
    rgb = torch.randint(0, 256, (2, 3, 33, 33)).float()
    labels = torch.randint(0, 4, (2, 33, 33))
    labels[:, :9] = 255
    with torch.no_grad():
        loss = segmentation_loss(model, rgb, labels, stride)
        logits = model(model.preprocess(rgb), upsample=stride == 1).double()
    truth = labels if stride == 1 else labels[:, ::8, ::8]
    log_p = F.log_softmax(logits, 1).permute(0, 2, 3, 1)[truth != 255]
    expected = -log_p.gather(1, truth[truth != 255][:, None]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_loss_of_a_batch_without_labels_is_zero_not_nan():
    model = deeplab_v2_small(4)
    loss = segmentation_loss(model, torch.zeros(2, 3, 33, 33), torch.full((2, 33, 33), 255), 1)
    loss.backward()
    assert loss.item() == 0


def test_weights_file_says_what_made_it(pictures, tmp_path):
    out = tmp_path / "w.safetensors"
    result = run(TINY, pictures, out, metadata={"crf": {"sigma_rgb": 5}})
    metadata = read_metadata(out)
    assert metadata["class_names"] == list(CLASSES)
    assert metadata["palette"] == PALETTE[: len(CLASSES)].tolist()
    recipe = json.loads(json.dumps(dataclasses.asdict(TINY)))
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
    config = dataclasses.replace(TINY, crf=True)
    result = run(config, pictures, out, metadata={"crf": start})
    learned = result.model.crf.learned
    assert learned.weights.tolist() != [3.0, 6.0]
    assert not torch.equal(learned.compatibility, 1 - torch.eye(len(CLASSES)))
    assert set(result.metrics) == {"images", "network", *result.metrics["network"]}

    stored = CRFSettings().changed(read_metadata(out)["crf"])
    assert stored == CRFSettings.of(result.model.crf)
    assert stored.bilateral_sigma_xy == pytest.approx(20.0)
    logits, image = torch.randn(1, len(CLASSES), 9, 9), torch.zeros(1, 3, 9, 9)
    again = stored.layer(len(CLASSES))(logits, image)
    torch.testing.assert_close(again, result.model.crf(logits, image).detach())


def test_a_crf_wants_the_loss_at_full_size():
    with pytest.raises(ValueError, match="loss_stride: expected 1 with crf"):
        TrainConfig(crf=True, loss_stride=8)


def test_own_data_and_classes_of_any_size_train(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [
        (rng.integers(0, 256, (h, w, 3), dtype=np.uint8), rng.integers(0, 2, (h, w)))
        for h, w in ((20, 45), (50, 17), (33, 33))
    ]
    out = tmp_path / "own.safetensors"
    run(TINY, pictures, out, class_names=("ground", "thing"), palette=[[0, 0, 0], [255, 0, 0]])
    assert load_model(out).num_classes == 2
    assert read_metadata(out)["palette"] == [[0, 0, 0], [255, 0, 0]]


class Interrupting:
    """Presses Ctrl-C while sample `at` is made."""

    def __init__(self, pictures, at):
        self.pictures, self.at, self.calls = pictures, at, 0

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        self.calls += 1
        if self.calls == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        return self.pictures[index]


def test_ctrl_c_stops_cleanly_and_leaves_a_loadable_checkpoint(pictures, tmp_path):
    out = tmp_path / "w.safetensors"
    handler = signal.getsignal(signal.SIGINT)
    config = dataclasses.replace(TINY, steps=1000)
    result = train(
        config,
        out,
        dataset=Interrupting(pictures, at=6),
        validation=pictures,
        progress=False,
    )
    assert result.interrupted
    assert 1 <= result.steps < 10
    assert read_metadata(out)["step"] == result.steps
    weights = load_model(out).state_dict()
    assert all(torch.equal(weights[k], v) for k, v in result.model.state_dict().items())
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_in_the_last_validation_keeps_the_finished_weights(pictures, tmp_path):
    class Stopped(list):
        def __getitem__(self, index):
            raise KeyboardInterrupt

    out = tmp_path / "w.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(TINY, out, dataset=pictures, validation=Stopped(pictures), progress=False)
    assert read_metadata(out)["step"] == TINY.steps


def test_second_ctrl_c_interrupts_as_usual(pictures):
    class Twice(Interrupting):
        def __getitem__(self, index):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            return self.pictures[index]

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, dataset=Twice(pictures, 0), validation=pictures, progress=False)
    assert signal.getsignal(signal.SIGINT) is handler


def test_progress_is_shown_on_standard_error_only(pictures, capsys):
    train(TINY, dataset=pictures, validation=pictures)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"{TINY.steps}/{TINY.steps}" in shown.err


def test_place_that_cannot_be_written_is_found_before_training(pictures, tmp_path):
    data = Interrupting(pictures, at=-1)
    with pytest.raises(InputError, match="cannot write"):
        train(TINY, tmp_path / "no" / "w.safetensors", dataset=data, validation=pictures)
    assert data.calls == 0


def test_diverging_run_says_so_and_keeps_the_last_good_file(pictures, tmp_path):
    out = tmp_path / "w.safetensors"
    diverging = dataclasses.replace(TINY, lr=1e30, steps=20)
    for good in (None, dataclasses.replace(TINY, steps=2)):
        if good is not None:
            run(good, pictures, out)
        before = out.read_bytes() if out.exists() else None
        with pytest.raises(FloatingPointError, match=r"training diverged; lower lr"):
            run(diverging, pictures, out)
        assert (out.read_bytes() if out.exists() else None) == before
    load_model(out)


def test_bfloat16_trains_close_to_float32(pictures):
    full = run(dataclasses.replace(TINY, steps=10), pictures)
    half = run(dataclasses.replace(TINY, steps=10, precision="bfloat16"), pictures)
    assert half.loss == pytest.approx(full.loss, rel=0.1)
    assert all(p.dtype == torch.float32 for p in half.model.parameters())


def test_empty_data_set_is_refused(pictures):
    with pytest.raises(ValueError, match="at least one picture"):
        train(TINY, dataset=[], validation=pictures)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "unet"),
        ("steps", 0),
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("power", -1.0),
        ("head_lr_scale", 0.0),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("crop", 320),
        ("crop", 1),
        ("scales", (1.5, 0.5)),
        ("scales", (0.0, 1.0)),
        ("loss_stride", 4),
        ("validate_every", 0),
        ("precision", "float64"),
        ("workers", -1),
        ("seed", -1),
        ("warmup", -1),
        ("scenes", 0),
        ("validation_scenes", 0),
        ("scenes", 9_000_001),  # the next would be a validation scene
        ("validation_scenes", 1_000_001),  # and here a test scene
    ],
)
def test_configuration_refuses_values_without_sense(field, value):
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        TrainConfig(**{field: value})


def test_scenes_come_with_their_crf_settings(tmp_path, pictures):
    out = tmp_path / "w.safetensors"
    config = dataclasses.replace(TINY, steps=1, scenes=1, validation_scenes=1)
    train(config, out, validation=pictures, progress=False)
    assert CRFSettings().changed(read_metadata(out)["crf"]) == CRFSettings(**SCENES_CRF)
