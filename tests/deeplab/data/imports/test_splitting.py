"""Splits drawn by lot: shares, seeds, groups that stay together."""

from pathlib import Path

import pytest

from deeplab.data.imports.shapes import Picture
from deeplab.data.imports.splitting import split_pictures
from deeplab.errors import InputError


def pictures(*names):
    return [Picture(name, (), Path("x.json")) for name in names]


def training(chosen):
    return {picture.file for picture in chosen if picture.split == "train"}


def test_a_share_is_drawn_and_the_seed_decides_which():
    all_of = pictures(*(f"{i:02}.jpg" for i in range(50)))
    chosen = split_pictures(all_of, 0.8)
    assert [picture.file for picture in chosen] == [picture.file for picture in all_of]
    assert {picture.split for picture in chosen} == {"train", "val"}
    assert len(training(chosen)) == 40
    assert training(split_pictures(all_of[::-1], 0.8)) == training(chosen)
    assert training(split_pictures(all_of, 0.8, seed=1)) != training(chosen)


@pytest.mark.parametrize("pattern", [r"^[^_]+", r"^([^_]+)_\d+"])
def test_groups_stay_together(pattern):
    names = [f"film{film}_{i}.jpg" for film in range(10) for i in range(film + 1)]
    all_of = pictures(*(("x/", "..\\y\\")[i % 2] + name for i, name in enumerate(names)))
    for seed in range(5):
        chosen = split_pictures(all_of, 0.7, pattern, seed)
        films = {split: set() for split in ("train", "val")}
        for picture in chosen:
            films[picture.split].add(picture.file.split("film")[1].split("_")[0])
        assert not films["train"] & films["val"]
        assert abs(len(training(chosen)) - 0.7 * 55) <= 5


def test_splits_that_cannot_be_made_are_refused():
    two = pictures("a_1.jpg", "a_2.jpg")
    for share in (0, 1, -0.5, 80, float("nan")):
        with pytest.raises(InputError, match=r"--split .* must be above 0 and below 1"):
            split_pictures(two, share)
    with pytest.raises(InputError, match=r"--group \( must be a regular expression"):
        split_pictures(two, 0.5, "(")
    with pytest.raises(InputError, match=r"--group film: not found in a_1.jpg"):
        split_pictures(two, 0.5, "film")
    with pytest.raises(InputError, match="1 group of pictures cannot be divided so"):
        split_pictures(two, 0.5, "^a")
    with pytest.raises(InputError, match="1 picture cannot be divided so"):
        split_pictures(two[:1], 0.5)
