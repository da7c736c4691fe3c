"""Several labels a pixel from files: masks in a folder of each class, and what is wrong there."""

import re

import numpy as np
import pytest
from commands import done
from masked_data import CLASSES_TOML, masked_folder
from PIL import Image

from deeplab.data.augment import augment
from deeplab.data.datasets import UnknownLabels, open_dataset
from deeplab.data.datasets.check import check
from deeplab.data.distort import distort, rotate
from deeplab.errors import InputError


def test_masks_are_read_class_by_class_and_nothing_is_to_mend(tmp_path):
    pictures = masked_folder(tmp_path)
    data = open_dataset("folder", tmp_path, "all")
    assert data.multilabel
    assert data.classes == ("low", "high")
    assert data.palette[0].tolist() == [200, 0, 0]
    assert data.palette[1].any()  # black would be no colour in an overlay
    assert data.stored_values().tolist() == [1, 255]
    assert len(data) == 4
    for (image, masks), (expected, truth) in zip(data, pictures, strict=True):
        assert np.array_equal(image, expected)
        assert masks.dtype == np.uint8
        assert np.array_equal(masks, truth)
    report = check(open_dataset("folder", tmp_path, "train"), workers=0)
    assert report.findings == []
    truth = np.stack([masks for _, masks in pictures[:2]])
    assert report.pixels == (truth == 1).sum((0, 2, 3)).tolist()
    assert report.ignored == (truth == 255).sum() == 2 * 3 * 33
    assert report.unlabelled == 0
    assert report.others == (truth == 0).sum()


def test_shares_of_classes_are_those_of_all_pixels(tmp_path):
    pictures = masked_folder(tmp_path)[:2]
    printed = done("data", "check", "folder", tmp_path, "--split", "train").stdout
    values = np.stack([masks for _, masks in pictures]).swapaxes(0, 1)
    shares = [f"{100 * (mask == 1).mean():.2f}%" for mask in values]
    rows = [line.split("│")[3].strip() for line in printed.splitlines() if line.startswith("│")]
    assert rows == [*shares, f"{100 * (values == 255).mean():.2f}% of all"]


def test_what_is_wrong_with_masks_is_found_and_named(tmp_path):
    masked_folder(tmp_path)
    low, high = (tmp_path / "labels" / name / "train" for name in ("low", "high"))
    (low / "0.png").unlink()
    Image.fromarray(np.full((33, 33), 9, np.uint8)).save(low / "1.png")
    Image.fromarray(np.zeros((33, 33), np.uint8)).save(high / "more.png")
    data = open_dataset("folder", tmp_path, "train")
    found = {finding.kind: finding.message for finding in check(data, workers=0).findings}
    assert found.keys() == {"missing", "labels", "unpaired"}
    assert found["missing"] == f"{low / '0.png'}: no such file"
    assert found["labels"].startswith(f"{low / '1.png'}: label 9 in 1089 pixels")
    assert found["unpaired"] == f"{high / 'more.png'}: no picture has this name"
    with pytest.raises(InputError, match=re.escape(str(low / "0.png"))):
        data[0]
    with pytest.raises(UnknownLabels) as caught:
        data[1]
    assert caught.value.unknown == 33 * 33
    assert (caught.value.labels[0] == 255).all()
    Image.fromarray(np.zeros((33, 40), np.uint8)).save(high / "1.png")
    Image.fromarray(np.zeros((33, 33), np.uint8)).save(low / "1.png")
    with pytest.raises(InputError, match=r"1\.png: 40 x 33 pixels, .*has 33 x 33; the masks of a"):
        data[1]
    for folder in (low, high):
        Image.fromarray(np.zeros((40, 33), np.uint8)).save(folder / "1.png")
    with pytest.raises(InputError, match="the picture has 33 x 33 pixels, its labels 33 x 40"):
        data[1]


def test_masks_without_a_pixel_of_their_class_are_a_finding(tmp_path):
    masked_folder(tmp_path)
    for path in tmp_path.glob("labels/*/*/*.png"):
        Image.fromarray(np.zeros((33, 33), np.uint8)).save(path)
    (finding,) = check(open_dataset("folder", tmp_path, "train"), workers=0).findings
    assert "no mask has a pixel of its class" in finding.message
    assert "label = 255 for masks of black and white" in finding.message


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("label = 255", "label = 0", "label 0 of high must be neither 0 nor ignored"),
        ("label = 255", "label = 7", "label 7 of high must be neither 0 nor ignored"),
        ("multilabel = true", "multilabel = 1", "multilabel must be true or false"),
        ("ignore = [7]", "ignore_colours = [[0, 0, 0]]", "ignore_colours must be left out with"),
        ('"high"', '"low"', "two classes share one of their names"),
    ],
)
def test_a_class_file_that_makes_no_sense_is_refused(tmp_path, old, new, said):
    masked_folder(tmp_path)
    (tmp_path / "classes.toml").write_text(CLASSES_TOML.replace(old, new))
    with pytest.raises(InputError, match=said):
        open_dataset("folder", tmp_path, "train")


@pytest.mark.parametrize("mode", ["continuous", "discrete"])
def test_each_mask_is_augmented_as_a_label_map_is(tmp_path, mode):
    image, masks = masked_folder(tmp_path)[0]

    def sample(labels, seed):
        rng = np.random.default_rng(seed)
        turned, truth = rotate(image, labels, 40, rng)
        return augment(turned, truth, crop=41, scales=(0.5, 1.5), mode=mode, rng=rng)

    for seed in range(6):
        scaled, target = sample(masks, seed)
        assert target.shape == (2, 41, 41)
        for mask, plane in zip(masks, target, strict=True):
            alone, truth = sample(mask, seed)
            assert np.array_equal(alone, scaled)
            assert np.array_equal(truth, plane)


def test_distortions_leave_out_what_no_mask_labels(tmp_path):
    image, masks = (part.copy() for part in masked_folder(tmp_path)[0])
    image[:10] = (123, 117, 104)
    masks[:, :5], masks[0, 5:10], masks[1, 5:10] = 255, 255, 0
    rng = np.random.default_rng(0)
    noisy = distort(image, masks, rng, noise=30, fill=(123, 117, 104))
    assert np.array_equal(noisy[:5], image[:5])
    assert not np.array_equal(noisy[5:10], image[5:10])
