"""Real street scenes: a short run of the shipped recipe learns to tell their classes apart."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from deeplab.data.datasets import IGNORE, open_dataset
from deeplab.training import train
from deeplab.training.recipe import make_config, read_recipe

CAMVID = Path(__file__).resolve().parents[4] / "shared" / "data" / "camvid"


@pytest.mark.slow
@pytest.mark.skipif(not CAMVID.is_dir(), reason=f"CamVid is not in {CAMVID}")
def test_a_short_run_on_camvid_lowers_the_loss_and_tells_classes_apart(tmp_path):
    """The scores are held against those of one class everywhere, which is what no learning gives.

    On the validation pictures below that is a mIoU of 0.03 and 0.3 of the pixels; this run reaches
    some 0.15 and 0.5, by more or by less as rounding has it.
    """
    recipe = make_config(read_recipe("camvid_small"))
    changes = {"steps": 100, "batch_size": 4, "crop": 97, "scales": (0.3, 0.6), "lr": 0.02}
    changes |= {"warmup": 10, "validate_every": 50, "device": "cpu", "precision": "float32"}
    data = dataclasses.replace(recipe.data, root=str(CAMVID))
    config = dataclasses.replace(recipe, data=data, **changes)
    pictures = open_dataset("camvid", CAMVID, config.data.validation)
    some = [pictures[i] for i in range(0, len(pictures), 25)]
    result = train(config, tmp_path / "camvid.safetensors", validation=some, progress=False)
    with (tmp_path / "camvid.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["loss"]) for row in rows]
    assert losses[-1] < 0.8 * max(losses[:3])
    assert sum(bool(row["miou"]) for row in rows) == 2
    pixels = np.sum([np.bincount(y[y != IGNORE], minlength=11) for _, y in some], axis=0)
    commonest = pixels.max() / pixels.sum()
    assert result.metrics["miou"] > 3 * commonest / len(pixels)
    assert result.metrics["pixel_accuracy"] > 1.5 * commonest
