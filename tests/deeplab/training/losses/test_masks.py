"""Losses of several labels a pixel: binary cross entropy and its kin, class by class."""

import pytest
import torch
import torch.nn.functional as F
from scored_maps import WEIGHTS, mean, scored, total

from deeplab.model import build
from deeplab.training.losses import LOSSES, segmentation_loss


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_the_binary_one_with_the_weight_of_each_classs_own_pixels(
    smoothing, weights
):
    given = scored(masks=True, class_weights=weights, label_smoothing=smoothing)
    kept, y = given.labelled, (given.labels == 1).double()
    own = torch.ones_like(WEIGHTS) if weights is None else weights
    w = torch.where(y == 1, own[None, :, None, None], 1.0)
    if smoothing:  # the target of each side, and the weight of the side that it stands on
        target = y * (1 - smoothing) + smoothing / 2
        log_p, log_q = F.logsigmoid(given.logits), F.logsigmoid(-given.logits)
        losses = -(target * own[None, :, None, None] * log_p + (1 - target) * log_q)
    else:
        losses = w * F.binary_cross_entropy_with_logits(given.logits, y, reduction="none")
    expected = losses[kept].sum() / w[kept].sum()
    assert mean("cross_entropy", given).item() == pytest.approx(expected.item(), rel=1e-13)


def test_focal_loss_is_that_of_sigmoids():
    given = scored(masks=True)
    kept, y = given.labelled, (given.labels == 1).double()
    p = given.logits.sigmoid()
    right = torch.where(y == 1, p, 1 - p)
    expected = (-((1 - right) ** 2) * right.log())[kept].mean()
    assert mean("focal", given).item() == pytest.approx(expected.item(), rel=1e-13)


def test_losses_of_areas_are_means_over_a_class_and_what_is_not_it():
    given = scored(masks=True)
    values = {"dice": [], "lovasz": []}
    for picture in range(len(given.labels)):
        for c in range(given.labels.shape[1]):
            kept = given.labelled[picture, c]
            p, y = given.logits[picture, c].sigmoid()[kept], given.labels[picture, c][kept] == 1
            sides = [(q, t) for q, t in ((p, y), (1 - p, ~y)) if t.any()]
            dice = [1 - 2 * q[t].sum() / (q.sum() + t.sum()) for q, t in sides]
            values["dice"].append(torch.stack(dice).mean())
            errors = torch.where(y, 1 - p, p)  # the same on either side
            order = errors.argsort(descending=True)
            lovasz = []
            for _, t in sides:
                wrong = torch.arange(1, len(order) + 1)
                left = t.sum() - t[order].cumsum(0)
                jaccard = 1 - left.double() / (t.sum() + wrong - t[order].cumsum(0))
                lovasz.append((errors[order] * jaccard.diff(prepend=torch.zeros(1).double())).sum())
            values["lovasz"].append(torch.stack(lovasz).mean())
    for name, found in values.items():
        expected = torch.stack(found).mean().item()
        assert mean(name, given).item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_each_class_adds_what_it_adds_alone(name):
    given = scored(masks=True)
    alone = [
        total(
            name,
            type(given)(given.logits[:, c : c + 1], given.labels[:, c : c + 1], given.rgb),
        )
        for c in range(4)
    ]
    assert total(name, given).item() == pytest.approx(sum(alone).item(), rel=1e-13)


@pytest.mark.parametrize("stride", [1, 8])
def test_a_step_compares_each_score_with_the_masks_under_it(stride):
    torch.manual_seed(0)
    model = build("deeplab_v2_small", 3, multilabel=True).eval()
    rgb = torch.randint(0, 256, (2, 3, 33, 33), dtype=torch.uint8)
    masks = torch.randint(0, 2, (2, 3, 33, 33))
    masks[:, 1, :9] = 255
    with torch.no_grad():
        loss = segmentation_loss(model, rgb, masks, stride)
        z = model(model.preprocess(rgb), upsample=stride == 1).double()
    seen = masks[..., ::stride, ::stride]
    kept = seen != 255
    expected = F.binary_cross_entropy_with_logits(z[kept], seen[kept].double())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
