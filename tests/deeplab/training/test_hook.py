"""One's own augmentation: found, called with a sample's own chance, checked, resumed exactly."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_training import SHORT, TINY, equal, run, stop_at

from deeplab.errors import InputError
from deeplab.training.hook import load_hook
from deeplab.training.samples import Samples

MODULE = """
import numpy as np

calls = []

def noisy(image, labels, rng):
    calls.append((image.dtype, image.shape, labels.dtype, labels.shape))
    image = image.astype(int) + rng.integers(-9, 10, image.shape)
    labels[:2] = 255
    return image.clip(0, 255).astype(np.uint8), labels

def small(image, labels, rng):
    return image[1:], labels

def floating(image, labels, rng):
    return image / 255, labels

def alone(image, labels, rng):
    return image

def outside(image, labels, rng):
    return image, np.full_like(labels, 200)

number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the working directory."""
    (tmp_path / "my_own_augment.py").write_text(MODULE)
    (tmp_path / "my_broken_augment.py").write_text("import there_is_no_such_module\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    load_hook.cache_clear()
    yield
    load_hook.cache_clear()
    sys.modules.pop("my_own_augment", None)


def samples(pictures, name, **changes):
    config = replace(TINY, augment=f"my_own_augment:{name}", **changes)
    return Samples(pictures, config, classes=11)


@pytest.mark.usefixtures("module")
def test_the_function_gets_the_sample_and_gives_what_is_trained_on(pictures):
    plain, found = Samples(pictures, TINY)[0], samples(pictures, "noisy")[0]
    off = (found.image.int() - plain.image.int()).abs()
    assert 0 < off.max() <= 9
    assert (found.labels[:2] == 255).all()
    assert torch.equal(found.labels[2:], plain.labels[2:])
    assert torch.equal(found.pixels, plain.pixels)
    calls = sys.modules["my_own_augment"].calls
    assert calls == [(np.uint8, (33, 33, 3), np.uint8, (33, 33))]


@pytest.mark.usefixtures("module")
def test_a_sample_depends_on_its_number_alone(pictures):
    whole = samples(pictures, "noisy", rotate=20, colour_jitter=0.2, blur=1, noise=5)
    again = samples(pictures, "noisy", rotate=20, colour_jitter=0.2, blur=1, noise=5)
    expected = [whole[i] for i in range(4)]
    for i in (3, 1, 2, 0):
        found = again[i]
        assert torch.equal(found.image, expected[i].image)
        assert torch.equal(found.labels, expected[i].labels)


@pytest.mark.usefixtures("module")
def test_a_run_with_a_hook_and_distortions_resumes_bit_for_bit(pictures, tmp_path):
    changed = {"rotate": 10, "colour_jitter": 0.3, "blur": 1, "noise": 4}
    config = replace(SHORT, augment="my_own_augment:noisy", **changed)
    whole = run(replace(config, workers=1), pictures)
    out = tmp_path / "w.safetensors"
    run(config, stop_at(1, pictures), out)
    assert equal(run(config, pictures, out, resume=True).model, whole.model)
    assert not equal(run(SHORT, pictures).model, whole.model)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "small",
            r"must return uint8 \[33, 33, 3\] and integers \[33, 33\], not uint8 \[32, 33, 3\]",
        ),
        ("floating", r"must return uint8 \[33, 33, 3\] and integers .*, not float64 \[33, 33, 3\]"),
        ("alone", r"must return uint8 .* and integers \[33, 33\], not ndarray"),
        ("outside", r"must return labels from 0 to 10, or 255 where a pixel does not c.*, not 200"),
    ],
)
def test_what_a_function_gives_back_is_checked(pictures, name, message):
    with pytest.raises(InputError, match=rf"\Aaugment: my_own_augment:{name} {message}"):
        samples(pictures, name)[0]


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("my_absent_augment:f", "there is no module my_absent_augment; put it into the working"),
        ("my_absent.augment:f", "there is no module my_absent; put it into the working"),
        ("my_own_augment:absent", "my_own_augment has no function absent"),
        ("my_own_augment:number", "my_own_augment has no function number"),
    ],
)
def test_a_function_that_is_not_there_stops_the_run_before_it_starts(pictures, place, message):
    with pytest.raises(
        InputError, match=f"must be package.module:function, not '{place}': {message}"
    ):
        run(replace(SHORT, augment=place), pictures)


@pytest.mark.usefixtures("module")
def test_an_import_that_fails_inside_the_module_is_shown_as_it_is():
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_module"):
        load_hook("my_broken_augment:f")
