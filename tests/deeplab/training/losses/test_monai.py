"""Dice and focal loss against MONAI's, where it is installed: its import takes seconds."""

from dataclasses import replace

import pytest
import torch
from scored_maps import CLASSES, mean, scored

monai = pytest.importorskip(
    "monai.losses", reason="MONAI is not installed; the formulas are in test_functions.py"
)

ROUNDING = 4 * torch.finfo(torch.float32).eps  # in which its focal loss computes


def all_labelled(masks):
    """Pictures without ignored pixels in which every class occurs: MONAI knows no others."""
    given = scored(masks=masks)
    high = 2 if masks else CLASSES
    labels = torch.randint(0, high, given.labels.shape, generator=torch.Generator().manual_seed(1))
    return replace(given, labels=labels)


def test_the_losses_of_one_label_are_monais():
    given = all_labelled(masks=False)
    assert all(len(labels.unique()) == CLASSES for labels in given.labels)
    y = given.labels[:, None]
    exact = {"to_onehot_y": True, "smooth_nr": 0.0, "smooth_dr": 0.0}
    dice = monai.DiceLoss(softmax=True, **exact)(given.logits, y)
    assert mean("dice", given).item() == pytest.approx(dice.item(), rel=1e-12)
    focal = monai.FocalLoss(gamma=2.0, to_onehot_y=True, use_softmax=True)(given.logits, y)
    assert mean("focal", given).item() == pytest.approx(CLASSES * focal.item(), rel=ROUNDING)


def test_the_losses_of_masks_are_monais():
    """Its Dice loss looks at the class alone, ours at what is not it too."""
    given = all_labelled(masks=True)
    y = given.labels.double()
    focal = monai.FocalLoss(gamma=2.0)(given.logits, y)
    assert mean("focal", given).item() == pytest.approx(focal.item(), rel=ROUNDING)
    exact = {"sigmoid": True, "smooth_nr": 0.0, "smooth_dr": 0.0}
    of_class = monai.DiceLoss(**exact)(given.logits, y)
    of_rest = monai.DiceLoss(**exact)(-given.logits, 1 - y)
    expected = (of_class + of_rest) / 2
    assert mean("dice", given).item() == pytest.approx(expected.item(), rel=1e-12)
