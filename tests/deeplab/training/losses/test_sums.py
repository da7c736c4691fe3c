"""Weighted sums of losses in a step and in a run: scales, micro-batches, recipes, balance."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scored_maps import total
from tiny_training import FROZEN, SHORT, float64, own_data, run, stop_at, tiny_pictures

from deeplab.data.datasets import IGNORE
from deeplab.data.scenes import CLASSES
from deeplab.errors import InputError
from deeplab.model import deeplab_v2_small
from deeplab.training import labels as training_labels
from deeplab.training.checkpoint import Files, read_state
from deeplab.training.labels import balanced_weights
from deeplab.training.losses import (
    LOSSES,
    Scored,
    StepLoss,
    labels_of_scores,
    loss_denominators,
    segmentation_loss,
)
from deeplab.training.recipe import make_config, one_setting

EVERY = {"cross_entropy": 1.0, "focal": 0.5, "ohem": 2.0, "dice": 0.7, "lovasz": 0.3}
EVERY |= {"dense_crf": 1e-4}


@pytest.mark.parametrize("style", ["caffe", "torchvision"])
def test_each_map_of_several_scales_has_every_loss_over_its_own_labels_and_pixels(style):
    torch.manual_seed(0)
    model = deeplab_v2_small(4, scales=(1.0, 0.75, 0.5), style=style).double().eval()
    rgb = torch.randint(0, 256, (2, 3, 33, 33), dtype=torch.uint8)
    labels = torch.randint(0, 3, (2, 33, 33))
    labels[0, :20] = 255
    loss = segmentation_loss(model, rgb, labels, 8, EVERY).item()
    expected = 0.0
    grid = StepLoss(model, 8).grid
    for logits, stride in zip(
        model.forward_scales(model.preprocess(rgb)), (8, 8, 8, 16), strict=True
    ):
        seen, pixels = (labels_of_scores(maps, stride, grid) for maps in (labels, rgb))
        assert seen.shape[1:] == pixels.shape[2:] == logits.shape[2:]
        scored = Scored(logits, seen, pixels, stride=stride)
        for name, weight in EVERY.items():
            total, below = LOSSES[name].total(scored), LOSSES[name].denominator(seen, None)
            expected += weight * total.item() / below
    assert loss == pytest.approx(expected, rel=1e-6)  # the denominators are float32


def test_denominators_come_stride_by_stride():
    labels = torch.randint(0, 4, (3, 33, 33))
    labels[0] = 255
    found = loss_denominators(labels, (1, 8), None, losses=("dice", "cross_entropy", "ohem"))
    full, eighth = 2 * 33 * 33, 2 * 5 * 5
    assert found.tolist() == [2, full, 2 * 218, 2, eighth, 2 * 5]


@pytest.mark.parametrize("maps", [(), (4,)], ids=["labels", "masks"])
def test_the_dense_crf_loss_leaves_out_what_samples_are_filled_with(maps):
    """Nothing that is said beyond the picture changes it, unless labels lie there."""
    model = deeplab_v2_small(4).eval()
    step = StepLoss(model, losses={"dense_crf": 1.0})
    rgb = torch.randint(0, 256, (1, 3, 9, 9), dtype=torch.uint8)
    rgb[..., 5:] = torch.tensor([123, 117, 104], dtype=torch.uint8)[:, None, None]
    labels = torch.zeros(1, *maps, 9, 9, dtype=torch.long)
    labels[..., 4:] = IGNORE
    logits = torch.randn(1, 4, 9, 9)

    def loss(logits: torch.Tensor) -> float:
        return total("dense_crf", Scored(logits, *step._under(rgb, labels, 1))).item()

    inside, beyond = logits.clone(), logits.clone()
    inside[..., 4] += torch.randn(4, 1)
    beyond[..., 5:] += torch.randn(4, 1, 1)
    assert loss(inside) != loss(logits) == loss(beyond)
    (labels[:, 1] if maps else labels)[..., 5:] = 0  # one mask says enough
    assert loss(logits) != loss(beyond)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_pieces_of_a_step_have_the_gradient_of_one_piece_with_every_loss(name):
    few = [(image, labels.copy()) for image, labels in tiny_pictures()]
    few[0][1][5:] = 255
    losses = {"cross_entropy": 1e-6, name: 1.0}
    with float64():
        config = replace(FROZEN, steps=2, loss_stride=8, loss=losses)
        one, two = (run(replace(config, accumulate=pieces), few) for pieces in (1, 2))
        start = run(replace(config, steps=1, lr=1e-30), few).model.state_dict()
    assert two.loss == pytest.approx(one.loss, rel=1e-12)
    moved = 0.0
    for key, tensor in one.model.state_dict().items():
        torch.testing.assert_close(two.model.state_dict()[key], tensor, rtol=0, atol=1e-10)
        moved = max(moved, float((tensor - start[key]).abs().max()))
    assert moved > 1e-6


@pytest.mark.parametrize("stride", [1, 8])
def test_a_step_without_labels_has_loss_and_gradient_zero_with_every_loss(stride):
    model = deeplab_v2_small(4)
    rgb = torch.randint(0, 256, (2, 3, 33, 33), dtype=torch.uint8)
    loss = segmentation_loss(model, rgb, torch.full((2, 33, 33), 255), stride, EVERY)
    loss.backward()
    assert loss.item() == 0
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_a_recipe_names_one_loss_or_several_and_their_sum_is_trained(pictures):
    losses = {}
    for settings in (("loss", "dice"), ("loss", {"dice": 1.0}), ("loss.dice", 2.0)):
        config = make_config(one_setting(*settings))
        changed = {"loss": config.loss}
        losses[repr(config.loss)] = run(replace(SHORT, steps=1, **changed), pictures).loss
    assert losses["'dice'"] == losses["{'dice': 1.0}"]
    assert losses["{'dice': 2.0}"] == pytest.approx(2 * losses["'dice'"], rel=1e-6)
    smooth = run(replace(SHORT, steps=1, label_smoothing=0.1), pictures).loss
    assert smooth != run(replace(SHORT, steps=1), pictures).loss


def test_a_run_is_resumed_with_its_own_losses_only(pictures, tmp_path):
    out = tmp_path / "w.safetensors"
    both = replace(SHORT, loss={"cross_entropy": 1.0, "dice": 0.5})
    run(both, stop_at(1, pictures), out)
    with pytest.raises(InputError, match=r"loss\.dice 0\.5 then, 1\.0 now"):
        run(replace(both, loss={"cross_entropy": 1.0, "dice": 1.0}), pictures, out, resume=True)
    with pytest.raises(InputError, match=r"another run .* loss\.dice 0\.5 then, absent now"):
        run(replace(both, loss="cross_entropy"), pictures, out, resume=True)
    assert run(both, pictures, out, resume=True).loss == run(both, pictures).loss


def maps(*labels: list[list[int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures with these labels."""
    found = [np.array(rows, np.uint8) for rows in labels]
    return [(np.zeros((*rows.shape, 3), np.uint8), rows) for rows in found]


def test_balanced_weights_are_median_frequencies_of_the_pictures_with_a_class():
    data = maps([[0, 0, 0, 1], [0, 255, 0, 2]], [[0, 1, 1, 1]])
    # f: 0 is 6 of 11, 1 is 4 of 11, 2 is 1 of the 7 pixels of the first; 3 is nowhere.
    f = [6 / 11, 4 / 11, 1 / 7]
    expected = [f[1] / f[0], 1.0, f[1] / f[2], f[1] / f[2]]
    assert balanced_weights(data, "abcd") == pytest.approx(expected, rel=1e-12)
    assert balanced_weights(maps([[255, 255]]), "abcd") == ()


def test_balanced_weights_read_label_maps_alone_and_pass_over_broken_ones(tmp_path):
    data = own_data(tmp_path)
    expected = balanced_weights([(None, data.labels(i)) for i in (0, 1, 3)], "ab")
    (tmp_path / "labels" / "r.png").write_bytes(b"")
    for picture in (tmp_path / "images").iterdir():
        picture.write_bytes(b"")
    assert balanced_weights(data, "ab") == expected


def test_a_run_of_balanced_weights_is_one_of_these_weights_and_resumes_with_them(
    pictures, tmp_path, monkeypatch
):
    out, balanced = tmp_path / "w.safetensors", replace(SHORT, class_weights="balanced")
    weights = balanced_weights(pictures, CLASSES)
    assert len(weights) == len(CLASSES)
    expected = run(replace(SHORT, class_weights=weights), pictures).loss
    assert run(balanced, pictures).loss == expected != run(SHORT, pictures).loss
    run(balanced, stop_at(1 + len(pictures) // 2, pictures), out)  # each is read once before
    assert 0 < read_state(Files(out).state)["step"] < SHORT.steps
    monkeypatch.setattr(training_labels, "MOST_READ", 0)  # none is read again
    assert run(balanced, pictures, out, resume=True).loss == expected
