"""Real street scenes: a short run of the shipped recipe learns to tell their classes apart."""

import csv
import dataclasses
from pathlib import Path

import pytest

from deeplab.data.datasets import open_dataset
from deeplab.engine.train import train
from deeplab.engine.training.recipe import make_config, read_recipe

CAMVID = Path(__file__).resolve().parents[3] / "shared" / "data" / "camvid"


@pytest.mark.slow
@pytest.mark.skipif(not CAMVID.is_dir(), reason=f"CamVid is not in {CAMVID}")
def test_a_short_run_on_camvid_lowers_the_loss_and_raises_the_miou(tmp_path):
    recipe = make_config(read_recipe("camvid_small"))
    config = dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, root=str(CAMVID)),
        steps=200,
        batch_size=4,
        crop=97,
        scales=(0.3, 0.6),
        lr=0.02,
        warmup=20,
        validate_every=50,
        device="cpu",
        precision="float32",
    )
    pictures = open_dataset("camvid", CAMVID, config.data.validation)
    some = [pictures[i] for i in range(0, len(pictures), 10)]
    out = tmp_path / "camvid.safetensors"
    result = train(config, out, validation=some, progress=False)
    with out.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["loss"]) for row in rows]
    scores = [float(row["miou"]) for row in rows if row["miou"]]
    assert len(scores) == 4
    assert losses[-1] < 0.7 * max(losses[:3])
    assert result.best["miou"] > scores[0] + 0.03
    assert result.metrics["pixel_accuracy"] > 0.5
