"""The time that a run will take: told from measurements that leave no trace in the run."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_training import TINY, Acting, equal, raises, run, stop_at

from deeplab.errors import InputError
from deeplab.training import estimate as module
from deeplab.training.estimate import Estimate, estimate

CONFIG = replace(TINY, steps=3, ema=0.9)


@pytest.fixture
def always(monkeypatch):
    """Runs of any length are measured."""
    monkeypatch.setattr(module, "FEWEST", 0)


class Drawing(Acting):
    """Pictures of which each draws from the generators of the whole program, as a hook might."""

    def __init__(self, pictures):
        super().__init__(pictures, 0, raises(AssertionError()))

    def __getitem__(self, index):
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        return super().__getitem__(index)


def generators():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002


def test_a_run_with_an_estimate_gives_the_same_weights(pictures, always, capsys):
    seen = Drawing(pictures)
    silent = run(CONFIG, pictures)
    told = run(CONFIG, seen, progress=True)
    assert "for 3 steps of 2 (" in capsys.readouterr().err
    assert seen.calls == CONFIG.steps * CONFIG.batch_size + 2  # the two that were measured
    assert equal(told.model, silent.model)
    assert (told.loss, told.metrics) == (silent.loss, silent.metrics)


def test_generators_weights_and_statistics_are_as_before(pictures, always, monkeypatch):
    found = []

    def watched(config, first, update, dataset, validation):
        before = generators()
        state = {name: t.clone() for name, t in update.model.state_dict().items()}
        found.append(estimate(config, first, update, Drawing(pictures), validation))
        assert generators() == before
        assert all(torch.equal(t, state[n]) for n, t in update.model.state_dict().items())
        assert all(p.grad is None for p in update.model.parameters())

    monkeypatch.setattr("deeplab.training.trainer.estimate", watched)
    run(replace(CONFIG, crf=True), pictures, progress=True)
    assert found[0].step > 0
    assert found[0].validation > 0


def test_times_are_those_of_a_step_and_of_all_pictures(pictures, always, monkeypatch):
    monkeypatch.setattr(module, "_seconds", lambda act: 3.0)  # of two samples, and of a picture
    found = []

    def scripted(*args):
        found.append(estimate(*args))

    monkeypatch.setattr("deeplab.training.trainer.estimate", scripted)
    config = replace(CONFIG, steps=7, batch_size=6, accumulate=3, validate_every=3)
    run(config, pictures, progress=True)
    [whole] = found
    assert (whole.steps, whole.validations) == (7, 3)
    assert whole.step == pytest.approx(9, abs=0.5)  # and two samples to make
    assert whole.validation == pytest.approx(3 * len(pictures), abs=0.5)


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (0, "about 55 min for 1500 steps of 2 (2 s a step) and 6 validations (50 s each)"),
        (9, "about 55 min for the 1500 steps of 2 that are left (2 s a step) and 6 validations"),
    ],
)
def test_it_is_told_in_one_line(first, expected):
    assert Estimate(2.0, 50.0, 1500, 6).told(TINY, first).startswith(expected)


def test_a_resumed_run_tells_of_the_rest(pictures, tmp_path, always, capsys):
    out = tmp_path / "w.safetensors"
    run(TINY, stop_at(4, pictures), out)
    run(TINY, pictures, out, resume=True, progress=True)
    said = capsys.readouterr().err
    assert "for the 2 steps of 2 that are left (" in said
    assert "and a validation (" in said


@pytest.mark.parametrize("changes", [{}, {"steps": 300, "compile": True}], ids=["short", "compile"])
def test_what_cannot_be_told_is_not_measured(pictures, changes):
    unread = Acting(pictures, 1, raises(AssertionError("was read")))
    assert estimate(replace(TINY, **changes), 0, None, unread, unread) is None


def test_a_broken_picture_is_left_to_the_run(pictures, always, capsys):
    broken = Acting(pictures, 1, raises(InputError("a.png: broken")))
    result = run(replace(TINY, steps=1), broken, progress=True)
    assert result.steps == 1  # it was broken once, when the time was measured
    assert "about" not in capsys.readouterr().err
