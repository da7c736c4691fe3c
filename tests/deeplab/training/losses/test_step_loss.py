"""The loss: the formula, on the grids of Caffe and torchvision, of several scales, weighted."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_training import SHORT, run

from crf import Bilateral
from deeplab.crf_settings import CRFSettings
from deeplab.data.scenes import CLASSES
from deeplab.errors import InputError
from deeplab.model import build, deeplab_v2_small
from deeplab.model.multiscale import interp, interp_size
from deeplab.training.losses import (
    Grid,
    StepLoss,
    label_strides,
    labels_of_scores,
    loss_denominators,
    segmentation_loss,
)


@pytest.mark.processors
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


@pytest.mark.processors
def test_several_scales_have_four_losses_of_equal_weight():
    torch.manual_seed(0)
    model = deeplab_v2_small(4, scales=(1.0, 0.75, 0.5)).eval()
    rgb = torch.randint(0, 256, (2, 3, 65, 65), dtype=torch.uint8)
    labels = torch.randint(0, 4, (2, 65, 65))
    labels[0, :30] = 255
    step = StepLoss(model, stride=8)
    with torch.no_grad():
        loss = step(rgb, labels, loss_denominators(labels, step.strides, None).float())
        x = model.preprocess(rgb)
        full, middle, half = (
            model.head(model.backbone(interp(x, [size, size]))) for size in (65, 49, 33)
        )
    brought = [interp(scores, [9, 9]) for scores in (middle, half)]
    fused = torch.stack([full, *brought]).amax(0)
    eighth, sixteenth = labels[:, ::8, ::8], labels[:, ::16, ::16]
    assert (middle.shape[2:], half.shape[2:], sixteenth.shape[1:]) == ((7, 7), (5, 5), (5, 5))
    terms = [(fused, eighth), (full, eighth), (brought[0], eighth), (half, sixteenth)]
    expected = sum(F.cross_entropy(s.double(), y, ignore_index=255).item() for s, y in terms)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.processors
@pytest.mark.parametrize("style", ["caffe", "torchvision"])
def test_at_full_size_each_of_several_scales_is_upsampled(style):
    torch.manual_seed(0)
    options = {"scales": (1.0, 0.75, 0.5), "style": style, "output_stride": 16}
    model = deeplab_v2_small(4, **options).eval()
    rgb = torch.randint(0, 256, (2, 3, 65, 49), dtype=torch.uint8)
    labels = torch.randint(0, 4, (2, 65, 49))
    labels[0, :30] = 255
    with torch.no_grad():
        loss = segmentation_loss(model, rgb, labels, 1)
        x = model.preprocess(rgb)
        scores = [model.upsample(each, (65, 49)) for each in model.forward_scales(x)]
        assert torch.equal(scores[0], model(x))  # what is trained is what the model gives
    expected = sum(F.cross_entropy(s.double(), labels, ignore_index=255).item() for s in scores)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_labels_under_maps_of_one_stride_are_found_once(monkeypatch):
    found = []

    def counted(maps, stride, grid):
        found.append((maps.shape[1:], stride))
        return labels_of_scores(maps, stride, grid)

    monkeypatch.setattr("deeplab.training.losses.step_loss.labels_of_scores", counted)
    model = build("deeplab_v2_small", 4, scales=(1.0, 0.75, 0.5))
    rgb, labels = torch.randint(0, 256, (1, 3, 33, 33)).float(), torch.randint(0, 4, (1, 33, 33))
    for stride, strides in ((1, [1]), (8, [8, 16])):
        step = StepLoss(model, stride, losses={"cross_entropy": 1.0, "dense_crf": 1e-9})
        step(rgb, labels, step.denominators(labels).float())
        pictures = [(size, each) for each in strides for size in ((33, 33), (3, 33, 33))]
        assert found == [((33, 33), each) for each in strides] + pictures
        found.clear()


def test_behind_several_scales_a_crf_has_the_loss_of_its_result():
    torch.manual_seed(0)
    layer = CRFSettings(2, None, Bilateral(4.0, 8.0, 13.0)).layer(4, learnable=True)
    model = deeplab_v2_small(4, scales=(1.0, 0.5), crf=layer).eval()
    rgb = torch.randint(0, 256, (1, 3, 33, 33), dtype=torch.uint8)
    labels = torch.randint(0, 4, (1, 33, 33))
    loss = segmentation_loss(model, rgb, labels, 1)
    with torch.no_grad():
        logits = model(model.preprocess(rgb), image=rgb.float())
    assert loss.item() == pytest.approx(F.cross_entropy(logits.double(), labels).item(), rel=1e-5)
    loss.backward()
    assert layer.learned.weights.grad.abs().max() > 0


@pytest.mark.processors
@pytest.mark.parametrize("stride", [1, 8])
def test_class_weights_make_a_weighted_mean(stride):
    model = deeplab_v2_small(4).eval()
    rgb = torch.randint(0, 256, (2, 3, 33, 33), dtype=torch.uint8)
    labels = torch.randint(0, 4, (2, 33, 33))
    labels[0] = 255
    weights = torch.tensor([0.5, 2.0, 0.0, 1.0])
    step = StepLoss(model, stride, weights)
    with torch.no_grad():
        loss = step(rgb, labels, loss_denominators(labels, step.strides, weights).float())
        logits = model(model.preprocess(rgb), upsample=stride == 1)
    truth = labels[:, ::stride, ::stride]
    expected = F.cross_entropy(logits.double(), truth, weights.double(), ignore_index=255).item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("side", [33, 65, 321])
def test_torchvisions_scores_are_compared_with_the_labels_where_upsampling_puts_them(side):
    """The label under the middle of each score's share, where it is upsampled to itself."""
    count = (side - 1) // 8 + 1
    pixels = torch.arange(side).expand(1, side, side)
    seen = labels_of_scores(pixels, 8, Grid(aligned=False))
    assert seen.shape == (1, count, count)
    assert torch.equal(labels_of_scores(pixels.mT, 8, Grid(aligned=False)), seen.mT)
    position = torch.arange(count).expand(1, 1, count, count).float()
    upsampled = F.interpolate(position, size=(side, side), mode="bilinear")[0, 0, 0]
    off = upsampled[seen[0, 0]] - torch.arange(count)
    assert off.abs().max() <= 0.5 / 8 + 0.01  # half a pixel
    coarse = labels_of_scores(pixels, 16, Grid(aligned=False))  # as the scores of stride 8 lie
    assert torch.equal(coarse, seen[:, ::2, ::2])


@pytest.mark.processors
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
    expected = F.cross_entropy(logits.double(), seen, ignore_index=255).item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_class_weights_reach_the_run_and_must_be_one_for_each_class(pictures):
    weights = (1.0,) * (len(CLASSES) - 1)
    with pytest.raises(InputError, match=f"class_weights must be {len(CLASSES)}, one for each"):
        run(replace(SHORT, class_weights=weights), pictures)
    equal = run(replace(SHORT, class_weights=(*weights, 1.0)), pictures)
    other = run(replace(SHORT, class_weights=(*weights, 9.0)), pictures)
    assert equal.loss == run(SHORT, pictures).loss != other.loss


def test_a_model_of_several_scales_trains(pictures):
    options = {"scales": [1.0, 0.75, 0.5], "frozen_bn": True}
    config = replace(SHORT, model_options=options, loss_stride=8, lr=1e-5, steps=8)
    result = run(config, pictures)
    assert result.loss < run(replace(config, steps=1), pictures).loss
    assert result.model.config["scales"] == [1.0, 0.75, 0.5]
    with pytest.raises(ValueError, match=r"crop must be 16k \+ 1 with a smallest scale of 0.5"):
        replace(config, crop=41)


def test_loss_of_a_batch_without_labels_is_zero_not_nan():
    model = deeplab_v2_small(4)
    loss = segmentation_loss(model, torch.zeros(2, 3, 33, 33), torch.full((2, 33, 33), 255), 1)
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("scales", [None, (1.0, 0.5)])
def test_a_model_of_another_output_stride_trains_on_upsampled_scores_alone(scales):
    with torch.device("meta"):
        model = build("deeplab_v3_mobilenet", 2, scales=scales)
    said = "loss_stride must be 1 to train deeplab_v3_mobilenet, whose scores lie 16 pixels apart"
    with pytest.raises(InputError, match=said):
        label_strides(model, 8)
    assert label_strides(model, 1) == ((1,) if scales is None else (1, 1, 1))
