"""Training: the schedule, the samples, and that a run learns, repeats and can be interrupted."""

import dataclasses
import json
import os
import signal
import time

import numpy as np
import pytest
import tiny_training
import torch
import torch.nn.functional as F
from PIL import Image

from deeplab.data.datasets import open_dataset
from deeplab.data.scenes import CLASSES, PALETTE
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
from deeplab.engine.training.losses import StepLoss, labelled_mass, labels_of_scores
from deeplab.engine.training.samples import InMemory, batches
from deeplab.engine.training.schedule import optimizer_of
from deeplab.errors import InputError
from deeplab.model import deeplab_v2_small
from deeplab.multiscale import interp, interp_size
from deeplab.weights import load_model, read_metadata
from kernels import memory

TINY = dataclasses.replace(tiny_training.TINY, steps=3, log_every=20)


@pytest.fixture(scope="module")
def pictures():
    return tiny_training.tiny_pictures()


def run(config, pictures, out=None, **options):
    return tiny_training.run(config, pictures, out, validation=pictures, **options)


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


def mean_cross_entropy(logits, labels, weights=None):
    return F.cross_entropy(logits.double(), labels, weights, ignore_index=255).item()


@pytest.mark.parametrize("side", [33, 113, 321])
def test_labels_of_the_scales_lie_on_the_grid_of_caffes_interp(side):
    """n = 16k + 1: every eighth and every sixteenth pixel, as many as the network has scores."""
    labels = torch.arange(side).expand(side, side)[None]
    for stride in (8, 16):
        shrunk = (side - 1) // stride + 1  # Caffe's Interp with a shrink factor
        assert labels[:, ::stride, ::stride].shape == (1, shrunk, shrunk)
        positions = torch.linspace(0, side - 1, shrunk)  # its corners coincide
        assert torch.equal(labels[0, 0, ::stride].float(), positions)
    half = interp_size(side, 0.5)
    assert half == (side - 1) // 2 + 1
    sizes = [(n - 1) // 8 + 1 for n in (side, half)]  # of the scores: half as many for half
    assert sizes == [(side - 1) // 8 + 1, (side - 1) // 16 + 1]


def test_several_scales_have_four_losses_of_equal_weight():
    torch.manual_seed(0)
    model = deeplab_v2_small(4, scales=(1.0, 0.75, 0.5)).eval()
    rgb = torch.randint(0, 256, (2, 3, 65, 65), dtype=torch.uint8)
    labels = torch.randint(0, 4, (2, 65, 65))
    labels[0, :30] = 255
    step = StepLoss(model, stride=8)
    with torch.no_grad():
        loss = step(rgb, labels, labelled_mass(labels, step.strides, None).float())
        x = model.preprocess(rgb)
        full, middle, half = (
            model.head(model.backbone(interp(x, [size, size]))) for size in (65, 49, 33)
        )
    brought = [interp(scores, [9, 9]) for scores in (middle, half)]
    fused = torch.stack([full, *brought]).amax(0)
    eighth, sixteenth = labels[:, ::8, ::8], labels[:, ::16, ::16]
    assert (middle.shape[2:], half.shape[2:], sixteenth.shape[1:]) == ((7, 7), (5, 5), (5, 5))
    terms = [(fused, eighth), (full, eighth), (brought[0], eighth), (half, sixteenth)]
    expected = sum(mean_cross_entropy(*term) for term in terms)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_model_of_several_scales_trains(pictures):
    options = {"scales": [1.0, 0.75, 0.5], "frozen_bn": True}
    config = dataclasses.replace(TINY, model_options=options, loss_stride=8, lr=1e-5, steps=8)
    result = run(config, pictures)
    assert result.loss < run(dataclasses.replace(config, steps=1), pictures).loss
    assert result.model.config["scales"] == [1.0, 0.75, 0.5]
    with pytest.raises(ValueError, match=r"crop: expected 16k \+ 1 with a smallest scale of 0.5"):
        dataclasses.replace(config, crop=41)


@pytest.mark.parametrize("stride", [1, 8])
def test_class_weights_make_a_weighted_mean(stride):
    model = deeplab_v2_small(4).eval()
    rgb = torch.randint(0, 256, (2, 3, 33, 33), dtype=torch.uint8)
    labels = torch.randint(0, 4, (2, 33, 33))
    labels[0] = 255
    weights = torch.tensor([0.5, 2.0, 0.0, 1.0])
    step = StepLoss(model, stride, weights)
    with torch.no_grad():
        loss = step(rgb, labels, labelled_mass(labels, step.strides, weights).float())
        logits = model(model.preprocess(rgb), upsample=stride == 1)
    truth = labels[:, ::stride, ::stride]
    expected = mean_cross_entropy(logits, truth, weights.double())
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("side", [33, 65, 321])
def test_torchvisions_scores_are_compared_with_the_labels_where_upsampling_puts_them(side):
    """The label under the middle of each score's share, where it is upsampled to itself."""
    count = (side - 1) // 8 + 1
    pixels = torch.arange(side).expand(1, side, side)
    seen = labels_of_scores(pixels, 8, aligned=False)
    assert seen.shape == (1, count, count)
    assert torch.equal(labels_of_scores(pixels.mT, 8, aligned=False), seen.mT)
    position = torch.arange(count).expand(1, 1, count, count).float()
    upsampled = F.interpolate(position, size=(side, side), mode="bilinear")[0, 0, 0]
    off = upsampled[seen[0, 0]] - torch.arange(count)
    assert off.abs().max() <= 0.5 / 8 + 0.01  # half a pixel
    coarse = labels_of_scores(pixels, 16, aligned=False)  # aligned with the scores of stride 8
    assert torch.equal(coarse, seen[:, ::2, ::2])


def test_a_loss_at_stride_8_looks_at_the_labels_of_the_models_style():
    torch.manual_seed(0)
    model = deeplab_v2_small(4, style="torchvision").eval()
    rgb = torch.randint(0, 256, (2, 3, 65, 65), dtype=torch.uint8)
    labels = torch.randint(0, 4, (2, 65, 65))
    labels[0, 12:33] = 255
    with torch.no_grad():
        loss = segmentation_loss(model, rgb, labels, 8)
        logits = model(model.preprocess(rgb), upsample=False)
    seen = F.interpolate(labels[None].byte(), size=(9, 9), mode="nearest-exact")[0].long()
    assert loss.item() == pytest.approx(mean_cross_entropy(logits, seen), rel=1e-5)


def test_class_weights_reach_the_run_and_must_be_one_for_each_class(pictures):
    weights = (1.0,) * (len(CLASSES) - 1)
    with pytest.raises(InputError, match=f"class_weights: expected {len(CLASSES)}, one for each"):
        run(dataclasses.replace(TINY, class_weights=weights), pictures)
    equal = run(dataclasses.replace(TINY, class_weights=(*weights, 1.0)), pictures)
    other = run(dataclasses.replace(TINY, class_weights=(*weights, 9.0)), pictures)
    assert equal.loss == run(TINY, pictures).loss != other.loss


@pytest.mark.slow
def test_a_compiled_run_is_the_run(pictures, monkeypatch):
    compiled, compile_ = [], torch.compile

    def compile_for_less(module):
        compiled.append(type(module))
        return compile_(module, backend="eager")

    monkeypatch.setattr(torch, "compile", compile_for_less)
    config = dataclasses.replace(TINY, steps=2, compile=True)
    expected = run(dataclasses.replace(config, compile=False), pictures)
    result = run(config, pictures)
    assert compiled == [StepLoss]
    assert result.loss == pytest.approx(expected.loss, rel=1e-6)


def test_memory_format_changes_no_result(pictures):
    plain = run(dataclasses.replace(TINY, channels_last=False), pictures)
    assert plain.loss == pytest.approx(run(TINY, pictures).loss, rel=1e-4)


def own_data(folder, broken=()):
    """A data set of four pictures in files, some of them cut off."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    (folder / "classes.txt").write_text("a\nb\n")
    rng = np.random.default_rng(0)
    for name in "pqrs":
        image = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
        image.save(folder / "images" / f"{name}.png")
        labels = Image.fromarray(rng.integers(0, 2, (40, 50), dtype=np.uint8))
        labels.save(folder / "labels" / f"{name}.png")
        if name in broken:
            whole = (folder / "images" / f"{name}.png").read_bytes()
            (folder / "images" / f"{name}.png").write_bytes(whole[: len(whole) // 2])
    return open_dataset("folder", folder, "all")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_stops_the_run_and_is_named(tmp_path, workers):
    data = own_data(tmp_path, broken="r")
    with pytest.raises(InputError, match=r"images/r\.png: .*skip_broken = true passes over it"):
        run(dataclasses.replace(TINY, workers=workers), data)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_pictures_are_passed_over_on_request_counted_and_said(tmp_path, capfd, workers):
    data = own_data(tmp_path, broken="qr")
    config = dataclasses.replace(TINY, workers=workers, skip_broken=True, log_every=1)
    result = run(config, data)
    assert [message.split(": ")[0].split("/")[-1] for message in result.broken] == [
        "q.png",
        "r.png",
    ]
    said = capfd.readouterr().err
    assert "2 broken pictures were passed over: " in said
    assert said.count("Passed over: ") == 2


def test_a_set_of_broken_pictures_is_refused_even_so(tmp_path):
    data = own_data(tmp_path, broken="pqrs")
    with pytest.raises(InputError, match="every picture of the training set is broken"):
        run(dataclasses.replace(TINY, skip_broken=True), data)


def test_data_of_a_recipe_bring_their_classes(tmp_path):
    own_data(tmp_path)
    given = training.DataConfig("folder", str(tmp_path), "all", "all")
    out = tmp_path / "w.safetensors"
    training.train(dataclasses.replace(TINY, data=given), out, progress=False)
    assert read_metadata(out)["class_names"] == ["a", "b"]
    assert "crf" not in read_metadata(out)
    bad = dataclasses.replace(TINY, data=dataclasses.replace(given, train="bad"))
    with pytest.raises(InputError, match="no split 'bad'"):
        training.train(bad, progress=False)


def test_weights_to_start_from_are_taken(pictures, tmp_path):
    first = run(TINY, pictures, tmp_path / "w.safetensors").model
    config = dataclasses.replace(TINY, steps=1, lr=1e-30, weights=str(tmp_path / "w.safetensors"))
    same = run(config, pictures).model.state_dict()
    assert all(torch.equal(same[n], p) for n, p in first.named_parameters())


def test_another_head_than_that_of_the_weights_is_said_aloud(pictures, tmp_path, capfd):
    first = run(TINY, pictures, tmp_path / "w.safetensors").model
    config = dataclasses.replace(TINY, steps=1, lr=1e-30, weights=str(tmp_path / "w.safetensors"))
    names = [f"class {i}" for i in range(len(CLASSES) + 1)]
    palette = [[i, i, i] for i in range(len(names))]
    other = run(config, pictures, class_names=names, palette=palette).model
    assert torch.equal(other.backbone.conv1.weight, first.backbone.conv1.weight)
    said = capfd.readouterr().err
    assert "w.safetensors: has no weights for head.classifier.weight, head.classifier.bias" in said
    assert said.count("has no weights") == 1


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_the_same_steps(pictures, world):
    config = dataclasses.replace(TINY, batch_size=4)
    whole = list(batches(pictures, config))
    shares = [list(batches(pictures, config, rank=rank, world=world)) for rank in range(world)]
    for step in range(config.steps):
        images = torch.cat([share[step].image for share in shares])
        assert torch.equal(images, whole[step].image)
    (last,) = batches(pictures, config, first_step=2)
    assert torch.equal(last.image, whole[2].image)


def test_beyond_a_picture_lies_what_preprocessing_turns_into_zero(pictures):
    from deeplab.engine.training.loop import _mean_colour

    for style in ("caffe", "torchvision"):
        model = deeplab_v2_small(3, style=style)
        colour = np.broadcast_to(np.float32(_mean_colour(model)), (1, 1, 3))
        assert model.preprocess(colour).abs().max() < 1e-5


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


@pytest.fixture
def python_takes_ctrl_c():
    """Also where a shell started this in the background, which ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_second_ctrl_c_interrupts_as_usual(pictures, python_takes_ctrl_c):
    class Twice(Interrupting):
        def __getitem__(self, index):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)  # two that wait count as one
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


def test_weights_that_overflow_in_the_last_step_never_reach_a_file(pictures, tmp_path):
    out, frozen = tmp_path / "w.safetensors", tiny_training.FROZEN  # whose gradients are large
    run(dataclasses.replace(frozen, steps=1), pictures, out)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".csv"}
    with pytest.raises(FloatingPointError, match="weights are NaN or Inf after step 0: training"):
        run(dataclasses.replace(frozen, steps=1, lr=3e38), pictures, out)
    assert {path: path.read_bytes() for path in before} == before


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


# Pictures in memory, and AdamW


class Counted:
    """A data set that counts how often each picture is read, one of them broken."""

    def __init__(self, pictures, broken=None):
        self.pictures, self.broken, self.reads = pictures, broken, []

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        self.reads.append(index)
        if index == self.broken:
            raise InputError(f"picture {index} is broken")
        return self.pictures[index]


def test_pictures_in_memory_are_read_once_and_give_the_same_weights(pictures):
    counted = Counted(pictures)
    config = dataclasses.replace(TINY, in_memory=True)
    kept = train(config, dataset=counted, validation=pictures, progress=False)
    assert counted.reads == [0, 1]
    other = run(TINY, pictures).model.state_dict()
    assert all(torch.equal(t, other[name]) for name, t in kept.model.state_dict().items())


def test_a_broken_picture_in_memory_is_named_when_its_turn_comes(pictures):
    kept = InMemory(Counted(pictures, broken=1))
    assert len(kept) == 2
    assert np.array_equal(kept[0][0], pictures[0][0])
    with pytest.raises(InputError, match="picture 1 is broken"):
        kept[1]


def test_pictures_that_do_not_fit_the_memory_are_refused_before_most_are_read(
    pictures, monkeypatch
):
    monkeypatch.setattr(memory, "available", lambda device: 3 * pictures[0][0].nbytes)
    counted = Counted([pictures[0]] * 50)
    with pytest.raises(InputError, match="50 pictures in memory needs at least"):
        InMemory(counted)
    assert counted.reads == [0]


def test_adamw_takes_the_same_groups(pictures):
    config = dataclasses.replace(TINY, optimizer="adamw", lr=1e-3, weight_decay=0.05)
    optimizer = optimizer_of(deeplab_v2_small(5), config)
    assert isinstance(optimizer, torch.optim.AdamW)
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays["body_weight"] == decays["head_weight"] == 0.05
    assert decays["body_norm"] == decays["head_bias"] == 0
    trained = run(dataclasses.replace(config, steps=30, scales=(1.0, 1.0)), pictures)
    assert trained.loss < run(dataclasses.replace(config, steps=1), pictures).loss


def test_scores_meet_the_labels_that_upsampling_puts_them_on():
    """Each score is compared with the pixel whose place on the map is nearest to the score's."""
    n, k = 65, 8
    labels = torch.arange(n).expand(1, n, n).to(torch.uint8)
    assert torch.equal(labels_of_scores(labels, 8, True)[0, 0], torch.arange(0, n, 8).byte())
    found = labels_of_scores(labels, 8, False)
    assert found.shape == (1, k + 1, k + 1)
    place = (found[0, 0].double() + 0.5) * (k + 1) / n - 0.5  # as F.interpolate without corners
    assert (place - torch.arange(k + 1)).abs().max() <= 0.5 * (k + 1) / n + 1e-12
    assert torch.equal(labels_of_scores(labels, 16, False), found[:, ::2, ::2])
