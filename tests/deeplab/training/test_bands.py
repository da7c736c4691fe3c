"""Training on pictures of other bands than RGB: samples, loss, cached logits."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_training import SHORT

from crf import DenseCRF
from deeplab.data.outputs import NamedPalette, full_palette
from deeplab.errors import InputError
from deeplab.evaluation.logit_cache import LogitCache
from deeplab.model import build
from deeplab.predict import as_levels
from deeplab.training.losses import segmentation_loss
from deeplab.training.samples import Samples, SkipBroken, batches
from deeplab.training.setup import check_bands

MEAN, DEVIATION = (1000.0, 20.5), (300.0, 4.0)


def pictures(dtype: str, count: int = 2) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    image = rng.normal(MEAN, DEVIATION, (count, 30, 40, 2)).clip(0).astype(dtype)
    return list(zip(image, rng.integers(0, 2, (count, 30, 40)).astype(np.uint8), strict=True))


def of_two_bands(**options):
    return build("deeplab_v2_small", 2, in_channels=2, mean=MEAN, deviation=DEVIATION, **options)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("workers", [0, 1])
def test_samples_keep_the_values_and_beyond_the_picture_is_the_mean(dtype, workers):
    scale = {"scale_mode": "discrete", "scales": (1.0,), "mirror": False, "crop": 41}
    config = dataclasses.replace(SHORT, steps=1, workers=workers, **scale)
    data, preprocessing = pictures(dtype), of_two_bands().preprocessing
    (batch,) = batches(data, config, preprocessing=preprocessing)
    assert batch.image.dtype == torch.float32
    stored = {image.astype(np.float32).tobytes() for image, _ in data}
    found = batch.image.permute(0, 2, 3, 1)[:, :30, :40].contiguous().numpy()
    assert {image.tobytes() for image in found} == stored
    beyond = batch.image[:, :, 30:].permute(1, 0, 2, 3).flatten(1)
    mean = torch.tensor(MEAN if dtype == "float32" else np.round(MEAN), dtype=torch.float32)
    assert torch.equal(beyond, mean[:, None].expand_as(beyond))


def test_pictures_that_the_model_does_not_take_are_named():
    wide = [(np.zeros((30, 40, 2), np.int64), np.zeros((30, 40), np.uint8))]
    samples = Samples(wide, SHORT, of_two_bands().preprocessing)
    with pytest.raises(InputError, match=r"uint8 or uint16 or float32 \[H, W, 2\], not int64"):
        samples[0]
    with pytest.raises(
        InputError, match=r"must be uint8 RGB \[H, W, 3\], not uint16 \[30, 40, 2\]"
    ):
        Samples(pictures("uint16"), SHORT)[0]


class Broken:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise InputError("broken")


def test_a_broken_picture_has_as_many_bands_as_the_others():
    image, _ = SkipBroken(Broken(), bands=2)[0]
    assert of_two_bands().preprocess(image).shape == (1, 2, 9, 9)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rotate": 5.0}, "rotate must be off"),
        ({"noise": 2.0}, "noise must be off"),
        ({"augment": "module:function"}, "augment must be off"),
        ({"loss": {"cross_entropy": 1.0, "dense_crf": 1e-5}}, "loss must be without dense_crf"),
    ],
)
def test_what_is_for_rgb_is_refused(options, said):
    config = dataclasses.replace(SHORT, **options)
    with pytest.raises(InputError, match=f"^{said} for pictures of 2 bands; it is for RGB"):
        check_bands(config, of_two_bands())
    if "loss" not in options:
        samples = Samples(pictures("uint16"), config, of_two_bands().preprocessing)
        with pytest.raises(InputError, match=f"{said} .*such as uint16 of 2 bands"):
            samples[0]


def test_a_crf_that_trains_sees_the_levels_of_the_bands():
    crf = DenseCRF(2, iterations=1, learnable=True, learn_sigmas=False)
    model = of_two_bands(crf=crf).eval()
    image, labels = pictures("float32", 1)[0]
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    truth = torch.from_numpy(labels.astype(np.int64))[None]
    loss = segmentation_loss(model, batch, truth, 1)
    levels = as_levels(model, image)
    assert 0 <= levels.min() < 60
    assert 200 < levels.max() <= 255
    logits = model(model.preprocess(batch), image=levels)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, truth))
    with pytest.raises(ValueError, match=r"image must be RGB of the size of x, \[1, 3, 30, 40\]"):
        model(model.preprocess(batch), image=batch)


def test_cached_logits_go_with_the_levels_that_a_crf_sees(tmp_path):
    model, data = of_two_bands().eval(), pictures("uint16")
    classes = NamedPalette(full_palette(None))
    cache = LogitCache(tmp_path / "cache", model, data, [0, 1], "own", classes)
    assert list(cache.fill()) == [True, True]
    assert list(cache.fill()) == [False, False]
    for cached, (image, labels) in zip([cache[0], cache[1]], data, strict=True):
        torch.testing.assert_close(cached.image, as_levels(model, image))
        assert np.array_equal(cached.labels, labels)
