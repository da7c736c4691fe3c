"""Samples: chance from (seed, index) alone, shares, workers, broken pictures, sets in memory."""

import multiprocessing
import os
import signal
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_training import SHORT, Signalling, own_data, run
from torch.utils.data import ConcatDataset

from deeplab.errors import InputError
from deeplab.model import deeplab_v2_small
from deeplab.training import DataConfig, train
from deeplab.training.samples import InMemory, Samples, batches, start_method
from deeplab.weights import load_model, read_metadata
from kernels import memory


def test_samples_depend_on_seed_and_index_alone(pictures):
    samples = Samples(pictures, SHORT)
    backwards = [samples[i] for i in reversed(range(len(samples)))][::-1]
    for i in range(len(samples)):
        assert torch.equal(samples[i][0], backwards[i][0])
        assert torch.equal(samples[i][1], backwards[i][1])
    assert len(samples) == SHORT.steps * SHORT.batch_size
    assert not torch.equal(samples[0][0], samples[2][0])


def test_every_epoch_visits_every_picture_once(pictures):
    counted = Counted(pictures[:1] * 5)
    samples = Samples(counted, replace(SHORT, steps=5))
    for i in range(10):
        samples[i]
    first, second = counted.reads[:5], counted.reads[5:]
    assert sorted(first) == sorted(second) == list(range(5))
    assert first != second


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_stops_the_run_and_is_named(tmp_path, workers):
    data = own_data(tmp_path, broken="r")
    with pytest.raises(InputError, match=r"images/r\.png: .*skip_broken = true passes over it"):
        run(replace(SHORT, workers=workers), data, validation=data)


class Failing:
    """A data set with a fault of its own; a class, so that workers can be given it."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise KeyError("a fault of its own")


def test_workers_end_with_a_run_that_fails_though_its_error_be_kept():
    before = set(multiprocessing.active_children())
    with pytest.raises(KeyError, match="a fault of its own") as kept:
        run(replace(SHORT, workers=1), Failing())
    assert kept.value is not None
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_pictures_are_passed_over_on_request_counted_and_said(tmp_path, capfd, workers):
    data = own_data(tmp_path, broken="qr")
    config = replace(SHORT, workers=workers, skip_broken=True, log_every=1)
    result = run(config, data, validation=data)
    named = [message.split(": ")[0].split("/")[-1] for message in result.broken]
    assert named == ["q.png", "r.png"]
    said = capfd.readouterr().err
    assert "2 broken pictures were passed over: " in said
    assert said.count("Passed over: ") == 2


def test_a_set_of_broken_pictures_is_refused_even_so(tmp_path):
    data = own_data(tmp_path, broken="pqrs")
    with pytest.raises(InputError, match="every picture of the training set is broken"):
        run(replace(SHORT, skip_broken=True), data, validation=data)


@pytest.mark.parametrize(
    ("image", "labels", "message"),
    [
        (np.zeros((9, 9), np.uint8), np.zeros((9, 9), int), r"RGB \[H, W, 3\], not .* \[9, 9\]"),
        (np.zeros((9, 9, 3)), np.zeros((9, 9), int), r"must be uint8 RGB .*, not float64"),
        (np.zeros((9, 9, 3), np.uint8), np.zeros((9, 8), int), r"labels for \[9, 9\] pixels"),
        (np.zeros((0, 9, 3), np.uint8), np.zeros((0, 9), int), "at least one, not"),
        (np.zeros((9, 9, 3), np.uint8), np.full((9, 9), 11), "label 11, expected 0 to 10, or 255"),
        (np.zeros((9, 9, 3), np.uint8), np.full((9, 9), 256), "label 256, expected 0 to 10"),
        (np.zeros((9, 9, 3), np.uint8), np.full((9, 9), -1), "label -1, expected 0 to 10"),
    ],
)
def test_what_is_no_picture_or_no_label_is_named(pictures, image, labels, message):
    with pytest.raises(InputError, match=rf"picture 2 of the data set.*{message}"):
        run(SHORT, [*pictures, (image, labels)])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_give_the_same_samples_however_started(pictures, tmp_path, monkeypatch, method):
    # Every kind of data goes to one worker, which takes seconds to start.
    data = ConcatDataset([pictures, InMemory(pictures), own_data(tmp_path)])
    config = replace(SHORT, steps=len(data) // SHORT.batch_size)
    expected = list(batches(data, config))
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: method)
    found = batches(data, replace(config, workers=1))
    for batch, same in zip(found, expected, strict=True):
        assert torch.equal(batch.image, same.image)


def test_workers_are_forked_on_linux_unless_the_program_has_chosen(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: None)
    for system, method in (("linux", "fork"), ("darwin", "spawn")):
        monkeypatch.setattr(sys, "platform", system)
        assert start_method() == method
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "forkserver")
    assert start_method() == "forkserver"


def test_more_workers_than_processors_are_said_in_one_line(pictures, monkeypatch, capfd):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(replace(SHORT, steps=1, workers=2), pictures)
    assert capfd.readouterr().err == (
        "workers: 2 processes prepare samples, on 1 processors; --workers 1 may be as fast\n"
    )


def test_a_worker_that_is_killed_is_said(pictures):
    killed = Signalling(pictures, 3, signal.SIGKILL)
    with pytest.raises(InputError, match=r"prepares samples was killed .*lower workers \(now 1\)"):
        run(replace(SHORT, workers=1), killed)


def test_the_longest_run_starts_at_once(pictures):
    config = replace(SHORT, steps=2**31 - 1)
    assert next(batches(pictures, config)).image.shape == (2, 3, 33, 33)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_the_same_steps(pictures, world):
    config = replace(SHORT, batch_size=4)
    whole = list(batches(pictures, config))
    shares = [list(batches(pictures, config, rank=rank, world=world)) for rank in range(world)]
    for step in range(config.steps):
        images = torch.cat([share[step].image for share in shares])
        assert torch.equal(images, whole[step].image)
    (last,) = batches(pictures, config, first_step=2)
    assert torch.equal(last.image, whole[2].image)


def test_beyond_a_picture_lies_what_preprocessing_turns_into_zero(pictures):
    for style in ("caffe", "torchvision"):
        model = deeplab_v2_small(3, style=style)
        colour = np.broadcast_to(np.float32(model.preprocessing.mean_colour()), (1, 1, 3))
        assert model.preprocess(colour).abs().max() < 1e-5


class Counted:
    """A data set that counts how often each picture is read, one of them broken."""

    def __init__(self, pictures, broken=None):
        self.pictures, self.broken, self.reads = pictures, broken, []

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        self.reads.append(index)
        if index == self.broken:
            raise InputError(f"picture {index} is broken")
        return self.pictures[index]


@pytest.fixture(scope="module")
def learned(pictures):
    """The weights that a run of SHORT ends with."""
    return run(SHORT, pictures).model.state_dict()


def test_pictures_in_memory_are_read_once_and_give_the_same_weights(pictures, learned):
    counted = Counted(pictures)
    config = replace(SHORT, in_memory=True)
    kept = train(config, dataset=counted, validation=pictures, progress=False)
    assert counted.reads == [0, 1]
    assert all(torch.equal(t, learned[name]) for name, t in kept.model.state_dict().items())


def test_a_broken_picture_in_memory_is_named_when_its_turn_comes(pictures):
    kept = InMemory(Counted(pictures, broken=1))
    assert len(kept) == 2
    assert np.array_equal(kept[0][0], pictures[0][0])
    with pytest.raises(InputError, match="picture 1 is broken"):
        kept[1]


def test_pictures_beyond_the_memory_are_refused_before_most_are_read(pictures, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 3 * pictures[0][0].nbytes)
    counted = Counted([pictures[0]] * 50)
    with pytest.raises(InputError, match="50 pictures in memory needs at least"):
        InMemory(counted)
    assert counted.reads == [0]


def test_empty_data_set_is_refused(pictures):
    with pytest.raises(ValueError, match="at least one picture"):
        train(SHORT, dataset=[], validation=pictures)


def test_same_configuration_gives_the_same_weights_whatever_the_workers(pictures, learned):
    again = run(replace(SHORT, workers=2), pictures).model.state_dict()
    other = run(replace(SHORT, seed=1), pictures).model.state_dict()
    assert all(torch.equal(learned[name], again[name]) for name in learned)
    assert not torch.equal(learned["head.classifier.weight"], other["head.classifier.weight"])


def test_own_data_and_classes_of_any_size_train(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [
        (rng.integers(0, 256, (h, w, 3), dtype=np.uint8), rng.integers(0, 2, (h, w)))
        for h, w in ((20, 45), (50, 17), (33, 33))
    ]
    out = tmp_path / "own.safetensors"
    palette = [[0, 0, 0], [255, 0, 0]]
    names = ("ground", "thing")
    run(SHORT, pictures, out, validation=pictures, class_names=names, palette=palette)
    assert load_model(out).num_classes == 2
    assert read_metadata(out)["palette"] == palette


def test_data_of_a_recipe_bring_their_classes(tmp_path):
    own_data(tmp_path)
    given = DataConfig("folder", str(tmp_path), "all", "all")
    out = tmp_path / "w.safetensors"
    train(replace(SHORT, data=given), out, progress=False)
    assert read_metadata(out)["class_names"] == ["a", "b"]
    assert "crf" not in read_metadata(out)
    bad = replace(SHORT, data=replace(given, train="bad"))
    with pytest.raises(InputError, match="no split 'bad'"):
        train(bad, progress=False)
