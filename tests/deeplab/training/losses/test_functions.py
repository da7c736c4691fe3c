"""Each loss against its formula, written pixel by pixel in float64, and against other libraries."""

import math
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image
from scored_maps import CLASSES, WEIGHTS, denominator, gradient, mean, scored, total
from torch import Tensor

from deeplab.photographs import coffee
from deeplab.training.losses import LOSSES, Scored
from deeplab.training.losses.dense_crf import SIGMA_RGB, SIGMA_XY, dense_crf
from kernels import gaussian_filter

EPS = torch.finfo(torch.float64).eps
ALL = sorted(LOSSES)
OF_LABELS = sorted(LOSSES.keys() - {"dense_crf"})  # which looks at unlabelled pixels too


def pixels_of(given: Scored) -> list[list[tuple[Tensor, int]]]:
    """(probabilities [C], label) of the labelled pixels of each picture."""
    p = given.logits.softmax(1)
    return [
        [
            (p[b, :, y, x], int(given.labels[b, y, x]))
            for y, x in (given.labels[b] != 255).nonzero().tolist()
        ]
        for b in range(len(p))
    ]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_spreads_a_share_of_each_label_over_all_classes(smoothing, weights):
    given = scored(class_weights=weights, label_smoothing=smoothing)
    w = torch.ones(CLASSES) if weights is None else weights
    above = below = 0.0
    for p, label in chain(*pixels_of(given)):
        target = torch.full((CLASSES,), smoothing / CLASSES, dtype=torch.float64)
        target[label] += 1 - smoothing
        above -= float((w * target * p.log()).sum())
        below += float(w[label])
    assert mean("cross_entropy", given).item() == pytest.approx(above / below, rel=1e-13)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_loss_is_cross_entropy_times_the_square_of_what_is_missing(weights):
    given = scored(class_weights=weights)
    w = torch.ones(CLASSES) if weights is None else weights
    found = [(float(w[y]), float(p[y])) for p, y in chain(*pixels_of(given))]
    above = sum(-weight * (1 - p) ** 2 * math.log(p) for weight, p in found)
    expected = above / sum(weight for weight, _ in found)
    assert mean("focal", given).item() == pytest.approx(expected, rel=1e-13)


def test_focal_loss_of_a_sure_pixel_keeps_its_digits():
    """1 - P computed as 1 - exp(log P) would have none left."""
    given = Scored(torch.tensor([[[[30.0]], [[0.0]]]]), torch.zeros(1, 1, 1, dtype=torch.long))
    wrong = math.exp(-30) / (1 + math.exp(-30))
    loss = LOSSES["focal"].total(given).item()
    assert loss == pytest.approx(wrong**3, rel=4 * torch.finfo(torch.float32).eps * 30)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_ohem_is_the_mean_over_the_hardest_fifth_of_each_picture(weights):
    given = scored(class_weights=weights)
    w = torch.ones(CLASSES) if weights is None else weights
    kept: list[float] = []
    for pixels in pixels_of(given):
        losses = sorted((-float(w[y]) * math.log(float(p[y])) for p, y in pixels), reverse=True)
        kept += losses[: math.ceil(len(losses) / 5)]
    assert mean("ohem", given).item() == pytest.approx(sum(kept) / len(kept), rel=1e-13)


def test_dice_is_one_less_the_overlap_of_areas():
    given = scored()
    pictures = []
    for pixels in pixels_of(given):
        of_class = []
        for c in {label for _, label in pixels}:
            common = sum(float(p[c]) for p, label in pixels if label == c)
            areas = sum(float(p[c]) + (label == c) for p, label in pixels)
            of_class.append(1 - 2 * common / areas)
        pictures.append(np.mean(of_class))
    assert mean("dice", given).item() == pytest.approx(np.mean(pictures), rel=1e-13)


def test_lovasz_is_the_extension_of_the_jaccard_loss_to_errors_in_their_order():
    given = scored()
    pictures = []
    for pixels in pixels_of(given):
        of_class = []
        for c in {label for _, label in pixels}:
            truth = {i for i, (_, label) in enumerate(pixels) if label == c}
            errors = [1 - float(p[c]) if label == c else float(p[c]) for p, label in pixels]
            wrong, before, value = set(), 0.0, 0.0
            for i in sorted(range(len(pixels)), key=lambda i: -errors[i]):
                wrong.add(i)
                jaccard = 1 - len(truth - wrong) / len(truth | wrong)
                value += errors[i] * (jaccard - before)
                before = jaccard
            of_class.append(value)
        pictures.append(np.mean(of_class))
    assert mean("lovasz", given).item() == pytest.approx(np.mean(pictures), rel=1e-13)


@pytest.mark.parametrize("name", ["dice", "lovasz"])
def test_of_sure_answers_the_losses_of_areas_are_those_of_sets(name):
    """1 - Dice and 1 - IoU of the labels that such scores predict."""
    given = scored(pictures=1)
    predicted = given.logits.argmax(1)
    sure = 1000 * torch.nn.functional.one_hot(predicted, CLASSES).permute(0, 3, 1, 2).double()
    values = []
    for c in given.labels[given.labelled].unique().tolist():
        truth, answer = given.labels == c, (predicted == c) & given.labelled
        both, either = (truth & answer).sum().item(), (truth | answer).sum().item()
        values.append(1 - (2 * both / (both + either) if name == "dice" else both / either))
    found = mean(name, replace(given, logits=sure)).item()
    assert found == pytest.approx(np.mean(values), rel=1e-13)


def kernel(rgb: Tensor, stride: int) -> Tensor:
    """W of one picture [3, h, w] over all pairs of pixels, one exponential each."""
    height, width = rgb.shape[1:]
    places = [(y, x) for y in range(height) for x in range(width)]
    w = torch.empty(len(places), len(places), dtype=torch.float64)
    for i, (y, x) in enumerate(places):
        for j, (v, u) in enumerate(places):
            place = stride**2 * ((y - v) ** 2 + (x - u) ** 2) / (2 * SIGMA_XY**2)
            colour = float((rgb[:, y, x] - rgb[:, v, u]).square().sum()) / (2 * SIGMA_RGB**2)
            w[i, j] = math.exp(-place - colour)
    return w


def near_colours(**changes: object) -> Scored:
    """Pictures whose pixels differ by about one sigma_rgb, so that W is neither 0 nor 1."""
    given = scored(pictures=2, **changes)
    return replace(given, rgb=120 + (given.rgb - 128) / 8)


@pytest.mark.parametrize("stride", [1, 8])
def test_the_dense_crf_loss_is_the_quadratic_form_over_all_pairs(stride):
    given = near_colours(stride=stride)
    inside = torch.ones(2, 6, 5, dtype=torch.bool)
    inside[0, 4:] = inside[1, :, :2] = False
    expected = 0.0
    for b in range(2):
        w = kernel(given.rgb[b], stride)
        mask = inside[b].flatten()
        w = w[mask][:, mask]
        s = given.logits[b].softmax(0).flatten(1)[:, mask]
        form = sum(float(s[k] @ w @ (1 - s[k])) for k in range(CLASSES))
        expected += stride**2 * form / int(mask.sum())
    found = dense_crf(replace(given, inside=inside), "exact").item()
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_dense_crf_loss_of_training_is_that_of_the_lattice():
    """The matrix of the lattice is what it makes of each unit vector."""
    given = near_colours()
    sigmas = torch.tensor([SIGMA_XY, SIGMA_XY, SIGMA_RGB, SIGMA_RGB, SIGMA_RGB]).double()
    expected = 0.0
    for b in range(2):
        places = torch.tensor([(x, y) for y in range(6) for x in range(5)]).double()
        features = torch.cat([places, given.rgb[b].flatten(1).T], dim=1) / sigmas
        w = gaussian_filter(torch.eye(30, dtype=torch.float64)[None], features[None])[0]
        s = given.logits[b].softmax(0).flatten(1)
        expected += sum(float(s[k] @ w @ (1 - s[k])) for k in range(CLASSES)) / 30
    assert LOSSES["dense_crf"].total(given).item() == pytest.approx(expected, rel=1e-12)


one_label_or_masks = pytest.mark.parametrize("masks", [False, True], ids=["labels", "masks"])


@pytest.mark.parametrize("sure", [False, True])
def test_the_dense_crf_loss_of_the_lattice_is_half_to_three_fifths_of_that_over_all_pairs(sure):
    photograph, _ = coffee()
    small = np.array(Image.fromarray(photograph).resize((49, 49), Image.Resampling.BILINEAR))
    logits = torch.zeros(1, 3, 49, 49, dtype=torch.float64)
    if sure:  # three stripes
        stripes = torch.nn.functional.one_hot(torch.arange(49) // 17, 3).T
        logits = 8 * stripes[None, :, None].double().expand(1, 3, 49, 49)
    rgb = torch.from_numpy(small).permute(2, 0, 1)[None].double()
    given = Scored(logits, torch.zeros(1, 49, 49, dtype=torch.long), rgb, stride=8)
    assert 0.5 < float(dense_crf(given) / dense_crf(given, "exact")) < 0.6


@pytest.mark.parametrize("name", ALL)
@one_label_or_masks
def test_gradients_are_those_of_differences(masks, name):
    given = near_colours(class_weights=WEIGHTS, label_smoothing=0.1, masks=masks)
    rows = 2 if masks else 4
    maps = {part: getattr(given, part)[:1, ..., :rows, :3] for part in ("logits", "labels", "rgb")}
    given = replace(given, **maps)

    def of(logits: Tensor) -> Tensor:
        return total(name, replace(given, logits=logits))

    assert torch.autograd.gradcheck(of, given.logits.clone().requires_grad_())


@pytest.mark.parametrize("name", OF_LABELS)
@one_label_or_masks
def test_ignored_pixels_have_no_influence(masks, name):
    given = scored(class_weights=WEIGHTS, label_smoothing=0.1, masks=masks)
    labelled = given.labelled if masks else given.labelled[:, None]
    ignored = ~labelled.expand_as(given.logits)
    value, found = gradient(name, given)
    assert not found[ignored].any()
    other = given.logits.where(~ignored, 50 * torch.randn_like(given.logits))
    again, there = gradient(name, replace(given, logits=other))
    assert again == value
    assert torch.equal(there, found)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("absent", range(CLASSES))
@one_label_or_masks
def test_a_class_that_does_not_occur_leaves_loss_and_gradient_finite(masks, name, absent):
    value, found = gradient(name, scored(absent=absent, class_weights=WEIGHTS, masks=masks))
    assert value > 0
    assert found.isfinite().all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", [0.0, 1e4])
@one_label_or_masks
def test_scores_that_are_equal_or_sure_leave_loss_and_gradient_finite(masks, name, scale):
    given = scored(masks=masks)
    value, found = gradient(name, replace(given, logits=scale * given.logits.float()))
    assert value.isfinite()
    assert found.isfinite().all()


@pytest.mark.parametrize("name", ALL)
@one_label_or_masks
def test_without_a_labelled_pixel_loss_and_gradient_are_zero(masks, name):
    given = scored(label_smoothing=0.1, masks=masks)
    nothing = torch.full_like(given.labels, 255)
    value, found = gradient(name, replace(given, labels=nothing))
    assert value == 0
    assert not found.any()
    assert denominator(name, nothing) == 0


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@one_label_or_masks
def test_totals_and_denominators_of_pictures_add_up(masks, name, weights):
    """So that neither micro-batches nor processes change the gradient of a step."""
    given = scored(class_weights=weights, masks=masks)
    given.labels[1] = 255  # a picture without a label adds nothing
    parts = [
        replace(given, logits=z, labels=y, rgb=x)
        for z, y, x in zip(
            given.logits.split(1), given.labels.split(1), given.rgb.split(1), strict=True
        )
    ]
    whole = total(name, given).item()
    assert sum(total(name, part).item() for part in parts) == pytest.approx(whole, rel=1e-13)
    assert total(name, parts[1]) == 0
    counts = [denominator(name, part.labels, weights) for part in parts]
    assert sum(counts) == pytest.approx(denominator(name, given.labels, weights), rel=1e-13)
    assert counts[1] == 0


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@one_label_or_masks
def test_losses_are_computed_in_the_dtype_of_the_scores(masks, name, dtype):
    given = near_colours(class_weights=WEIGHTS, masks=masks)
    given = replace(given, logits=given.logits.to(dtype), class_weights=WEIGHTS.to(dtype))
    value, found = gradient(name, given)
    assert value.dtype == found.dtype == dtype


@pytest.mark.usefixtures("torchvision")
def test_the_losses_of_two_classes_are_smps():
    """smp counts absent classes in its mean: here there are none. Its focal loss has one score."""
    smp = pytest.importorskip(
        "segmentation_models_pytorch.losses", reason="smp is not installed; the formulas are above"
    )
    given = scored(pictures=1)
    given.labels[given.labels == 2] = 3
    given.labels[given.labelled & (given.labels == 3)] = 1  # classes 0 and 1 are left
    two = replace(given, logits=given.logits[:, :2])
    kept = two.labelled
    dice = smp.DiceLoss("multiclass", ignore_index=255)(two.logits, two.labels)
    assert mean("dice", two).item() == pytest.approx(dice.item(), rel=1e-6)  # smp adds an epsilon
    lovasz = smp.LovaszLoss("multiclass", per_image=True, ignore_index=255)
    expected = lovasz(two.logits.float(), two.labels).item()  # which takes no other dtype
    assert mean("lovasz", two).item() == pytest.approx(expected, rel=1e-6)
    score = (two.logits[:, 1] - two.logits[:, 0])[kept]
    focal = smp.FocalLoss("binary", gamma=2.0)(score, two.labels[kept])
    assert mean("focal", two).item() == pytest.approx(focal.item(), rel=1e-12)
