"""Ctrl-C: the first one ends a run cleanly, the second as usual."""

import dataclasses
import os
import signal
import time

import pytest
import torch
from tiny_training import SHORT, Acting, Signalling, raises, run

from deeplab.weights import load_model, read_metadata


def test_ctrl_c_stops_cleanly_and_leaves_a_loadable_checkpoint(pictures, tmp_path):
    out = tmp_path / "w.safetensors"
    handler = signal.getsignal(signal.SIGINT)
    config = dataclasses.replace(SHORT, steps=1000)
    result = run(config, Signalling(pictures, 6, signal.SIGINT), out)
    assert result.interrupted
    assert 1 <= result.steps < 10
    assert read_metadata(out)["step"] == result.steps
    weights = load_model(out).state_dict()
    assert all(torch.equal(weights[k], v) for k, v in result.model.state_dict().items())
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_in_the_last_validation_keeps_the_finished_weights(pictures, tmp_path):
    out = tmp_path / "w.safetensors"
    stopped = Acting(pictures, 1, raises(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run(SHORT, pictures, out, validation=stopped)
    assert read_metadata(out)["step"] == SHORT.steps


@pytest.fixture
def python_takes_ctrl_c():
    """Also where a shell started this in the background, which ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_second_ctrl_c_interrupts_as_usual(pictures, python_takes_ctrl_c):
    class Twice(list):
        def __getitem__(self, index):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)  # two that wait count as one
            return super().__getitem__(index)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(SHORT, Twice(pictures))
    assert signal.getsignal(signal.SIGINT) is handler
